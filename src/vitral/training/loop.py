"""Training in one visible function.

```
for each step:                            the learning rate is a function of the step
    for each piece of its batch:          what stands in it is a function of (seed, position)
        augment → model → loss → gradients    what is lost is the subject's to say: classes, objects
    clip → optimiser → moving average
    every so often:                       a look at the pictures held out, the best weights, a checkpoint
```

All that a training knows is its step and the tensors of its checkpoint, so one that was killed goes on as though nothing
had happened: to the bit, on one machine's processors.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitral.base.chance import seed_of
from vitral.base.config import restored
from vitral.base.processors import default_workers
from vitral.data.loader import Share
from vitral.errors import CheckpointError, TrainingError, UsageError
from vitral.models.network import Network
from vitral.models.record import Training
from vitral.training.checkpoint import Saved
from vitral.training.keeper import Keeper
from vitral.training.learner import Learner
from vitral.training.memory import recomputed
from vitral.training.optim import training_mode
from vitral.training.plan import Plan
from vitral.training.processes import Processes
from vitral.training.recipe import Recipe
from vitral.training.schedule import Schedule
from vitral.training.stopping import Stop, listening
from vitral.training.subject import Judgement, Loss, Pictures, Subject

__all__ = ["Epoch", "Step", "Trained", "fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the optimiser.

    Attributes:
        step: which one, from 1.
        steps: how many there will be.
        epoch: how often as many pictures were seen as there are.
        loss: of the batch, divided by what it weighs: for a classifier the mean over its pictures.
        parts: what the loss is made of, where it is made of several parts.
        learning_rate: the rate it was taken with.
        norm: of the whole gradient, before clipping.
        seconds: spent in training so far, also before an interruption; evaluating and saving are not counted.
        pictures_per_second: of this step.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    parts: dict[str, float]
    learning_rate: float
    norm: float
    seconds: float
    pictures_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A stretch of training between two looks at the pictures held out.

    Attributes:
        epoch: how often as many pictures were seen as there are.
        step: its last step.
        loss: the training loss, averaged over the stretch.
        seconds: spent in training so far.
        skipped: pictures left out so far because they could not be read, counted as often as that happened.
        held_out: what the pictures held out say, where there are any: "top1", "top5" and "loss" of a classifier, "ap",
            "ap50" and "ap75" of a detector.
        line: the same in half a line, to be read.
        best: whether no look before was better.
    """

    epoch: float
    step: int
    loss: float
    seconds: float
    skipped: int
    held_out: dict[str, float] | None
    line: str | None
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """What a training ends with.

    Attributes:
        model: the network of the last step, in evaluation mode; its weights are the averaged ones, if the recipe averages.
        steps: taken in all.
        seconds: spent in training in all.
        epochs: the stretches of this run, without those before an interruption.
        judgement: of the last look, where pictures were held out.
        stopped: the signal that ended it early, or None.
    """

    model: Network
    steps: int
    seconds: float
    epochs: tuple[Epoch, ...]
    judgement: Judgement | None
    stopped: str | None

    @property
    def evaluation(self) -> Any:
        """All that the last look found, where pictures were held out; for a classifier a `training.evaluate.Evaluation`."""
        return None if self.judgement is None else self.judgement.details

    def __repr__(self) -> str:
        name = self.model.record.architecture or type(self.model).__name__
        judged = (
            "" if self.judgement is None else f", {' '.join(self.judgement.line.split())} on {self.judgement.count} pictures"
        )
        stopped = f", stopped by {self.stopped}" if self.stopped else ""
        return f"Trained({name}: {self.steps:,} steps in {self.seconds:.0f} s{judged}{stopped})"


@dataclass(kw_only=True)
class _Tally:
    """What is added up along the way, and saved with the weights."""

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    loss: float = 0.0  # summed over the steps since the last look
    steps: int = 0  # since the last look
    best: float = -math.inf

    def add(self, loss: float, seconds: float, skipped: int) -> None:
        """One step more."""
        self.step, self.seconds, self.skipped = self.step + 1, self.seconds + seconds, self.skipped + skipped
        self.loss, self.steps = self.loss + loss, self.steps + 1


def fit(
    model: Network,
    subject: Subject[Any],
    recipe: Recipe,
    *,
    out: Path | None = None,
    device: str | int | torch.device | None = None,
    watch: Callable[[Step | Epoch], None] | None = None,
) -> Trained:
    """Train a network in place.

    The same model, subject and recipe give the same weights, in one go or with interruptions, whatever the number of
    workers: to the bit on one machine's processors with as many threads (a GPU adds up in changing order). Several processes
    give the same up to the order of sums, unless the model itself draws random numbers (dropout, stochastic depth), which
    each process does for its own part.

    Args:
        model: as `training.start.model_for` makes it: its head is for the classes of the pictures, and its record says how
            they are prepared.
        subject: what it is trained for: the pictures, the loss, and how it is judged; see `training.subject`.
        recipe: every choice.
        out: folder for the journal, the checkpoints, the best and the last model; a training that is there goes on. None:
            nothing is written.
        device: where to compute, where there is one process.
        watch: told every step and every look at the pictures held out.

    Raises:
        UsageError: the recipe does not fit the pictures, or `out` holds another training.
        PictureError: a picture cannot be read, and the recipe refuses that.
        TrainingError: the loss or the gradient is not finite; the newest checkpoint, if there is one, is from before.
        CheckpointError: no checkpoint in `out` is whole, or the newest is not one of this training.
        OSError: a checkpoint cannot be written; those before it are whole.
    """
    processes = Processes(device)
    share = Share(batch_size=recipe.batch_size, rank=processes.rank, processes=processes.count, pieces=recipe.accumulate)
    plan = Plan.of(recipe, len(subject.pictures))
    rate_at = Schedule(
        kind=recipe.schedule,
        steps=plan.steps,
        warmup_steps=plan.warmup_steps,
        floor=recipe.final_rate,
        drops=plan.drops,
        drop_factor=recipe.drop_factor,
    )
    subject.check(model)  # now rather than after the first epoch
    learner = Learner.of(model.to(processes.device), recipe)
    keeper = Keeper(out, recipe, subject.pictures, subject.held_out, writes=processes.is_first)
    tally, asked = _Tally(), 0.0
    epochs: list[Epoch] = []
    judgement: Judgement | None = None
    with ExitStack() as stack:
        stack.enter_context(keeper.alone())
        if (saved := keeper.newest()) is not None:
            tally = _restored(learner, saved)
            if not keeper.has_best():
                tally.best = -math.inf  # it was taken away: the next one is
        if processes.sums(tally.step) != [tally.step * processes.count]:
            raise UsageError(
                f"The processes found different checkpoints in {out}. It must be one folder that all of them see."
            )

        stop = stack.enter_context(listening() if out is not None else nullcontext(Stop()))  # else nothing could go on
        stack.enter_context(torch.random.fork_rng([processes.device] if processes.device.type == "cuda" else []))
        if recipe.checkpointing:
            stack.enter_context(recomputed(model.blocks))
        if recipe.compile:
            model.compile()
        network = processes.wrapped(model)
        training_mode(model)
        coming = subject.batches(
            model,
            share,
            steps=range(tally.step, plan.steps),
            workers=_workers(recipe, processes),
            pin_memory=processes.device.type == "cuda",
        )
        clock = time.perf_counter()
        for pieces in processes.agreed(coming):
            rate = recipe.learning_rate * rate_at(tally.step)
            found = _gradient(network, pieces, subject, processes, (recipe.seed, tally.step))
            norm = learner.gradient_norm()
            left_out = [sentence for batch in pieces for sentence in batch.skipped]
            loss, skipped, asked, *parts = processes.sums(  # all stop together
                found.total, len(left_out), stop.asked is not None, *found.parts
            )
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _not_finite(tally.step + 1, plan, loss, norm, rate, keeper)
            learner.step(rate)

            seconds = time.perf_counter() - clock
            tally.add(loss, seconds, int(skipped))
            step = Step(
                step=tally.step,
                steps=plan.steps,
                epoch=plan.epoch(tally.step),
                loss=loss,
                parts=dict(zip(subject.parts, parts, strict=True)),
                learning_rate=rate,
                norm=norm,
                seconds=tally.seconds,
                pictures_per_second=recipe.batch_size / seconds,
            )
            if plan.notes(tally.step):
                keeper.note("step", **asdict(step))
            for sentence in processes.gathered(left_out) if skipped else ():
                keeper.note("skipped", step=tally.step, reason=sentence)
            if watch is not None:
                watch(step)

            if plan.evaluates(tally.step):
                with learner.judged():
                    judgement = _looked(model, subject, recipe, processes)
                    epochs.append(_closed(plan, tally, judgement))
                    model.record = replace(model.record, training=_told(recipe, subject.pictures, plan, tally, judgement))
                    if epochs[-1].best:
                        keeper.keep_best(model, tally.best, tally.step)
                keeper.note("epoch", **asdict(epochs[-1]))
                if watch is not None:
                    watch(epochs[-1])
            if plan.saves(tally.step) or asked:
                keeper.save(tally.step, {"learner": learner.state_dict(), "tally": asdict(tally)})
            if asked:
                break
            clock = time.perf_counter()

    learner.settle()
    finished = tally.step == plan.steps
    if finished:
        if not epochs:  # it was finished before
            judgement = _looked(model, subject, recipe, processes)
            model.record = replace(model.record, training=_told(recipe, subject.pictures, plan, tally, judgement))
        keeper.keep_last(model)
    processes.wait()
    return Trained(
        model=model,
        steps=tally.step,
        seconds=tally.seconds,
        epochs=tuple(epochs),
        judgement=judgement,
        stopped=None if finished else stop.asked or "a signal to another process",
    )


def _gradient(
    network: nn.Module, pieces: list[Any], subject: Subject[Any], processes: Processes, place: tuple[int, int]
) -> Loss:
    """Gather the gradient of a batch in the parameters, piece by piece.

    Args:
        network: the model, or what several processes call in its place.
        pieces: of the batch, those of this process.
        subject: says what is to be made small.
        processes: all that compute the batch together.
        place: the seed and the step, from which every piece's randomness follows.

    Returns:
        What the pieces of this process add to the loss of the whole batch.
    """
    amounts = torch.tensor([subject.amounts(batch) for batch in pieces], dtype=torch.float64).sum(0)
    whole = tuple(processes.sums(*amounts))
    total = torch.zeros((), device=processes.device)
    parts = torch.zeros(len(subject.parts), device=processes.device)
    for number, batch in enumerate(pieces):
        torch.manual_seed(seed_of(*place, 3, number, processes.rank))
        last = number == len(pieces) - 1
        with nullcontext() if last else processes.apart(network):
            found = subject.loss(network, batch, whole, processes.device)
            (found.total * processes.count).backward()  # several processes average what they find
        total += found.total.detach()
        parts += found.parts.detach()
    return Loss(total, parts)


def _restored(learner: Learner, saved: Saved) -> _Tally:
    """Put the learner where a checkpoint left it, and give what was added up until then.

    Raises:
        CheckpointError: the checkpoint is whole, but holds something else than this training saves.
    """
    state, groups = saved.state, learner.state_dict()["optimizer"]["param_groups"]
    try:
        learner.load_state_dict(state["learner"])
        tally = restored(_Tally, state["tally"], "tally", "state.json")
        for known, group in zip(groups, learner.state_dict()["optimizer"]["param_groups"], strict=True):
            if known.keys() != group.keys():
                raise KeyError(*sorted(known.keys() ^ group.keys()))
        if tally.step != saved.step:
            raise ValueError(f"it tells of step {tally.step}")
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"state.json in {saved.folder} is not what a training saves ({type(error).__name__}: {told}). Move that folder "
            "elsewhere to go on from the checkpoint before it, if there is one."
        ) from error
    return tally


def _workers(recipe: Recipe, processes: Processes) -> int:
    """As many as asked for; else the processors that computing leaves over, shared by all processes."""
    if recipe.workers is not None:
        return recipe.workers
    return default_workers(processes=processes.on_this_machine, computing=1)


def _looked(model: Network, subject: Subject[Any], recipe: Recipe, processes: Processes) -> Judgement | None:
    """What the first process finds in the pictures held out; the others wait for it."""
    if not processes.is_first:
        return None
    return subject.judge(model, device=processes.device, workers=_workers(recipe, processes))


def _closed(plan: Plan, tally: _Tally, judgement: Judgement | None) -> Epoch:
    """The end of a stretch; what was added up begins anew."""
    mean = tally.loss / tally.steps
    value = -mean if judgement is None else judgement.value
    best = value >= tally.best
    tally.loss, tally.steps, tally.best = 0.0, 0, max(value, tally.best)
    return Epoch(
        epoch=plan.epoch(tally.step),
        step=tally.step,
        loss=mean,
        seconds=tally.seconds,
        skipped=tally.skipped,
        held_out=None if judgement is None else dict(judgement.numbers),
        line=None if judgement is None else judgement.line,
        best=best,
    )


def _told(recipe: Recipe, pictures: Pictures, plan: Plan, tally: _Tally, judgement: Judgement | None) -> Training:
    """What the record says of the weights as they are."""
    judged: dict[str, Any] = {}
    if judgement is not None:
        judged = {"judged_by": judgement.data, "judged": judgement.count, **judgement.recorded}
    return Training(
        data=pictures.name,
        pictures=len(pictures),
        recipe=recipe.name,
        steps=tally.step,
        epochs=plan.epoch(tally.step),
        date=datetime.date.today().isoformat(),
        **judged,
    )


def _not_finite(step: int, plan: Plan, loss: float, norm: float, rate: float, keeper: Keeper) -> TrainingError:
    what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient's norm became {norm}"
    saved = ""
    if keeper.out is not None:
        before = keeper.saved_until()
        safe = "No checkpoint was written yet" if before is None else f"The checkpoint of step {before} is from before"
        saved = f" {safe}; with other options, give another folder than {keeper.out}."
    return TrainingError(
        f"The {what} at step {step} of {plan.steps} (learning rate {rate:.2g}). Lower the learning rate, lengthen the "
        f"warm-up, clip the gradient, or look for pictures whose pixels are not finite numbers.{saved}"
    )
