"""What networks of pixels and of masks say, read as transformers' image processors read it, and brought to the picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import DetrImageProcessor, Mask2FormerImageProcessor, MaskFormerImageProcessor, SegformerImageProcessor

from vitral.base.frame import Frame, Seen
from vitral.errors import UnknownNameError, UsageError
from vitral.models.output import EncoderOutput, MapOutput, MaskOutput
from vitral.models.record import Record
from vitral.tasks.segmentation.decode import Options, decode

SIZES = ((97, 61), (40, 150), (33, 20))
NAMES = ("sky", "road", "person", "dog", "car")
RECORD = Record(labels=NAMES)

# processor → (how its network's outputs are called, what ours says)
KINDS: dict[str, tuple[Any, tuple[str, str], dict[str, Any]]] = {
    "maskformer": (MaskFormerImageProcessor, ("class_queries_logits", "masks_queries_logits"), {}),
    "mask2former": (Mask2FormerImageProcessor, ("class_queries_logits", "masks_queries_logits"), {"canvas": (384, 384)}),
    "detr": (DetrImageProcessor, ("logits", "pred_masks"), {"instances": "partition"}),
}


def seen_in(sizes: Any = SIZES, input_size: tuple[int, int] = (64, 96)) -> list[Seen]:
    """Every picture resized to one input."""
    return [
        Seen(f"{place}", Frame(picture=size, input=input_size, scale=(input_size[0] / size[0], input_size[1] / size[1])))
        for place, size in enumerate(sizes)
    ]


def said(kind: str, queries: int = 12, seed: int = 0, cells: tuple[int, int] = (16, 24)) -> tuple[MaskOutput, Any]:
    """Blobs, some of them sure of what they are and some on top of others, as ours and as theirs."""
    numbers = torch.Generator().manual_seed(seed)
    logits = 2.5 * torch.randn(len(SIZES), queries, len(NAMES) + 1, generator=numbers)
    coarse = 9 * torch.randn(len(SIZES), queries, 3, 4, generator=numbers) - 6
    masks = F.interpolate(coarse, cells, mode="bicubic") + 0.3 * torch.randn(len(SIZES), queries, *cells, generator=numbers)
    processor, names, extra = KINDS[kind]
    output = MaskOutput(logits, masks, torch.zeros(len(SIZES), queries, 3), **extra)
    return output, (processor(), SimpleNamespace(**dict(zip(names, (logits.clone(), masks.clone()), strict=True))))


def theirs_by(kind: str, subtask: str, theirs: Any, **told: Any) -> list[Any]:
    processor, output = theirs
    return getattr(processor, f"post_process_{subtask}_segmentation")(output, target_sizes=list(SIZES), **told)


@pytest.mark.parametrize("cells", [(16, 24), (65, 31), (7, 160)])
def test_class_maps_are_those_of_transformers(cells: tuple[int, int]) -> None:
    logits = torch.randn(len(SIZES), 5, *cells)
    theirs = SegformerImageProcessor().post_process_semantic_segmentation(SimpleNamespace(logits=logits), list(SIZES))
    for ours, expected, size in zip(decode(MapOutput(logits), seen_in(), RECORD), theirs, SIZES, strict=True):
        np.testing.assert_array_equal(ours.class_map, expected.numpy())
        assert ours.size == size
        assert ours.labels == NAMES
        assert ours.scores is None


def test_scores_are_the_probability_of_the_class_said() -> None:
    logits = torch.randn(len(SIZES), 5, 9, 13)
    for place, ours in enumerate(decode(MapOutput(logits), seen_in(), RECORD, Options(scores=True))):
        resized = F.interpolate(logits[place][None], SIZES[place], mode="bilinear")[0].softmax(0)
        np.testing.assert_allclose(ours.scores, resized.amax(0).numpy(), atol=1e-6)
        np.testing.assert_array_equal(ours.class_map, resized.argmax(0).numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_semantic_of_masks_is_that_of_transformers(kind: str, seed: int) -> None:
    output, theirs = said(kind, seed=seed)
    expected = theirs_by(kind, "semantic", theirs)
    for ours, one in zip(decode(output, seen_in(), RECORD, Options(subtask="semantic")), expected, strict=True):
        np.testing.assert_array_equal(ours.class_map, one.numpy())
        assert ours.scores is None
    scored = decode(output, seen_in(), RECORD, Options(subtask="semantic", scores=True))
    for ours, one in zip(scored, expected, strict=True):
        np.testing.assert_array_equal(ours.class_map, one.numpy())
        assert 1 / len(NAMES) - 1e-6 <= ours.scores.min()
        assert ours.scores.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("thresholds", [(0.5, 0.5, 0.8), (0.3, 0.25, 0.3), (0.0, 0.5, 0.0), (0.9, 0.5, 0.5)])
def test_panoptic_is_that_of_transformers(kind: str, seed: int, thresholds: tuple[float, float, float]) -> None:
    told = dict(zip(("threshold", "mask_threshold", "overlap_mask_area_threshold"), thresholds, strict=True))
    output, theirs = said(kind, seed=seed)
    expected = theirs_by(kind, "panoptic", theirs, **told)
    for ours, one in zip(decode(output, seen_in(), RECORD, Options(**told)), expected, strict=True):
        np.testing.assert_array_equal(ours.segment_map, np.maximum(one["segmentation"].numpy(), 0))
        assert [(part.id, part.index, part.fused) for part in ours.segments] == [
            (part["id"], part["label_id"], part["was_fused"]) for part in one["segments_info"]
        ]
        np.testing.assert_allclose(
            [part.score for part in ours.segments], [part["score"] for part in one["segments_info"]], atol=1e-6
        )
        for part in ours.segments:
            rows, columns = np.nonzero(one["segmentation"].numpy() == part.id)
            assert part.area == len(rows)
            assert part.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert part.label == NAMES[part.index]


def test_panoptic_of_this_kind_has_what_is_compared() -> None:
    options = Options(threshold=0.3, mask_threshold=0.25, overlap_mask_area_threshold=0.3)
    found = [decode(said(kind, seed=seed)[0], seen_in(), RECORD, options) for kind in KINDS for seed in (0, 1)]
    counts = [len(one) for answers in found for one in answers]
    assert sum(count > 2 for count in counts) > len(counts) / 2


@pytest.mark.parametrize("fused", [("sky", 2), (0, 1, 2, 3, 4)])
def test_fused_classes_have_one_segment(fused: tuple[int | str, ...]) -> None:
    told = {"threshold": 0.2, "mask_threshold": 0.3, "overlap_mask_area_threshold": 0.1}
    output, theirs = said("maskformer", queries=20, seed=3)
    places = {NAMES.index(one) if isinstance(one, str) else one for one in fused}
    apart = theirs_by("maskformer", "panoptic", theirs, **told)
    answers = decode(output, seen_in(), RECORD, Options(fused=fused, **told))
    joined = 0
    for ours, one in zip(answers, apart, strict=True):
        # The same pixels, the segments of a fused class being one of the best score.
        for place in places:
            parts = [part for part in one["segments_info"] if part["label_id"] == place]
            mine = [part for part in ours.segments if part.index == place]
            assert len(mine) == min(len(parts), 1)
            if parts:
                expected = np.isin(one["segmentation"].numpy(), [part["id"] for part in parts])
                np.testing.assert_array_equal(ours.mask(mine[0].id), expected)
                assert mine[0].score == pytest.approx(max(part["score"] for part in parts), abs=1e-6)
                assert mine[0].fused
                joined += len(parts) > 1
        assert [part.id for part in ours.segments] == list(range(1, len(ours) + 1))
        assert not any(part.fused for part in ours.segments if part.index not in places)
    assert joined


@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
@pytest.mark.parametrize(("seed", "threshold"), [(0, 0.5), (1, 0.3), (2, 0.05)])
def test_overlapping_instances_are_those_of_transformers(kind: str, seed: int, threshold: float) -> None:
    output, theirs = said(kind, seed=seed)
    expected = theirs_by(kind, "instance", theirs, threshold=threshold, return_binary_maps=True)
    for ours, one in zip(
        decode(output, seen_in(), RECORD, Options(subtask="instance", threshold=threshold)), expected, strict=True
    ):
        rows = one["segments_info"]
        assert len(ours) == len(rows)
        order = sorted(range(len(rows)), key=lambda place: -rows[place]["score"])
        assert ours.indices.tolist() == [rows[place]["label_id"] for place in order]
        np.testing.assert_allclose(ours.scores, [rows[place]["score"] for place in order], atol=2e-6)
        for mask, place in zip(ours.masks, order, strict=True):
            np.testing.assert_array_equal(mask, one["segmentation"][place].numpy() == 1)


@pytest.mark.parametrize(("seed", "threshold"), [(0, 0.5), (1, 0.3)])
def test_instances_of_a_partition_are_those_of_transformers(seed: int, threshold: float) -> None:
    output, theirs = said("detr", seed=seed)
    expected = theirs_by("detr", "instance", theirs, threshold=threshold)
    for ours, one in zip(
        decode(output, seen_in(), RECORD, Options(subtask="instance", threshold=threshold)), expected, strict=True
    ):
        rows = sorted(one["segments_info"], key=lambda part: -part["score"])
        assert ours.indices.tolist() == [part["label_id"] for part in rows]
        assert not (ours.masks.sum(0) > 1).any()
        for mask, part in zip(ours.masks, rows, strict=True):
            np.testing.assert_array_equal(mask, one["segmentation"].numpy() == part["id"])


def test_a_tie_is_the_first_class_everywhere() -> None:
    flat = torch.full((1, 5, 9, 13), -1.0)
    flat[:, 1:4] = 1.3
    [ours] = decode(MapOutput(flat), seen_in(SIZES[:1]), RECORD)
    assert (ours.class_map == 1).all()
    masks = torch.full((1, 3, 8, 12), 4.0)
    logits = torch.zeros(1, 3, 6)
    logits[0, :, 2] = 9
    options = Options(overlap_mask_area_threshold=0.0)
    [parts] = decode(MaskOutput(logits, masks, torch.zeros(1, 3, 3)), seen_in(SIZES[:1]), RECORD, options)
    assert [(part.id, part.area) for part in parts.segments] == [(1, SIZES[0][0] * SIZES[0][1])]


@pytest.mark.parametrize("subtask", ["semantic", "instance", "panoptic"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_found_is_an_empty_answer(subtask: Any, kind: str) -> None:
    logits = torch.zeros(1, 4, 6)
    logits[..., -1] = 20
    output = MaskOutput(logits, torch.randn(1, 4, 8, 12), torch.zeros(1, 4, 3), **KINDS[kind][2])
    [ours] = decode(output, seen_in(SIZES[:1]), RECORD, Options(subtask=subtask, threshold=0.1))
    if subtask == "semantic":  # "nothing" is no answer there: the likeliest class is said all the same
        assert ours.class_map.max() < 5
    else:
        assert len(ours) == 0
        assert ours.to_dict()["objects" if subtask == "instance" else "segments"] == []
    if subtask == "panoptic":
        assert not ours.segment_map.any()


def test_what_was_cropped_away_is_of_no_class_and_what_was_added_is_left_out() -> None:
    # The input is the middle of the picture, with 8 pixels of padding on the left: cells of 4 pixels show their column.
    frame = Frame(picture=(40, 50), input=(24, 48), scale=(1.0, 1.0), offset=(8.0, -8.0))
    columns = torch.arange(12, dtype=torch.float32).expand(6, 12)
    logits = torch.stack([5.75 - columns, columns - 5.75])[None]  # from cell 5.75 on, of which the middle is at pixel 25
    [ours] = decode(MapOutput(logits), [Seen("a", frame)], Record(labels=("left", "right")))
    expected = np.full((40, 50), 255)
    expected[8:32, :40] = np.arange(40) + 8 + 0.5 > 25
    np.testing.assert_array_equal(ours.class_map, expected)
    masks = torch.full((1, 2, 6, 12), 5.0)
    chances = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 8.0, 0.0]]])
    for output in (MaskOutput(chances, masks, torch.zeros(1, 2, 3)),):
        [parts] = decode(output, [Seen("a", frame)], RECORD, Options(overlap_mask_area_threshold=0.0))
        assert [(part.area, part.box) for part in parts.segments] == [(24 * 40, (0.0, 8.0, 40.0, 32.0))]
        [objects] = decode(output, [Seen("a", frame)], RECORD, Options(subtask="instance"))
        assert objects.boxes.tolist() == [[0, 8, 40, 32]] * 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    logits = torch.zeros(1, 5, 4, 6)
    logits[0, 3, 2, 2] = bad
    with pytest.raises(UsageError, match="not finite"):
        decode(MapOutput(logits), seen_in(SIZES[:1]), RECORD)
    for place in ("logits", "masks"):
        output = MaskOutput(torch.zeros(1, 4, 6), torch.zeros(1, 4, 8, 12), torch.zeros(1, 4, 3))
        getattr(output, place).flatten()[7] = bad
        with pytest.raises(UsageError, match="not finite"):
            decode(output, seen_in(SIZES[:1]), RECORD)


def test_what_cannot_be_had_is_said() -> None:
    with pytest.raises(UsageError, match="subtask='panoptic' needs a network that draws a mask"):
        decode(MapOutput(torch.zeros(1, 5, 4, 6)), seen_in(SIZES[:1]), RECORD, Options(subtask="panoptic"))
    encoder = EncoderOutput(torch.zeros(1, 4, 3), (2, 2), 0, torch.zeros(1, 3), None, ())
    with pytest.raises(UsageError, match="gave a EncoderOutput"):
        decode(encoder, seen_in(SIZES[:1]), RECORD)
    with pytest.raises(UnknownNameError, match=r"class 'skye'\. Did you mean 'sky'"):
        decode(said("detr")[0], seen_in(), RECORD, Options(fused=("skye",)))
    maps = MapOutput(torch.zeros(1, 5, 4, 6))
    for subtask in ("semantic", "instance", "panoptic", None):
        for output, seen in ((said("detr")[0], seen_in()), (maps, seen_in(SIZES[:1]))):
            if output is maps and subtask in ("instance", "panoptic"):
                continue
            with pytest.raises(UnknownNameError, match=r"class 'rode'\. Did you mean 'road'"):
                decode(output, seen, RECORD, Options(subtask=subtask, fused=("rode",)))
            with pytest.raises(UsageError, match="numbers from 0 to 4; 7 came"):
                decode(output, seen, RECORD, Options(subtask=subtask, fused=(7,)))


@pytest.mark.usefixtures("unchecked")
def test_options_are_checked() -> None:
    with pytest.raises(UnknownNameError, match=r"^Unknown subtask 'panoptics'\. Did you mean 'panoptic'"):
        Options(subtask="panoptics")  # type: ignore[arg-type]
    for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
        for value in (-0.1, 1.5, float("nan"), True, "0.5"):
            with pytest.raises(UsageError, match=name):
                Options(**{name: value})


def test_many_classes_have_a_number_for_nothing_of_their_own() -> None:
    frame = Frame(picture=(8, 8), input=(4, 8))
    logits = torch.randn(1, 300, 4, 8)
    [ours] = decode(MapOutput(logits), [Seen("a", frame)], Record())
    assert ours.ignore == 65535
    assert (ours.class_map[4:] == 65535).all()
    np.testing.assert_array_equal(ours.class_map[:4], logits[0].argmax(0).numpy())


def test_half_precision_is_read_as_well() -> None:
    logits = torch.randn(1, 5, 6, 7).bfloat16()
    [ours] = decode(MapOutput(logits), seen_in(SIZES[:1]), RECORD)
    expected = F.interpolate(logits.float(), SIZES[0], mode="bilinear")[0].argmax(0)
    np.testing.assert_array_equal(ours.class_map, expected.numpy())
