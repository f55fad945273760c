"""Training detectors: against a loop written by hand, in parts, interrupted, and on objects it can learn."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.annotated import Remembered, boxed
from vitral.base.boxes import Objects
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.data.loader import Order
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.objects import ListedObjects, read_objects, write_objects
from vitral.data.synthetic import SyntheticScenes
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import create_model
from vitral.recipes.detection import detr_coco, rtdetr_coco
from vitral.tasks.detection.loss import SetLoss
from vitral.training.checkpoint import Checkpoints
from vitral.training.detection import DetectionSubject, KnownObjects, annotated_split, read_annotated, usual_object_loss
from vitral.training.journal import read
from vitral.training.learner import Learner
from vitral.training.loop import Epoch, Step, Trained, fit
from vitral.training.recipe import Recipe
from vitral.training.start import model_for

STILL = ObjectAugmentation(resize="exact", flip=0.0)
SCENES = SyntheticScenes(count=16, size=(64, 64), number=(0, 3), shapes=("disc", "square", "cross"), scale=(0.3, 0.6))
OTHERS = replace(SCENES, count=6, seed=1, name="others")

# A DETR whose backbone keeps its norms and which drops nothing: a batch is the sum of its pictures.
PLAIN = replace(
    detr_coco(quick=True),
    name="plain",
    network={**detr_coco(quick=True).network, "backbone.norm": "frozen", "dropout": 0.0},
    epochs=1.5,
    batch_size=8,
    schedule="constant",
    drop_epochs=None,
    warmup_epochs=0,
    clip=None,
    augment=STILL,
)

EVERYTHING = replace(
    rtdetr_coco(quick=True),
    name="everything",
    epochs=5 * 4 / 16,
    batch_size=4,
    accumulate=2,
    ema=0.9,
    backbone_rate=0.5,
    save_every=2 * 4 / 16,
    evaluate_every=0.6,
)


def run(recipe: Recipe, objects: Any = SCENES, *, judging: Any = None, **options: Any) -> Trained:
    return fit(model_for(recipe, tuple(objects.classes)), DetectionSubject(objects, recipe, judging), recipe, **options)


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def told_by(recipe: Recipe, **options: Any) -> list[Step]:
    told: list[Any] = []
    run(recipe, watch=told.append, **options)
    return [event for event in told if isinstance(event, Step)]


# -- the steps ----------------------------------------------------------------------------------------------------------


def test_it_is_the_loop_one_would_write() -> None:
    recipe = replace(PLAIN, optimizer="sgd", learning_rate=1e-2, momentum=0.0, weight_decay=0.0)
    model: Any = model_for(recipe, SCENES.classes)
    descent = torch.optim.SGD(model.parameters(), lr=1e-2)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (recipe.mean, recipe.std))
    order, losses = Order(count=len(SCENES), seed=0), []
    for step in range(3):
        places = [order[position].picture for position in range(8 * step, 8 * step + 8)]
        pixels, targets = [], []
        for place in places:
            pixels.append((torch.from_numpy(np.array(SCENES.read(place).image)).permute(2, 0, 1) / 255 - mean) / std)
            there = SCENES.annotations(place)
            left, top, right, bottom = torch.from_numpy(there.boxes).unbind(1)
            boxes = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1) / 64
            targets.append(Objects(torch.from_numpy(there.labels), boxes))
        terms = SetLoss()(model(torch.stack(pixels)), targets, sum(len(one.labels) for one in targets))
        descent.zero_grad()
        terms["total"].backward()
        descent.step()
        losses.append(terms["total"].item())
    trained = run(recipe)
    assert [step.loss for step in told_by(recipe)] == pytest.approx(losses, rel=1e-5)
    assert (weights(trained.model) - weights(model)).abs().max() < 1e-5
    assert (weights(trained.model) - weights(model_for(recipe, SCENES.classes))).abs().max() > 1e-3


def test_a_batch_in_parts_is_a_batch() -> None:
    """Though its pieces hold different numbers of objects, and some pictures none."""
    recipe = replace(PLAIN, optimizer="sgd", learning_rate=1e-2)
    whole, parts = told_by(recipe), told_by(replace(recipe, accumulate=4))
    for one, other in zip(whole, parts, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.norm == pytest.approx(one.norm, rel=1e-4)
        assert other.parts == pytest.approx(one.parts, rel=1e-4)


def test_the_parts_of_the_loss_are_the_loss() -> None:
    for step in told_by(replace(EVERYTHING, epochs=0.5)):
        assert step.parts.keys() == {"class", "box", "giou", "beside"}
        assert sum(step.parts.values()) == pytest.approx(step.loss, rel=1e-5)
        assert min(step.parts.values()) > 0


def test_pictures_of_several_sizes_and_without_objects_are_learned_from() -> None:
    augment = ObjectAugmentation(sides=(48, 64), longest=96, crop_sides=(48,), crop_range=(24, 40))
    objects = replace(SCENES, size=(48, 80), number=(0, 1), count=6)
    recipe = replace(PLAIN, augment=augment, epochs=4, batch_size=2)
    losses = [step.loss for step in told_by(recipe, objects=objects)]
    assert len(losses) == 12
    assert all(map(np.isfinite, losses))


def test_the_backbone_moves_by_its_own_rate() -> None:
    recipe = replace(PLAIN, optimizer="sgd", momentum=0.0, epochs=0.5, weight_decay=0.0, learning_rate=1.0)
    start = model_for(recipe, SCENES.classes).state_dict()
    plain, slow = (run(replace(recipe, backbone_rate=rate)).model.state_dict() for rate in (1.0, 0.1))
    moved = {name: (slow[name] - start[name], plain[name] - start[name]) for name in start if start[name].ndim == 4}
    assert len(moved) > 5
    for name, (one, other) in moved.items():
        torch.testing.assert_close(one, 0.1 * other, rtol=0, atol=1e-6)
        assert other.abs().max() > 1e-2, name
    torch.testing.assert_close(slow["head.weight"], plain["head.weight"])


def test_a_network_without_a_backbone_has_no_rate_for_it() -> None:
    recipe = Recipe(model="vit_ti16", backbone_rate=0.1, network={"width": 16, "depth": 1, "heads": 2, "mlp_width": 16})
    with pytest.raises(UsageError, match="has no backbone to learn at another rate"):
        Learner.of(model_for(recipe, ("one", "other")), recipe)


@pytest.mark.parametrize("name", ["retinanet_r50_fpn", "fcos_r50_fpn", "fasterrcnn_r50_fpn"])
def test_detectors_that_look_everywhere_learn_too(name: str) -> None:
    backbone = {field: value for field, value in PLAIN.network.items() if field.startswith("backbone.")}
    backbone |= {"head_width": 16} if name.startswith("faster") else {}
    recipe = replace(PLAIN, model=name, network={**backbone, "pyramid_width": 32}, epochs=2 * 2 / 16, batch_size=2)
    steps = told_by(recipe)
    assert len(steps) == 2
    assert all(np.isfinite(step.loss) for step in steps)
    assert all(sum(step.parts.values()) == pytest.approx(step.loss, rel=1e-4) for step in steps)


def test_it_learns_what_scenes_show() -> None:
    """64 drawn scenes, 30 steps."""
    objects = replace(SCENES, count=64, number=(1, 2))
    losses = [step.loss for step in told_by(replace(PLAIN, epochs=30 * 8 / 64, learning_rate=3e-3), objects=objects)]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_what_is_found_is_judged_and_told(tmp_path: Path) -> None:
    told: list[Any] = []
    trained = run(replace(PLAIN, epochs=1), judging=OTHERS, out=tmp_path / "run", watch=told.append)
    epochs = [event for event in told if isinstance(event, Epoch)]
    rows = [row for row in read(tmp_path / "run/journal.jsonl") if row["event"] == "epoch"]
    assert [row["held_out"]["ap"] for row in rows] == [one.held_out["ap"] for one in epochs if one.held_out]
    assert epochs[-1].line is not None
    assert epochs[-1].line.startswith("AP ")
    record = load_model(tmp_path / "run/last").record
    assert record.labels == SCENES.classes
    assert record.training is not None
    assert (record.training.ap, record.training.top1) == (trained.evaluation.ap, None)
    assert (record.training.judged, record.training.judged_by) == (6, "others")
    best = Checkpoints(tmp_path / "run").best()
    assert best is not None
    assert best.value == max(row["held_out"]["ap"] for row in rows)
    assert "AP" in repr(trained)
    assert "on 6 pictures" in repr(trained)


# -- interrupted --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_five_steps_are_three_and_a_kill_and_the_rest(tmp_path: Path) -> None:
    once = run(EVERYTHING, out=tmp_path / "once")

    def watch(event: Step | Epoch) -> None:
        if isinstance(event, Step) and event.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def train() -> None:
        torch.set_num_threads(1)
        run(EVERYTHING, out=tmp_path / "twice", watch=watch)

    child = multiprocessing.get_context("fork").Process(target=train)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert Checkpoints(tmp_path / "twice").steps() == [2]
    again = run(replace(EVERYTHING, workers=2), out=tmp_path / "twice")
    assert once.steps == again.steps == 5
    assert torch.equal(weights(once.model), weights(again.model))
    rows = [
        [
            {key: value for key, value in row.items() if "second" not in key}
            for row in read(tmp_path / name / "journal.jsonl")
            if row["event"] != "resume"
        ]
        for name in ("once", "twice")
    ]
    assert rows[0] == rows[1]


def test_other_objects_are_another_training(tmp_path: Path) -> None:
    run(replace(PLAIN, epochs=0.5), out=tmp_path / "run")
    with pytest.raises(UsageError, match="holds a training on other pictures"):
        run(replace(PLAIN, epochs=0.5), replace(SCENES, seed=3), out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"l1_weight 5.0, now 4.0"):
        run(replace(PLAIN, epochs=0.5, objective=SetLoss(l1_weight=4.0)), out=tmp_path / "run")


# AdamW makes steps of one size of gradients that are next to nothing, whichever way they point.
DOWNHILL = replace(PLAIN, optimizer="sgd", learning_rate=1e-2)

SCRIPT = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.test_detection import DOWNHILL, OTHERS, run
run(DOWNHILL, judging=OTHERS, out=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, root: Path) -> None:
    pytest.importorskip("accelerate")
    losses = [step.loss for step in told_by(DOWNHILL)]
    alone = run(DOWNHILL, judging=OTHERS)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script),
         str(tmp_path / "two")],
        check=True, cwd=root, timeout=300, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )  # fmt: skip
    rows = [row["loss"] for row in read(tmp_path / "two/journal.jsonl") if row["event"] == "step"]
    assert rows == pytest.approx(losses, rel=1e-5)
    assert (weights(load_model(tmp_path / "two/last")) - weights(alone.model)).abs().max() < 1e-4


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused_at_once() -> None:
    classifier = create_model("vit_ti16", image_size=(32, 32), width=16, depth=1, heads=2, mlp_width=16, num_classes=3)
    with pytest.raises(UsageError, match="A ViT finds no objects, which the pictures of scenes are to teach"):
        fit(classifier, DetectionSubject(SCENES, PLAIN), PLAIN)
    with pytest.raises(UsageError, match="The model has 2 classes, scenes has 3"):
        fit(model_for(PLAIN, ("one", "other")), DetectionSubject(SCENES, PLAIN), PLAIN)
    with pytest.raises(UsageError, match="is for classification, not for detection"):
        DetectionSubject(SCENES, Recipe())
    with pytest.raises(UsageError, match="scenes holds no objects to learn from, in 0 pictures"):
        run(PLAIN, objects=Remembered([], [], SCENES.classes, SCENES.name))
    with pytest.raises(UsageError, match="scenes holds no objects to learn from, in 3 pictures"):
        run(
            PLAIN,
            objects=Remembered(
                [boxed([])] * 2 + [boxed([[1, 1, 9, 9]], crowd=[0])], [(64, 64)] * 3, SCENES.classes, SCENES.name
            ),
        )
    with pytest.raises(UsageError, match="do not fit"):
        run(PLAIN, judging=replace(OTHERS, shapes=("disc", "square", "star")))


def test_a_loss_of_other_scores_is_refused() -> None:
    with pytest.raises(UsageError, match="'varifocal' is for sigmoid scores, but the model's are softmax"):
        run(replace(PLAIN, objective=EVERYTHING.objective))


# -- where it starts -----------------------------------------------------------------------------------------------------


def test_a_backbone_begins_with_what_it_learned(tmp_path: Path) -> None:
    fields = {name.removeprefix("backbone."): value for name, value in PLAIN.network.items() if name.startswith("backbone.")}
    learned = create_model("resnet18", num_classes=5, image_size=(64, 64), **{**fields, "norm": "batch"})
    save_model(learned, tmp_path / "resnet")
    recipe = replace(PLAIN, backbone=str(tmp_path / "resnet"))
    model: Any = model_for(recipe, SCENES.classes)
    came = learned.state_dict()
    own = model.backbone.state_dict()
    assert len(own) > 10
    assert all(torch.equal(tensor, came[name]) for name, tensor in own.items())
    plain: Any = model_for(PLAIN, SCENES.classes)
    assert torch.equal(model.head.weight, plain.head.weight)
    wide = replace(recipe, network={**recipe.network, "backbone.stem_width": 16})
    with pytest.raises(UsageError, match=r"do not fit the backbone: .* the first stem"):
        model_for(wide, SCENES.classes)


def test_a_detector_is_used_as_it_was_trained() -> None:
    exact = model_for(PLAIN, ("one",)).record.preprocessing
    assert exact is not None
    assert (exact.resize, exact.size, exact.mean) == ("exact", (64, 64), PLAIN.mean)
    shaped = model_for(replace(PLAIN, augment=ObjectAugmentation(sides=(480, 512), longest=800)), ("one",))
    told = shaped.record.preprocessing
    assert told is not None
    assert (told.resize, told.size, told.longest, told.crop) == ("shortest_edge", (512, 512), 800, None)


def test_every_kind_of_network_has_a_usual_loss() -> None:
    kinds = {name: usual_object_loss(type(create_model(name, **fields))).classes for name, fields in {
        "detr_r50": PLAIN.network, "rtdetr_r18": EVERYTHING.network}.items()}  # fmt: skip
    assert kinds == {"detr_r50": "cross_entropy", "rtdetr_r18": "varifocal"}


# -- the sets ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets") / "scenes"
    write_objects({"train": replace(SCENES, count=8), "test": OTHERS}, root)
    return root


def test_a_set_is_known_again_by_its_objects(folder: Path) -> None:
    train = read_objects(folder).train
    assert isinstance(train, ListedObjects)
    known = KnownObjects(train)
    assert known.fingerprint == KnownObjects(read_annotated(folder).train).fingerprint
    assert (known.name, len(known)) == (train.name, 8)
    moved = replace(train, table=replace(train.table, boxes=train.table.boxes + np.float32(1)))
    other = replace(train, table=replace(train.table, labels=(train.table.labels + 1) % 3))
    assert (
        len(
            {
                one.fingerprint
                for one in (known, KnownObjects(moved), KnownObjects(other), KnownObjects(train.subset(range(7))))
            }
        )
        == 4
    )


def test_what_judges_is_said_or_found(folder: Path, tmp_path: Path) -> None:
    found = read_annotated(folder)
    assert found.held_out is not None
    assert (len(found.train), len(found.held_out), found.classes) == (8, 6, SCENES.classes)
    apart = read_annotated(folder, 0.25)
    assert apart.held_out is not None
    names = [set(one.names) for one in (apart.train, apart.held_out)]
    assert names[0] | names[1] == set(found.train.names)
    assert [len(one) for one in names] == [6, 2]
    assert len(read_annotated(folder, 0.001).held_out or ()) == 1
    other = read_annotated(folder, folder)
    assert other.held_out is not None
    assert len(other.held_out) == 6
    write_objects({"val": replace(OTHERS, shapes=("disc", "star"))}, tmp_path / "others")
    with pytest.raises(UsageError, match="do not have the same classes"):
        read_annotated(folder, tmp_path / "others")
    with pytest.raises(UsageError, match="has no split train, only val"):
        read_annotated(tmp_path / "others")
    with pytest.raises(UsageError, match="must lie between 0 and 1"):
        read_annotated(folder, 1.5)
    with pytest.raises(UsageError, match="has a split val with 200 pictures"):
        read_annotated("scenes", 0.5)


def test_a_split_without_pictures_is_not_passed_over(tmp_path: Path) -> None:
    """An empty list of pictures to judge by is a mistake, and nothing to be silently judged without."""
    few = replace(SCENES, count=2)
    write_objects({"train": few, "val": replace(few, count=1), "test": few}, tmp_path)
    told = json.loads((tmp_path / "annotations" / "instances_val.json").read_text())
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps({**told, "images": [], "annotations": []}))
    found = read_annotated(tmp_path)
    assert found.held_out is not None
    assert len(found.held_out) == 0


def test_one_split_is_asked_for_by_name(folder: Path) -> None:
    assert len(annotated_split(folder, "test")) == 6
    assert len(annotated_split("scenes", "val")) == 200
    with pytest.raises(UsageError, match=r"has the splits train, test\. Say which"):
        annotated_split(folder)
    with pytest.raises(UsageError, match="has no split val; it has train, test"):
        annotated_split(folder, "valid")
    with pytest.raises(UnknownNameError, match="Unknown split 'tset'"):
        annotated_split(folder, "tset")
