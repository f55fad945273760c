"""The training loop against loops written by hand, and against itself: interrupted, shared out, in other orders."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.conftest import write_pictures
from vitral.checkpoints.load import load_model
from vitral.data.augment.chain import Augmentation
from vitral.data.loader import Order
from vitral.data.pictures import Files, PictureSet
from vitral.data.splits import read_pictures
from vitral.errors import CheckpointError, PictureError, TrainingError, UsageError
from vitral.tasks.classification.loss import Objective
from vitral.training import checkpoint
from vitral.training.checkpoint import Checkpoints
from vitral.training.classification import ClassificationSubject
from vitral.training.journal import read
from vitral.training.loop import Epoch, Step, Trained, fit
from vitral.training.recipe import Recipe
from vitral.training.start import Teacher, model_for

# Four workers on two processors are what is to be tried.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

STILL = Augmentation(crop="none", flip=0.0)

SMALL = Recipe(
    model="vit_ti16",
    network={"patch_size": (4, 4), "width": 16, "depth": 2, "heads": 2, "mlp_width": 32},
    image_size=(8, 8),
    epochs=5,
    batch_size=12,
    learning_rate=3e-3,
    warmup_epochs=1,
    augment=STILL,
    workers=0,
)

EVERYTHING = replace(
    SMALL,
    epochs=80 / 18,  # 20 steps of 8 pictures from 36: nothing ends with an epoch
    batch_size=8,
    accumulate=2,
    clip=1.0,
    ema=0.9,
    drop_path=0.3,
    objective=Objective(label_smoothing=0.1),
    augment=Augmentation(crop_scale=(0.5, 1.0), rand_augment=1, erase=0.3, mixup=0.8, cutmix=1.0, repeats=2),
    save_every=2 * 8 / 36,  # every other step
    evaluate_every=1.3,
)


def run(
    recipe: Recipe,
    pictures: PictureSet,
    *,
    held_out: PictureSet | None = None,
    teacher: Teacher | None = None,
    **options: Any,
) -> Trained:
    subject = ClassificationSubject(pictures, recipe, held_out, teacher)
    return fit(model_for(recipe, pictures.classes), subject, recipe, **options)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


# -- the steps ----------------------------------------------------------------------------------------------------------


def by_hand(
    recipe: Recipe, pictures: PictureSet, optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
) -> Tensor:
    """The same training in fifteen lines of PyTorch."""
    model: Any = model_for(recipe, pictures.classes)
    prepared = [model.record.preprocessing(pictures.read(index))[0] for index in range(len(pictures))]
    matrices = [
        p for n, p in model.named_parameters() if (p.ndim == 2 and n.endswith("weight")) or n == "patch.projection.weight"
    ]
    others = [p for p in model.parameters() if all(p is not one for one in matrices)]
    steps = math.ceil(recipe.epochs * len(pictures) / recipe.batch_size)
    warmup = round(recipe.warmup_epochs * len(pictures) / recipe.batch_size)
    descent = optimizer([{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}])
    order = Order(count=len(pictures), seed=recipe.seed)
    for step in range(steps):
        places = [order[position].picture for position in range(step * recipe.batch_size, (step + 1) * recipe.batch_size)]
        logits = model(torch.stack([prepared[place] for place in places])).logits
        loss = F.cross_entropy(logits, torch.from_numpy(pictures.labels[places]))
        falling = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        for group in descent.param_groups:
            group["lr"] = recipe.learning_rate * ((step + 1) / warmup if step < warmup else falling)
        descent.zero_grad()
        loss.backward()
        descent.step()
    return weights(model)


def test_adamw_is_the_loop_one_would_write(colours: PictureSet) -> None:
    expected = by_hand(SMALL, colours, lambda groups: torch.optim.AdamW(groups, lr=1.0, fused=True))
    found = weights(run(SMALL, colours).model)
    assert (found - expected).abs().max() < 1e-6
    assert (found - weights(model_for(SMALL, colours.classes))).abs().max() > 1e-2


def test_sgd_is_the_loop_one_would_write(colours: PictureSet) -> None:
    recipe = replace(SMALL, optimizer="sgd", learning_rate=0.1)
    expected = by_hand(recipe, colours, lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True))
    assert (weights(run(recipe, colours).model) - expected).abs().max() < 1e-5


def test_a_batch_in_parts_is_a_batch(colours: PictureSet) -> None:
    whole, parts = run(SMALL, colours), run(replace(SMALL, accumulate=3), colours)
    assert (
        weights(whole.model) - weights(parts.model)
    ).abs().max() < 5e-5  # of steps of 3e-3; AdamW divides by small numbers


def test_recomputed_blocks_give_the_same_bits(colours: PictureSet) -> None:
    recipe = replace(SMALL, epochs=1, warmup_epochs=0, drop_path=0.4)
    trained = run(replace(recipe, checkpointing=True), colours)
    assert torch.equal(weights(run(recipe, colours).model), weights(trained.model))
    assert "forward" not in vars(trained.model.blocks[0])


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")  # what checks shapes cannot be compiled
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a processor needs a C++ compiler")
def test_compiled_it_learns_the_same(colours: PictureSet) -> None:
    plain, compiled = run(SMALL, colours), run(replace(SMALL, compile=True), colours)
    assert (weights(plain.model) - weights(compiled.model)).abs().max() < 1e-3


def test_bfloat16_is_near_single_precision(colours: PictureSet) -> None:
    losses: dict[str, list[float]] = {}
    for precision in ("fp32", "bf16"):
        seen: list[float] = []
        run(replace(SMALL, precision=precision), colours, watch=lambda e, s=seen: s.append(e.loss))
        losses[precision] = seen
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.03)
    assert losses["bf16"] != losses["fp32"]


def test_the_average_is_what_is_judged_and_kept(colours: PictureSet, tmp_path: Path) -> None:
    trained = run(replace(SMALL, ema=0.9), colours, held_out=colours, out=tmp_path / "run")
    plain = run(SMALL, colours)
    assert (weights(trained.model) - weights(plain.model)).abs().max() > 1e-4
    assert torch.equal(weights(load_model(tmp_path / "run/last")), weights(trained.model))
    state = Checkpoints(tmp_path / "run").newest().state["learner"]  # type: ignore[union-attr]
    kept = torch.cat([state["model"][name].double().flatten() for name in trained.model.state_dict()])
    assert torch.equal(kept, weights(plain.model))


def test_what_is_frozen_stays(colours: PictureSet) -> None:
    recipe = replace(SMALL, frozen_depth="body")
    before, after = model_for(recipe, colours.classes).state_dict(), run(recipe, colours).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_lower_layers_move_less_by_the_decay(colours: PictureSet) -> None:
    recipe = replace(
        SMALL, optimizer="sgd", momentum=0.0, epochs=1 / 3, warmup_epochs=0, weight_decay=0.0, initialisation="xavier"
    )
    start = model_for(recipe, colours.classes).state_dict()
    plain = run(recipe, colours).model.state_dict()
    decayed = run(replace(recipe, layer_decay=0.5), colours).model.state_dict()
    scales = {"head.weight": 1.0, "blocks.1.mlp.up.weight": 0.5, "blocks.0.mlp.up.weight": 0.25, "position_table": 0.125}
    for name, scale in scales.items():
        torch.testing.assert_close(decayed[name] - start[name], scale * (plain[name] - start[name]), rtol=2e-2, atol=1e-7)


def test_it_learns(colours: PictureSet, tmp_path: Path) -> None:
    told: list[Step | Epoch] = []
    trained = run(replace(SMALL, epochs=12), colours, held_out=colours, out=tmp_path / "run", watch=told.append)
    assert trained.evaluation is not None
    assert trained.evaluation.top1 == 1.0
    assert not trained.model.training
    steps = [event for event in told if isinstance(event, Step)]
    epochs = [event for event in told if isinstance(event, Epoch)]
    assert [step.step for step in steps] == list(range(1, 37))
    assert [epoch.step for epoch in epochs] == list(range(3, 37, 3))
    assert epochs[0].loss == pytest.approx(np.mean([step.loss for step in steps[:3]]))
    rows = read(tmp_path / "run/journal.jsonl")
    assert [row["loss"] for row in rows if row["event"] == "step"] == [step.loss for step in steps]
    best = load_model(tmp_path / "run/best")
    assert best.record.labels == ("green", "red", "violet")


def test_a_distilled_pupil_learns_the_teachers_mind(colours: PictureSet) -> None:
    """The teacher is sure that everything is violet; a pupil taught by it alone comes to think so too."""
    teacher = model_for(SMALL, colours.classes)
    with torch.no_grad():
        teacher.head.weight.zero_()  # type: ignore[union-attr, operator]
        teacher.head.bias.copy_(torch.tensor([-9.0, -9.0, 9.0]))  # type: ignore[union-attr, operator]
    recipe = replace(SMALL, epochs=30, teacher="t", objective=Objective(distillation="soft", distillation_weight=1.0))
    prepared = teacher.record.preprocessing
    assert prepared is not None
    trained = run(recipe, colours, held_out=colours, teacher=Teacher(teacher, prepared, prepared))
    assert trained.evaluation is not None
    assert trained.evaluation.scores[:, 2].min() > 0.9


def test_what_a_training_ends_with_is_told_in_a_line(colours: PictureSet) -> None:
    trained = run(replace(SMALL, epochs=1 / 3, warmup_epochs=0), colours, held_out=colours)
    assert re.fullmatch(r"Trained\(vit_ti16: 1 steps in \d s, top-1 \d+\.\d% loss \d\.\d+ on 36 pictures\)", repr(trained))
    assert repr(replace(trained, judgement=None, stopped="SIGTERM")).endswith(" s, stopped by SIGTERM)")


def test_the_callers_random_numbers_go_on(colours: PictureSet) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(replace(SMALL, epochs=1, drop_path=0.2), colours)
    assert torch.equal(torch.rand(3), expected)


# -- interrupted --------------------------------------------------------------------------------------------------------


def killed_after(steps: int, recipe: Recipe, folder: Path, out: Path, *, judged: bool) -> None:
    """The same training in a process of its own, which is killed when it has taken some steps."""

    def watch(event: Step | Epoch) -> None:
        if isinstance(event, Step) and event.step == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    def train() -> None:
        torch.set_num_threads(1)
        pictures = read_pictures(folder)
        run(recipe, pictures, held_out=pictures if judged else None, out=out, watch=watch)

    child = multiprocessing.get_context("fork").Process(target=train)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_twenty_steps_are_seven_and_a_kill_and_the_rest(
    workers: int, colours_folder: Path, colours: PictureSet, tmp_path: Path
) -> None:
    recipe = replace(EVERYTHING, workers=workers)
    once = run(EVERYTHING, colours, held_out=colours, out=tmp_path / "once")
    killed_after(7, recipe, colours_folder, tmp_path / "twice", judged=True)
    saved = Checkpoints(tmp_path / "twice").newest()
    assert saved is not None
    assert saved.step == 6
    again = run(recipe, colours, held_out=colours, out=tmp_path / "twice")
    assert once.steps == again.steps == 20
    assert torch.equal(weights(once.model), weights(again.model))
    for one, other in zip(journal_of(tmp_path / "once"), journal_of(tmp_path / "twice"), strict=True):
        assert one == other
    ends = [Checkpoints(tmp_path / name).newest().state["learner"] for name in ("once", "twice")]  # type: ignore[union-attr]
    assert same(*ends)


def journal_of(out: Path) -> list[dict[str, Any]]:
    """What a journal says, times and interruptions left out."""
    rows = (row for row in read(out / "journal.jsonl") if row["event"] != "resume")
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_after_the_step_with_everything_saved(name: str, colours: PictureSet, tmp_path: Path) -> None:
    def watch(event: Step | Epoch) -> None:
        if isinstance(event, Step) and event.step == 5:
            os.kill(os.getpid(), signal.Signals[name])

    before = signal.getsignal(signal.Signals[name])
    stopped = run(EVERYTHING, colours, out=tmp_path / "run", watch=watch)
    assert (stopped.stopped, stopped.steps) == (name, 6)
    assert signal.getsignal(signal.Signals[name]) is before
    again = run(EVERYTHING, colours, out=tmp_path / "run")
    assert (again.stopped, again.steps) == (None, 20)
    assert torch.equal(weights(again.model), weights(run(EVERYTHING, colours).model))


def test_a_signal_before_the_first_step_ends_it_after_that(colours: PictureSet, tmp_path: Path) -> None:
    class Signalling(PictureSet):
        def read(self, index: int, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().read(index, **options)

    signalling = Signalling(**{name: getattr(colours, name) for name in ("name", "classes", "labels", "places", "store")})
    stopped = run(EVERYTHING, signalling, out=tmp_path / "run")
    assert (stopped.stopped, stopped.steps) == ("SIGTERM", 1)
    assert Checkpoints(tmp_path / "run").steps() == [1]


def test_a_second_ctrl_c_while_saving_ends_at_once_and_loses_nothing_saved(
    colours: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checkpoint._write_tensors

    def interrupted(path: Path, tensors: dict[str, Tensor]) -> str:
        digest = written(path, tensors)
        if "step-00000005" in str(path):
            os.kill(os.getpid(), signal.SIGINT)
        return digest

    def watch(event: Step | Epoch) -> None:
        if isinstance(event, Step) and event.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(checkpoint, "_write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(EVERYTHING, colours, out=tmp_path / "run", watch=watch)
    assert Checkpoints(tmp_path / "run").steps() == [4, 2]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".vitral-") and path.is_dir()]
    monkeypatch.undo()
    again = run(EVERYTHING, colours, out=tmp_path / "run")
    assert torch.equal(weights(again.model), weights(run(EVERYTHING, colours).model))


def test_a_signal_to_the_whole_group_does_not_take_the_readers_along(colours_folder: Path, tmp_path: Path) -> None:
    """As schedulers and launchers send it: to the training and to the processes that read for it."""

    def watch(event: Step | Epoch) -> None:
        if isinstance(event, Step) and event.step == 5:
            os.killpg(0, signal.SIGTERM)

    def train() -> None:
        os.setsid()
        torch.set_num_threads(1)
        stopped = run(replace(EVERYTHING, workers=2), read_pictures(colours_folder), out=tmp_path / "run", watch=watch)
        os._exit(7 if stopped.stopped == "SIGTERM" else 1)

    child = multiprocessing.get_context("fork").Process(target=train)
    child.start()
    child.join(60)
    assert child.exitcode == 7
    saved = Checkpoints(tmp_path / "run").newest()
    assert saved is not None
    assert saved.step == 6


def test_a_finished_training_is_not_taken_further(colours: PictureSet, tmp_path: Path) -> None:
    first = run(SMALL, colours, held_out=colours, out=tmp_path / "run")
    told: list[Any] = []
    again = run(SMALL, colours, held_out=colours, out=tmp_path / "run", watch=told.append)
    assert not told
    assert first.evaluation is not None
    assert again.evaluation is not None
    assert again.evaluation.top1 == first.evaluation.top1
    record = load_model(tmp_path / "run/last").record
    assert record.training == first.model.record.training  # type: ignore[union-attr]
    assert record.training.steps == 15  # type: ignore[union-attr]
    assert again.steps == first.steps
    assert torch.equal(weights(again.model), weights(first.model))


def test_another_training_is_refused(colours: PictureSet, colours_folder: Path, tmp_path: Path) -> None:
    run(SMALL, colours, out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"learning_rate 0.003, now 0.5"):
        run(replace(SMALL, learning_rate=0.5), colours, out=tmp_path / "run")
    with pytest.raises(UsageError, match="other pictures"):
        run(SMALL, colours.subset(np.arange(30)), out=tmp_path / "run")
    with pytest.raises(UsageError, match="judged by other pictures"):
        run(SMALL, colours, held_out=colours, out=tmp_path / "run")
    run(replace(SMALL, workers=1, keep=5), colours, out=tmp_path / "run")


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_it_and_names_the_step(colours: PictureSet, tmp_path: Path) -> None:
    recipe = replace(SMALL, optimizer="sgd", learning_rate=900.0, momentum=0.99, save_every=1 / 3)
    with pytest.raises(
        TrainingError, match=r"at step \d+ of 15 .*Lower the learning rate.*checkpoint of step 3 is from before"
    ):
        run(recipe, colours, out=tmp_path / "run")
    saved = Checkpoints(tmp_path / "run").newest()
    assert saved is not None
    assert saved.step == 3
    assert all(torch.isfinite(tensor).all() for tensor in saved.state["learner"]["model"].values())


def test_a_loss_that_is_no_number_before_any_checkpoint(colours: PictureSet, tmp_path: Path) -> None:
    recipe = replace(SMALL, optimizer="sgd", learning_rate=900.0, momentum=0.99, save_every=5)
    with pytest.raises(
        TrainingError, match=r"No checkpoint was written yet; with other options, give another folder than .*run"
    ):
        run(recipe, colours, out=tmp_path / "run")
    with pytest.raises(TrainingError, match=r"not finite numbers\.$"):
        run(recipe, colours)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A checkpoint with another state.json, of which the manifest knows."""
    state, manifest = folder / "state.json", folder / "manifest.json"
    content = json.dumps(change(json.loads(state.read_bytes()))).encode()
    state.write_bytes(content)
    told = json.loads(manifest.read_bytes())
    told["files"]["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(told))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [],
        lambda state: {},
        lambda state: {"learner": state["learner"]},
        lambda state: state | {"learner": []},
        lambda state: state | {"learner": state["learner"] | {"model": {}}},
        lambda state: state | {"learner": state["learner"] | {"optimizer": {"state": {}, "param_groups": []}}},
        lambda state: state | {"learner": state["learner"] | {"optimizer": {"state": {}, "param_groups": [{"params": 3}]}}},
        lambda state: state | {"learner": {name: part for name, part in state["learner"].items() if name != "average"}},
        lambda state: state | {"tally": 3},
        lambda state: state | {"tally": state["tally"] | {"step": "six"}},
        lambda state: state | {"tally": state["tally"] | {"steps": 3}, "more": {"$tensor": ["x"]}},
        lambda state: state | {"tally": {}},
        lambda state: state | {"tally": state["tally"] | {"stepp": 6}},
    ],
)  # fmt: skip
def test_a_state_that_no_training_saved_is_refused_by_name(
    change: Callable[[dict[str, Any]], Any], stopped: Path, colours: PictureSet, tmp_path: Path
) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    rewritten(out / "step-00000002", change)
    with pytest.raises(CheckpointError, match=r"(state\.json in .*|The checkpoint in .*)step-00000002"):
        run(EVERYTHING, colours, out=out)


@pytest.fixture(scope="module")
def stopped(colours: PictureSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped after its second step."""

    def watch(event: Step | Epoch) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path_factory.mktemp("stopped") / "run"
    run(replace(EVERYTHING, save_every=2 * 8 / 36), colours, out=out, watch=watch)
    assert Checkpoints(out).steps() == [2]
    return out


@pytest.mark.parametrize(
    "told", ["[]", '{"recipe": {}, "pictures": {}, "held_out": null}', '{"recipe": {}, "pictures": 3}', "{"]
)
def test_a_recipe_json_that_no_training_wrote(told: str, colours: PictureSet, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(told)
    with pytest.raises(UsageError, match=r"recipe.json cannot be read as the recipe of a training"):
        run(SMALL, colours, out=tmp_path)


def broken(tmp_path: Path) -> PictureSet:
    root = write_pictures(tmp_path / "broken")
    (root / "red/004.png").write_bytes((root / "red/004.png").read_bytes()[:60])
    return read_pictures(root)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_picture_is_named(workers: int, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"red/004.png"):
        run(replace(SMALL, workers=workers), broken(tmp_path))


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    pictures = read_pictures(write_pictures(tmp_path / "set"))
    (tmp_path / "set/green/001.png").unlink()
    with pytest.raises(PictureError, match=r"green/001.png"):
        run(SMALL, pictures)


def test_skipping_leaves_it_out_and_counts_it(tmp_path: Path) -> None:
    told: list[Any] = []
    recipe = replace(SMALL, bad_pictures="skip", epochs=2)
    trained = run(recipe, broken(tmp_path), out=tmp_path / "run", watch=told.append)
    assert trained.epochs[-1].skipped == 2  # once in each pass
    rows = [row for row in read(tmp_path / "run/journal.jsonl") if row["event"] == "skipped"]
    assert len(rows) == 2
    assert all("red/004.png" in row["reason"] for row in rows)


def test_a_full_disk_leaves_the_checkpoint_before(
    colours: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Checkpoints.save

    def full(self: Checkpoints, step: int, *rest: Any, **named: Any) -> Any:
        if step > 6:
            raise OSError(28, "No space left on device", str(self.folder))
        return saved(self, step, *rest, **named)

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*run. The checkpoint of step 6 in .*run is whole; when"):
        run(SMALL, colours, out=tmp_path / "run")
    newest = Checkpoints(tmp_path / "run").newest()
    assert newest is not None
    assert newest.step == 6


def test_a_full_disk_before_any_checkpoint(colours: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: Any, folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder / "model.safetensors"))

    monkeypatch.setattr("vitral.training.keeper.save_model", full)
    with pytest.raises(
        OSError, match=r"device: .*run/best/model.safetensors. No checkpoint was written to .*run yet"
    ) as caught:
        run(replace(SMALL, save_every=5), colours, out=tmp_path / "run")
    assert (caught.value.errno, caught.value.filename) == (28, None)


@pytest.mark.parametrize("name", ["best", "last", "step-00000004", "journal.jsonl"])
def test_what_no_training_wrote_is_not_replaced(name: str, colours: PictureSet, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.png").write_text("mine")
    with pytest.raises(UsageError, match=r"no recipe.json of a training that wrote it"):
        run(SMALL, colours, held_out=colours, out=tmp_path)
    assert (tmp_path / name / "mine.png").read_text() == "mine"


def test_without_a_folder_an_interruption_interrupts(colours: PictureSet) -> None:
    def watch(event: Step | Epoch) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(SMALL, colours, watch=watch)


def test_pictures_that_cannot_judge_the_model_are_refused_at_once(colours: PictureSet) -> None:
    told: list[Any] = []
    other = replace(colours, classes=("blue", "red", "violet"))
    with pytest.raises(UsageError, match="do not fit the 3 of the model"):
        run(SMALL, colours, held_out=other, watch=told.append)
    assert not told


def test_a_folder_that_cannot_be_written_to(colours: PictureSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; a training needs a folder"):
        run(SMALL, colours, out=tmp_path / "file")


# -- several processes --------------------------------------------------------------------------------------------------


SCRIPT = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.test_loop import EVERYTHING, run
from dataclasses import replace
from vitral.data.splits import read_pictures
recipe = replace(EVERYTHING, drop_path=0.0, epochs=10 * 8 / 36, workers=0)
pictures = read_pictures(sys.argv[1])
print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", flush=True)
run(recipe, pictures, held_out=pictures, out=Path(sys.argv[2]))
"""


def test_two_trainings_do_not_share_a_folder(colours_folder: Path, colours: PictureSet, tmp_path: Path) -> None:
    def other() -> None:
        try:
            run(SMALL, read_pictures(colours_folder), out=tmp_path / "run")
        except UsageError as error:
            os._exit(7 if "Another program is writing to" in str(error) else 1)
        os._exit(0)

    ended: list[int | None] = []

    def watch(event: Step | Epoch) -> None:
        if not ended:
            child = multiprocessing.get_context("fork").Process(target=other)
            child.start()
            child.join(60)
            ended.append(child.exitcode)

    assert run(SMALL, colours, out=tmp_path / "run", watch=watch).steps == 15
    assert ended == [7]


def test_two_processes_train_as_one(colours_folder: Path, colours: PictureSet, tmp_path: Path, root: Path) -> None:
    recipe = replace(EVERYTHING, drop_path=0.0, epochs=10 * 8 / 36)
    alone = run(recipe, colours, held_out=colours, out=tmp_path / "one")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script),
         str(colours_folder), str(tmp_path / "two")],
        check=True, cwd=root, timeout=120, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "find_unused_parameters" not in ran.stderr
    assert sorted(line for line in ran.stdout.splitlines() if line.startswith("rank")) == ["rank 0 of 2", "rank 1 of 2"]
    one, two = ([row for row in journal_of(tmp_path / name) if row["event"] == "step"] for name in ("one", "two"))
    assert [row["step"] for row in two] == list(range(1, 11))
    for name in ("loss", "norm", "learning_rate"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4)
    difference = (weights(load_model(tmp_path / "two/last")) - weights(alone.model)).abs().max()
    assert difference < 1e-4


def test_what_one_of_two_processes_cannot_read_is_told_once(tmp_path: Path, root: Path) -> None:
    pictures = broken(tmp_path)
    assert isinstance(pictures.store, Files)
    options = (
        "--recipe cifar10_vit --quick --image-size 8 --network.depth 1 --network.patch-size 4 --epochs 2 --batch-size 12"
    )
    command = ["-m", "vitral", "train", str(pictures.store.root), *options.split(), "--device", "cpu", "--threads", "1"]
    ran = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path / "run"), "--processes", "2"],
        check=False, cwd=root, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 1
    assert len(re.findall("^Error: .*red/004.png", ran.stderr, re.MULTILINE)) == ran.stderr.count("004.png") == 1, ran.stderr
    assert "Unexpected" not in ran.stderr


def test_a_batch_that_cannot_be_shared_out_is_refused(colours: PictureSet) -> None:
    with pytest.raises(UsageError, match="cannot be shared out evenly, in pairs, over 1 processes of 5 parts"):
        run(replace(SMALL, accumulate=5), colours)
