"""Training segmenters: against a loop written by hand, in parts, interrupted, and on pixels they can learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.data.segmented import label_file, pairs, photo
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.data.loader import Order
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.segments import read_segments
from vitral.data.synthetic import SegmentedScenes, SyntheticScenes
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import CATALOGUE, create_model
from vitral.models.network import backbone_of
from vitral.recipes.segmentation import ade20k_segformer, camvid, finetune_segmenter, synthetic_panoptic
from vitral.tasks.detection.loss import SetLoss
from vitral.tasks.detection.matching import Costs
from vitral.tasks.segmentation.loss import DETR_MASK_LOSS, MASK2FORMER_LOSS, MASKFORMER_LOSS, MapLoss, MaskLoss
from vitral.training.checkpoint import Checkpoints
from vitral.training.detection import DetectionSubject
from vitral.training.evaluate_objects import check_fits_objects
from vitral.training.journal import read
from vitral.training.loop import Epoch, Step, Trained, fit
from vitral.training.optim import parameter_groups
from vitral.training.recipe import Recipe
from vitral.training.segmentation import (
    KnownSegments,
    SegmentationSubject,
    read_segmented,
    segmented_split,
    usual_segment_loss,
)
from vitral.training.start import model_for

THINGS = SyntheticScenes(
    count=8, size=(32, 32), shapes=("disc", "square"), number=(1, 2), scale=(0.4, 0.7), clutter=0, with_masks=True
)
SCENES = SegmentedScenes(scenes=THINGS)
OTHERS = SegmentedScenes(scenes=replace(THINGS, count=3, seed=1, name="others"))
STILL = ObjectAugmentation(resize="exact", flip=0.0)

# Networks that drop nothing and keep their norms: a batch is the sum of its pictures.
MAP = replace(
    camvid(quick=True),
    name="map",
    network={**camvid(quick=True).network, "backbone.depth": 1, "decoder_depth": 1, "decoder_dropout": 0.0},
    image_size=(32, 32),
    epochs=1.0,
    batch_size=4,
    schedule="constant",
    warmup_epochs=0,
    clip=None,
    ema=None,
    objective=MapLoss(),
    augment=STILL,
)
MASKS = replace(
    synthetic_panoptic(quick=True),
    name="masks",
    network={**synthetic_panoptic(quick=True).network, "backbone.norm": "frozen", "decoder_depth": 2, "queries": 6},
    image_size=(32, 32),
    epochs=1.0,
    batch_size=4,
    schedule="constant",
    warmup_epochs=0,
    clip=None,
    ema=None,
    augment=STILL,
    objective=replace(MASK2FORMER_LOSS, points=None, costs=replace(MASK2FORMER_LOSS.costs, points=None)),
)
BOTH = pytest.mark.parametrize("recipe", [MAP, MASKS], ids=["map", "masks"])


def kind_of(recipe: Recipe) -> Any:
    return recipe.segments or "semantic"


def run(recipe: Recipe, segments: Any = SCENES, *, judging: Any = None, **options: Any) -> Trained:
    subject = SegmentationSubject(segments, kind_of(recipe), recipe, judging)
    return fit(model_for(recipe, tuple(segments.classes)), subject, recipe, **options)


def told_by(recipe: Recipe, segments: Any = SCENES, **options: Any) -> list[Step]:
    told: list[Any] = []
    run(recipe, segments, watch=told.append, **options)
    return [event for event in told if isinstance(event, Step)]


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


class Holed:
    """Scenes of which some pixels are not known, the more the later a picture comes; they say so by any number."""

    def __init__(self, ignore: int = 255, *, sizes: Sequence[tuple[int, int]] = ()) -> None:
        self.ignore, self.name, self.classes, self.sizes = ignore, "holed", SCENES.classes, sizes

    @property
    def names(self) -> tuple[str, ...]:
        return SCENES.names

    def __len__(self) -> int:
        return len(SCENES)

    def where(self, index: int) -> str:
        return SCENES.where(index)

    def size_of(self, index: int) -> None:
        return None

    def read(self, index: int, *, at_least: Any = None) -> Any:
        found = SCENES.read(index)
        if self.sizes:
            width, height = self.sizes[index % len(self.sizes)]
            found = replace(found, image=found.image.crop((0, 0, width, height)), size=(height, width))
        return found

    def class_map(self, index: int) -> np.ndarray:
        found = SCENES.class_map(index).astype(np.int32)
        found[: 3 * index] = self.ignore
        if self.sizes:
            width, height = self.sizes[index % len(self.sizes)]
            found = found[:height, :width]
        return found


# -- the steps ----------------------------------------------------------------------------------------------------------


def test_it_is_the_loop_one_would_write() -> None:
    """Cross-entropy of torch over a segmenter's map, pixels of which nothing is known left out."""
    recipe = replace(MAP, optimizer="sgd", learning_rate=1e-2, momentum=0.0, weight_decay=0.0)
    holed: Any = Holed(ignore=77)
    model: Any = model_for(recipe, SCENES.classes)
    descent = torch.optim.SGD(model.parameters(), lr=1e-2)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (recipe.mean, recipe.std))
    order, losses = Order(count=8, seed=0), []
    for step in range(2):
        places = [order[position].picture for position in range(4 * step, 4 * step + 4)]
        images = [torch.from_numpy(np.array(SCENES.read(place).image)).permute(2, 0, 1) / 255 for place in places]
        truth = torch.stack([torch.from_numpy(holed.class_map(place)).long() for place in places])
        logits = model(torch.stack([(one - mean) / std for one in images])).logits
        logits = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, truth, ignore_index=77)
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert [step.loss for step in told_by(recipe, holed)] == pytest.approx(losses, rel=1e-5)
    assert (weights(run(recipe, holed).model) - weights(model)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("recipe", "segments"),
    [
        (replace(MAP, objective=MapLoss(dice=0.5, lovasz=0.5, class_weights=(1.0, 2, 1, 1, 3, 1, 1, 0.5))), Holed()),
        (MASKS, SCENES),
    ],
    ids=["map", "masks"],
)
def test_a_batch_in_parts_is_a_batch(recipe: Recipe, segments: Any) -> None:
    """Though of its pieces different numbers of pixels are known, or they show different numbers of segments."""
    recipe = replace(recipe, optimizer="sgd", learning_rate=1e-2)
    whole, parts = told_by(recipe, segments), told_by(replace(recipe, accumulate=2), segments)
    assert len(whole) == 2
    for one, other in zip(whole, parts, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.norm == pytest.approx(one.norm, rel=1e-3)
        assert other.parts == pytest.approx(one.parts, rel=1e-4, abs=1e-6)


def test_the_parts_of_the_loss_are_the_loss() -> None:
    both = replace(MAP, objective=MapLoss(focal=1.0, lovasz=0.5), epochs=0.5)
    for recipe, names in (
        (both, {"cross_entropy", "focal", "lovasz", "beside"}),
        (replace(MASKS, epochs=0.5), {"class", "mask", "dice", "beside"}),
    ):
        for step in told_by(recipe):
            assert step.parts.keys() == names
            assert sum(step.parts.values()) == pytest.approx(step.loss, rel=1e-5)
            assert all(value > 0 for name, value in step.parts.items() if name != "beside")
            assert step.parts["beside"] == pytest.approx(0, abs=1e-5) if recipe is both else step.parts["beside"] > 0


@BOTH
def test_it_learns_what_scenes_show(recipe: Recipe) -> None:
    steps = told_by(replace(recipe, epochs=12.0, batch_size=8, learning_rate=5e-3))
    losses = [step.loss for step in steps]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_what_is_not_known_has_any_number() -> None:
    losses = [[step.loss for step in told_by(MAP, Holed(ignore))] for ignore in (255, -1, 200)]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0] != [step.loss for step in told_by(MAP)]


def test_what_fills_a_batch_up_is_not_learned() -> None:
    """Pictures of two sizes: labelled are the pixels of their own."""
    recipe = replace(MAP, augment=ObjectAugmentation(resize="shortest", sides=(32,), longest=64, flip=0.0))
    holed: Any = Holed(-1, sizes=((32, 32), (16, 32)))
    subject = SegmentationSubject(holed, "semantic", recipe)
    model: Any = model_for(recipe, SCENES.classes)
    from vitral.data.loader import Share

    for [batch] in subject.batches(model, Share(batch_size=8), steps=range(1), workers=0, pin_memory=False):
        assert batch.class_map is not None
        assert batch.mask is not None
        assert (batch.class_map[batch.mask] == -1).all()
        assert subject.amounts(batch) == (float((batch.class_map >= 0).sum()), 8.0)
        assert subject.amounts(batch)[0] < float((~batch.mask).sum())
    assert all(np.isfinite(step.loss) for step in told_by(recipe, holed))


# -- what is taught and judged ------------------------------------------------------------------------------------------


def test_masks_teach_classes_of_pixels_too(tmp_path: Path) -> None:
    """Of a set that is read as classes, a network of masks learns a mask for each class."""
    recipe = replace(MASKS, segments="semantic", epochs=0.5)
    told: list[Any] = []
    trained = run(recipe, judging=OTHERS, out=tmp_path / "run", watch=told.append)
    assert trained.evaluation.measure == "miou"
    [epoch] = [one for one in told if isinstance(one, Epoch)]
    assert epoch.line is not None
    assert epoch.line.startswith("mIoU ")
    subject = SegmentationSubject(SCENES, "semantic", recipe)
    assert subject._input_of(trained.model).targets == "classes"
    record = load_model(tmp_path / "run/best").record
    assert record.labels == SCENES.classes
    assert record.training is not None
    assert (record.training.miou, record.training.ap) == (trained.evaluation.value, None)


@pytest.mark.parametrize(("kind", "measure"), [("instance", "ap"), ("panoptic", "pq")])
def test_what_is_found_is_judged_and_told(kind: Any, measure: str, tmp_path: Path) -> None:
    sets = (SCENES, OTHERS) if kind == "panoptic" else (THINGS, OTHERS.scenes)
    recipe = replace(MASKS, segments=kind, epochs=1.0)
    trained = run(recipe, sets[0], judging=sets[1], out=tmp_path / "run")
    rows = [row for row in read(tmp_path / "run/journal.jsonl") if row["event"] == "epoch"]
    assert rows[-1]["held_out"][measure] == trained.evaluation.value
    assert getattr(load_model(tmp_path / "run/last").record.training, measure) == trained.evaluation.value
    best = Checkpoints(tmp_path / "run").best()
    assert best is not None
    assert best.value == max(row["held_out"][measure] for row in rows)


def test_a_map_is_taught_classes_whatever_else_is_known() -> None:
    assert SegmentationSubject(SCENES, "panoptic", MAP).taught == "semantic"
    assert SegmentationSubject(SCENES, "panoptic", MASKS).taught == "panoptic"


# -- interrupted --------------------------------------------------------------------------------------------------------


class PulledError(Exception):
    """The plug."""


@BOTH
def test_three_steps_are_two_and_the_rest(recipe: Recipe, tmp_path: Path) -> None:
    objective = recipe.objective
    if isinstance(objective, MaskLoss):  # points are drawn as they would have been
        objective = replace(objective, points=64, costs=replace(objective.costs, points=64))
    recipe = replace(
        recipe, epochs=1.5, ema=0.9, save_every=0.5, objective=objective, augment=replace(STILL, flip=0.5, brightness=0.2)
    )
    once = run(recipe, out=tmp_path / "once")

    def watch(event: Step | Epoch) -> None:
        if isinstance(event, Step) and event.step == 2:
            raise PulledError

    with pytest.raises(PulledError):
        run(recipe, out=tmp_path / "twice", watch=watch)
    assert Checkpoints(tmp_path / "twice").steps()[-1] < 3
    again = run(recipe, out=tmp_path / "twice")
    assert once.steps == again.steps == 3
    assert torch.equal(weights(once.model), weights(again.model))


def test_other_pictures_are_another_training(tmp_path: Path) -> None:
    run(replace(MAP, epochs=0.5), out=tmp_path / "run")
    with pytest.raises(UsageError, match="holds a training on other pictures"):
        run(replace(MAP, epochs=0.5), SegmentedScenes(scenes=replace(THINGS, seed=3)), out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"dice 0.0, now 1.0"):
        run(replace(MAP, epochs=0.5, objective=MapLoss(dice=1.0)), out=tmp_path / "run")


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def refused(
    recipe: Recipe, segments: Any, sentence: str, *, model: Any = None, kind: Any = None, judging: Any = None
) -> None:
    """Before the first step, and in one sentence."""

    def begin() -> None:
        subject = SegmentationSubject(segments, kind or kind_of(recipe), recipe, judging)
        subject.check(model_for(recipe, tuple(segments.classes)) if model is None else model)

    with pytest.raises(UsageError, match=sentence):
        begin()


def test_what_cannot_be_trained_is_refused_at_once() -> None:
    classifier = create_model("vit_ti16", image_size=(32, 32), width=16, depth=1, heads=2, mlp_width=16, num_classes=8)
    bare: Any = model_for(MAP, SCENES.classes)
    bare.record = replace(bare.record, preprocessing=None)
    masks = model_for(MASKS, SCENES.classes)
    refused(MAP, SCENES, "A ViT says nothing of pixels, which the pictures of scenes are to teach", model=classifier)
    tiny = create_model("vit_ti16", image_size=(32, 32), num_classes=8)
    refused(replace(MAP, model="run/best"), SCENES, "--model segmenter_vit_ti16_mask --backbone run/best", model=tiny)
    refused(MAP, SCENES, r"Take a segmenter, such as segformer_b0 \(see", model=classifier)  # none is as narrow
    refused(MAP, SCENES, "A Mask2Former is taught by a MaskLoss; a MapLoss came", model=masks)
    refused(MASKS, SCENES, "A Segmenter is taught by a MapLoss; a MaskLoss came", model=model_for(MAP, SCENES.classes))
    refused(MAP, SCENES, "The model has 2 classes, scenes has 8", model=model_for(MAP, ("one", "other")))
    refused(MAP, SCENES, "Nobody said how pictures are prepared", model=bare)
    refused(Recipe(), SCENES, "is for classification, not for segmentation")
    refused(MAP, THINGS, "scenes knows objects, and not the class of every pixel, which a MapLoss teaches")
    other = SegmentedScenes(scenes=replace(THINGS, shapes=("disc", "star")))
    refused(MAP, SCENES, "do not fit", judging=other)
    refused(replace(MASKS, segments="semantic"), THINGS, "not the class of every pixel")


def test_boxes_alone_teach_no_masks() -> None:
    """What a source says first may be objects; the way to their pixels is told."""
    model = model_for(MASKS, SCENES.classes)
    recipe = Recipe(task="detection", objective=SetLoss(), augment=STILL)
    with pytest.raises(UsageError, match=r"A Mask2Former finds no objects, .* teach it their pixels: --task segmentation"):
        DetectionSubject(SCENES, recipe).check(model)
    with pytest.raises(UsageError, match=r"cannot be judged as a detector\. Judge its masks: --segments instance"):
        check_fits_objects(model, SCENES)


def test_what_the_loss_would_refuse_is_refused_before() -> None:
    refused(replace(MAP, objective=MapLoss(class_weights=(1.0, 2.0))), SCENES, "class_weights has 2 numbers; scenes has 8")
    batch = MapLoss(lovasz=1.0, lovasz_over="batch")
    refused(replace(MAP, objective=batch, accumulate=2), SCENES, "IoU over a batch cannot be had from its pieces")
    SegmentationSubject(SCENES, "semantic", replace(MAP, objective=batch)).check(model_for(MAP, SCENES.classes))
    refused(replace(MASKS, objective=DETR_MASK_LOSS), SCENES, "A Mask2Former says no boxes")
    refused(replace(MASKS, objective=MaskLoss(costs=Costs())), SCENES, "A Mask2Former says no boxes")
    refused(replace(MAP, objective=MapLoss(ignore=3)), SCENES, "hold 255 where nothing is known; the recipe says ignore 3")


def test_a_backbone_begins_with_that_of_another_segmenter(tmp_path: Path) -> None:
    """A whole network may be given: its backbone is taken, wherever it lies in it."""
    fields = {"backbone.block": "basic", "backbone.stem_width": 8, "backbone.stage_channels": (8, 8, 16, 16)}
    fields |= {"backbone.depths": (1, 1, 1, 1)}
    maps = model_for(
        replace(MAP, model="semantic_fpn_r50", network=fields | {"pyramid_width": 8, "width": 8, "groups": 4}),
        SCENES.classes,
    )
    save_model(maps, tmp_path / "maps")
    masks = {"width": 16, "mask_width": 16, "heads": 2, "mlp_width": 16, "encoder_depth": 1, "encoder_mlp_width": 16}
    recipe = replace(MASKS, model="mask2former_r50", network=fields | masks, seed=1)
    own: Any = model_for(recipe, SCENES.classes)
    begun: Any = model_for(replace(recipe, backbone=str(tmp_path / "maps")), SCENES.classes)
    learned = maps.get_submodule("trunk.network").state_dict()
    assert len(learned) > 50
    for name, tensor in begun.trunk.network.state_dict().items():
        assert torch.equal(tensor, learned[name]), name
    assert not torch.equal(next(own.trunk.parameters()), next(begun.trunk.parameters()))
    assert torch.equal(own.queries.weight, begun.queries.weight)


def test_every_kind_of_network_has_a_usual_loss() -> None:
    losses = {
        name: usual_segment_loss(CATALOGUE[name].build)
        for name in ("segformer_b0", "unet", "mask2former_r50", "maskformer_r50", "detr_r50_panoptic")
        if name in CATALOGUE
    }
    assert len(losses) >= 4
    assert losses.pop("segformer_b0") == losses.pop("unet") == MapLoss()
    assert losses.pop("mask2former_r50") == MASK2FORMER_LOSS
    others = [
        (MASKFORMER_LOSS if name.startswith("maskformer") else DETR_MASK_LOSS) == loss for name, loss in losses.items()
    ]
    assert all(others)


def test_a_network_of_maps_with_norms_learns_too() -> None:
    """SegFormer with all that it drops, by its recipe's augmentation."""
    recipe = replace(ade20k_segformer(quick=True), image_size=(32, 32), batch_size=4, epochs=0.5)
    assert np.isfinite([step.loss for step in told_by(recipe)]).all()


# -- the sets -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures to learn from and two to test by, of two classes."""
    root = tmp_path_factory.mktemp("sets") / "streets"
    maps = {f"train/{place}": np.array([[0, 1], [1, 1]]).repeat(6, 0).repeat(8, 1) for place in range(5)}
    maps |= {f"test/{place}": np.array([[1, 0], [1, 1]]).repeat(6, 0).repeat(8, 1) for place in range(2)}
    return pairs(root, maps)


def test_what_judges_is_said_or_found(folder: Path, tmp_path: Path) -> None:
    found = read_segmented(folder)
    assert found.held_out is not None
    assert (len(found.train), len(found.held_out), found.kind) == (5, 2, "semantic")
    assert found.assumes
    apart = read_segmented(folder, 0.4)
    assert apart.held_out is not None
    names = [set(one.names) for one in (apart.train, apart.held_out)]  # type: ignore[union-attr]
    assert [len(one) for one in names] == [3, 2]
    assert names[0] | names[1] == set(found.train.names)  # type: ignore[union-attr]
    other = read_segmented(folder, str(folder))
    assert other.held_out is not None
    assert len(other.held_out) == 2
    for number in range(2):
        photo(tmp_path / f"more/images/{number}.jpg")
        label_file(tmp_path / f"more/labels/{number}.png", np.array([[0, 1], [2, 3]]).repeat(6, 0).repeat(8, 1))
    with pytest.raises(UsageError, match="classes"):
        read_segmented(folder, str(tmp_path / "more"))
    with pytest.raises(UsageError, match="must lie between 0 and 1"):
        read_segmented(folder, 1.5)
    with pytest.raises(UsageError, match="has a split val with 200 pictures"):
        read_segmented("scenes", 0.5)
    assert read_segmented("scenes", kind="panoptic").kind == "panoptic"


def test_one_split_is_asked_for_by_name(folder: Path) -> None:
    found, kind = segmented_split(folder, "test")
    assert (len(found), kind) == (2, "semantic")
    assert len(segmented_split("scenes", "val", kind="instance")[0]) == 200
    with pytest.raises(UsageError, match=r"has the splits train, test\. Say which"):
        segmented_split(folder)
    with pytest.raises(UsageError, match="has no split val; it has train, test"):
        segmented_split(folder, "valid")
    with pytest.raises(UnknownNameError, match="Unknown split 'tset'"):
        segmented_split(folder, "tset")


def test_a_set_is_known_again(folder: Path) -> None:
    train: Any = read_segments(folder).train
    known = KnownSegments(train)
    assert known.fingerprint == KnownSegments(read_segmented(folder).train).fingerprint
    assert (known.name, len(known)) == (train.name, 5)
    prints = {known.fingerprint, KnownSegments(train.subset(range(4))).fingerprint}
    prints |= {KnownSegments(one).fingerprint for one in (SCENES, OTHERS, THINGS, replace(THINGS, seed=5))}
    assert len(prints) == 6


def test_what_label_files_mean_is_part_of_a_set(tmp_path: Path) -> None:
    """A training goes on with the same label files, meaning the same."""
    root = pairs(tmp_path / "set", {name: np.array([[0, 1], [1, 2]]).repeat(6, 0).repeat(8, 1) for name in "ab"})
    for name in "ab":
        label_file(root / "masks" / f"{name}.png", np.array([[0, 1], [1, 2]]).repeat(6, 0).repeat(8, 1))
    meanings: tuple[dict[str, Any], ...] = (
        {"labels": "labels"}, {"labels": "masks"}, {"labels": "masks", "void": (2,)}, {"labels": "masks", "offset": 1},
        {"labels": "masks", "kind": "instance"}, {"labels": "masks", "kind": "instance", "void": (2,)},
    )  # fmt: skip
    sets = [read_segmented(root, **meaning).train for meaning in meanings]
    assert len({KnownSegments(one).fingerprint for one in sets}) == len(sets)
    other = read_segmented(root, str(root), labels="masks", offset=1)
    assert other.held_out is not None
    assert len(other.held_out.classes) == 2
    assert segmented_split(root, labels="masks", offset=1)[0].classes == other.classes


@pytest.mark.parametrize("name", ["maskformer_r50", "semantic_fpn_r50", "detr_r50_panoptic"])
def test_a_backbone_within_a_trunk_begins_with_what_it_learned_and_moves_by_its_own_rate(name: str, tmp_path: Path) -> None:
    narrow = {"block": "basic", "stem_width": 8, "stage_channels": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
    learned = create_model("resnet18", num_classes=5, image_size=(64, 64), **narrow, norm="frozen")
    save_model(learned, tmp_path / "resnet")
    backbone = {f"backbone.{field}": value for field, value in {**narrow, "norm": "frozen"}.items()}
    small = {"width": 16} if name.startswith("detr") else {}
    recipe = replace(
        finetune_segmenter(), model=name, network=backbone | small, backbone=str(tmp_path / "resnet"), backbone_rate=0.1,
        objective=usual_segment_loss(CATALOGUE[name].build),
    )  # fmt: skip
    model = model_for(recipe, SCENES.classes)
    found = backbone_of(model)
    assert found is not None
    own, came = found[1].state_dict(), learned.state_dict()
    assert len(own) > 10
    assert all(torch.equal(tensor, came[key]) for key, tensor in own.items())
    scales = {id(p): group["lr_scale"] for group in parameter_groups(model, 0.1, backbone_rate=0.1) for p in group["params"]}
    assert {scales[id(p)] for p in found[1].parameters()} == {0.1}
    inside = {id(p) for p in found[1].parameters()}
    assert {scale for key, scale in scales.items() if key not in inside} == {1.0}
