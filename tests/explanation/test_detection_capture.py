"""What is captured of detectors against transformers' own maps, and sampled places against a plain look-up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from tests.models.detection.harness import filled_up
from tests.models.harness import stirred
from tests.parity import test_deformable_detr, test_detr, test_rtdetr, test_yolos
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.load import load_model
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import capture
from vitral.explanation.sampling import Samples, capture_samples, sampling_layers
from vitral.layers.deformable import WeightedSamples
from vitral.models.catalogue import create_model

hf: Any = transformers


def published(network: Any, folder: Path) -> Any:
    network.save_pretrained(folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    config = hf.DetrConfig(**test_detr.SMALL, use_timm_backbone=False, backbone_config=hf.ResNetConfig(**test_detr.OWN))
    config._attn_implementation = "eager"
    theirs = stirred(hf.DetrForObjectDetection(config))
    return theirs, published(theirs, tmp_path_factory.mktemp("detr"))


def of(names: Any, kind: str) -> list[str]:
    return [name for name in names if kind in name]


@torch.no_grad()
def test_maps_of_detr_are_transformers(detr: tuple[Any, Any]) -> None:
    theirs, ours = detr
    pixels, mask = filled_up([pictures(75, 99)[0], pictures(61, 130)[0]], (75, 130))
    before = ours(pixels, mask).logits
    with capture(ours) as maps:
        after = ours(pixels, mask).logits
    assert torch.equal(before, after)
    expected = theirs(pixels, pixel_mask=(~mask).long(), output_attentions=True)
    groups = {
        "encoder": expected.encoder_attentions,
        ".attention": expected.decoder_attentions,
        "cross": expected.cross_attentions,
    }
    inside = [name for name in maps.layers if name.startswith("decoder")]
    names = {"encoder": of(maps.layers, "encoder"), ".attention": of(inside, ".attention"), "cross": of(inside, "cross")}
    for kind, told in groups.items():
        assert len(told) == len(names[kind]) == (2 if kind == "encoder" else 3)
        for name, one in zip(names[kind], told, strict=True):
            assert_same(maps[name], one, 1e-5)
            assert (maps[name].sum(-1) - 1).abs().max() < 1e-5


@torch.no_grad()
def test_what_fills_a_picture_up_is_never_looked_at(detr: tuple[Any, Any]) -> None:
    ours, stride = detr[1], 8
    assert ours.config.stride == stride
    # What is beyond the edge is zero, and as far as windows reach it is there in both batches.
    small = pictures(2 * stride, 3 * stride)[0]
    found = []
    for rows, columns in ((10, 11), (12, 16)):
        pixels, mask = filled_up([small, pictures(rows * stride, columns * stride)[0]], (rows * stride, columns * stride))
        with capture(ours) as maps:
            ours(pixels, mask)
        inside = torch.zeros(rows, columns, dtype=torch.bool)
        inside[:2, :3] = True
        for name in (*of(maps.layers, "encoder"), *of(maps.layers, "cross")):
            assert (maps[name][0][..., ~inside.flatten()] == 0).all()
            assert (maps[name][0].sum(-1) - 1).abs().max() < 1e-5
            assert (maps[name][1] > 0).all()
        cross = [maps[name][0][..., inside.flatten()] for name in of(maps.layers, "cross")]
        among = [maps[name][0][:, inside.flatten()][..., inside.flatten()] for name in of(maps.layers, "encoder")]
        found.append([*among, *cross])
    for less, more in zip(*found, strict=True):
        assert_same(less, more, 1e-5)


@torch.no_grad()
def test_maps_of_yolos_are_transformers(tmp_path: Path) -> None:
    config = hf.YolosConfig(**test_yolos.SMALL)
    config._attn_implementation = "eager"
    theirs: Any = stirred(hf.YolosForObjectDetection(config))
    ours = published(theirs, tmp_path)
    pixels = pictures(64, 80, 2)
    with capture(ours) as maps:
        ours(pixels)
    expected = theirs(pixels, output_attentions=True).attentions
    assert len(expected) == len(maps) == 3
    order = [0, *range(21, 27), *range(1, 21)]  # theirs has the detection tokens behind the patches
    for one, their in zip(maps, expected, strict=True):
        assert_same(one, their[:, :, order][..., order], 1e-5)
    assert maps.grid(-1) == (4, 5)
    assert maps.prefix(-1) == 1 + 6


@contextmanager
def their_places(network: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Sampling locations and weights that transformers' layers hand to their look-up."""
    found: list[tuple[Tensor, Tensor]] = []
    known = ("MultiScaleDeformableAttention", "RTDetrMultiscaleDeformableAttention")
    handles = []

    def see(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [one for one in (*inputs, *named.values()) if isinstance(one, Tensor) and one.ndim in (5, 6)]
        found.append(tuple(sorted(given, key=lambda one: -one.ndim)))  # type: ignore[arg-type]

    for module in network.modules():
        if type(module).__name__ in known and not any(True for _ in module.children()):
            handles.append(module.register_forward_pre_hook(see, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["four maps", "two stages"])
def test_places_of_deformable_detr_are_transformers(kind: str, tmp_path: Path) -> None:
    theirs = test_deformable_detr.peer(**test_deformable_detr.CASES[kind])
    ours = published(theirs, tmp_path)
    theirs.set_attn_implementation("eager")
    pixels, mask = filled_up([pictures(75, 99)[0], pictures(64, 130)[0]], (75, 130))
    with capture_samples(ours) as found, capture(ours) as maps:
        ours(pixels, mask)
    with their_places(theirs) as places:
        expected = theirs(pixels, pixel_mask=(~mask).long(), output_attentions=True)
    assert found.layers == sampling_layers(ours)
    assert len(places) == len(found) == 5
    # What cells that only fill a picture up ask for, nobody is told.
    present = ours.encode(pixels, mask).present
    for name, one, (locations, weights) in zip(found.layers, found, places, strict=True):
        seen = present if "encoder" in name else torch.ones(locations.shape[:2], dtype=torch.bool)
        assert_same(one.locations[seen], locations[seen], 1e-5)
        assert_same(one.weights[seen], weights[seen], 1e-5)
        assert (one.weights.sum((-1, -2)) - 1).abs().max() < 1e-5
    for name, weights in zip(of(found.layers, "cross"), expected.cross_attentions, strict=True):
        assert_same(found[name].weights, weights, 1e-5)
    for name, weights in zip(maps.layers, expected.decoder_attentions, strict=True):
        assert_same(maps[name], weights, 1e-5)


@torch.no_grad()
def test_places_of_rtdetr_are_transformers(tmp_path: Path) -> None:
    theirs = test_rtdetr.peer("basic, half as wide inside")
    ours = published(theirs, tmp_path)
    pixels = pictures(64, 96, 2)
    with capture_samples(ours) as found, capture(ours) as maps:
        ours(pixels)
    with their_places(theirs) as places:
        expected = theirs(pixels, output_attentions=True)
    assert found.layers == ("decoder.0.cross_attention", "decoder.1.cross_attention")
    for one, weights in zip(found, expected.cross_attentions, strict=True):
        assert one.grids == ((8, 12), (4, 6), (2, 3))
        assert_same(one.weights.flatten(3), weights.flatten(3), 1e-5)
    for one, (locations, _) in zip(found, places, strict=True):
        assert_same(one.locations.flatten(3, 4), locations.flatten(3, -2), 1e-4)
    assert_same(maps["encoder.blocks.0.attention"], expected.encoder_attentions[0], 1e-5)
    for name, weights in zip(of(maps.layers, "decoder"), expected.decoder_attentions, strict=True):
        assert_same(maps[name], weights, 1e-5)


@pytest.mark.parametrize("sampling", ["bilinear", "discrete"])
def test_what_cells_count_is_what_is_looked_up(sampling: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    grids = ((3, 5), (2, 3))
    locations = torch.rand(2, 4, 3, 2, 6, 2, generator=generator) * 1.4 - 0.2  # some beyond the edges
    weights = torch.rand(2, 4, 3, 2, 6, generator=generator).flatten(3).softmax(-1).unflatten(3, (2, 6))
    values = torch.randn(2, 21, 3, 7, generator=generator)
    counts = torch.cat(Samples(locations, weights, grids, WeightedSamples(sampling)).on_cells(), -1)
    assert counts.shape == (2, 4, 3, 21)
    expected = torch.zeros(2, 4, 3, 7)
    for level, (start, (rows, columns)) in enumerate(zip((0, 15), grids, strict=True)):
        laid = values[:, start : start + rows * columns].permute(0, 2, 3, 1).reshape(6, 7, rows, columns)
        places = locations[:, :, :, level].permute(0, 2, 1, 3, 4).reshape(6, 4, 6, 2)
        if sampling == "bilinear":
            looked = F.grid_sample(laid, 2 * places - 1, align_corners=False)
        else:
            x, y = (places * torch.tensor([columns, rows]) + 0.5).floor().long().unbind(-1)
            x, y = x.clamp(0, columns - 1), y.clamp(0, rows - 1)
            looked = torch.stack([laid[one][:, y[one], x[one]] for one in range(6)])
        looked = looked.unflatten(0, (2, 3))  # b h k n p
        expected += torch.einsum("bhknp,bnhp->bnhk", looked, weights[:, :, :, level])
    assert_same(torch.einsum("bnhm,bmhk->bnhk", counts, values), expected, 1e-5)
    if sampling == "discrete":
        assert (counts.sum(-1) - 1).abs().max() < 1e-5
    few = Samples(locations, weights, grids, WeightedSamples(sampling)).of([3, 1], 1).on_cells()
    assert_same(torch.cat(few, -1), counts[1:, [3, 1]], 1e-6)


def test_nothing_is_left_behind_and_mistakes_are_told() -> None:
    model = create_model("rtdetr_r18", num_classes=3, width=32, heads=4, hidden=16, queries=5, decoder_depth=1).eval()
    with pytest.raises(RuntimeError, match="meanwhile"), capture_samples(model) as found:
        raise RuntimeError("meanwhile")
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(UsageError, match=r"Nothing passed decoder\.0\.cross_attention"):
        _ = found["decoder.0.cross_attention"]
    with (
        pytest.raises(UnknownNameError, match=r"decoder\.0\.cross_attention"),
        capture_samples(model, "decoder.0.cross_attentio"),
    ):
        pass
    with pytest.raises(UsageError, match="no deformable attention"), capture_samples(torch.nn.Linear(1, 1)):
        pass
