"""Training in one visible function.

```
for each step:                            the learning rate is a function of the step
    for each piece of its batch:          what stands in it is a function of (seed, position)
        augment → model → loss → gradients
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

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.chance import seed_of
from vitral.base.config import restored
from vitral.base.device import default_workers
from vitral.data.augment.chain import TrainingInput
from vitral.data.loader import Batch, Share, batches
from vitral.data.pictures import PictureSet
from vitral.errors import CheckpointError, TrainingError, UsageError
from vitral.models.network import Network
from vitral.models.record import Training
from vitral.training.checkpoint import Saved
from vitral.training.evaluate import Evaluation, check_fits, evaluate
from vitral.training.keeper import Keeper
from vitral.training.learner import Learner
from vitral.training.memory import recomputed
from vitral.training.optim import training_mode
from vitral.training.plan import Plan
from vitral.training.processes import Processes
from vitral.training.recipe import Recipe
from vitral.training.schedule import Schedule
from vitral.training.start import Teacher
from vitral.training.stopping import Stop, listening

__all__ = ["Epoch", "Step", "Trained", "fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the optimiser.

    Attributes:
        step: which one, from 1.
        steps: how many there will be.
        epoch: how often as many pictures were seen as there are.
        loss: the mean over the pictures of the batch.
        learning_rate: the rate it was taken with.
        norm: of the whole gradient, before clipping.
        seconds: spent in training so far, also before an interruption; evaluating and saving are not counted.
        pictures_per_second: of this step.
    """

    step: int
    steps: int
    epoch: float
    loss: float
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
        held_out: what the pictures held out say ("top1", "top5", "loss"), where there are any.
        best: whether no look before was better.
    """

    epoch: float
    step: int
    loss: float
    seconds: float
    skipped: int
    held_out: dict[str, float] | None
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """What a training ends with.

    Attributes:
        model: the network of the last step, in evaluation mode; its weights are the averaged ones, if the recipe averages.
        steps: taken in all.
        seconds: spent in training in all.
        epochs: the stretches of this run, without those before an interruption.
        evaluation: of the last look, where pictures were held out.
        stopped: the signal that ended it early, or None.
    """

    model: Network
    steps: int
    seconds: float
    epochs: tuple[Epoch, ...]
    evaluation: Evaluation | None
    stopped: str | None

    def __repr__(self) -> str:
        name = self.model.record.architecture or type(self.model).__name__
        judged = "" if self.evaluation is None else f", top-1 {self.evaluation.top1:.1%} of {len(self.evaluation)} pictures"
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
    pictures: PictureSet,
    recipe: Recipe,
    *,
    held_out: PictureSet | None = None,
    teacher: Teacher | None = None,
    out: Path | None = None,
    device: str | int | torch.device | None = None,
    watch: Callable[[Step | Epoch], None] | None = None,
) -> Trained:
    """Train a classifier in place.

    The same model, pictures and recipe give the same weights, in one go or with interruptions, whatever the number of
    workers: to the bit on one machine's processors with as many threads (a GPU adds up in changing order). Several processes
    give the same up to the order of sums, unless the model itself draws random numbers (dropout, stochastic depth), which
    each process does for its own part.

    Args:
        model: as `training.start.model_for` makes it: its head is for the classes of the pictures, and its record says how
            they are prepared.
        pictures: to train on.
        recipe: every choice.
        held_out: to be measured on; the best weights are chosen by them.
        teacher: what distillation learns from.
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
    plan = Plan.of(recipe, len(pictures))
    rate_at = Schedule(kind=recipe.schedule, steps=plan.steps, warmup_steps=plan.warmup_steps, floor=recipe.final_rate)
    prepare = _input_of(model, recipe)
    if held_out is not None:
        check_fits(model, held_out)  # now rather than after the first epoch
    learner = Learner.of(model.to(processes.device), recipe)
    keeper = Keeper(out, recipe, pictures, held_out, writes=processes.is_first)
    tally, asked = _Tally(), 0.0
    epochs: list[Epoch] = []
    evaluation: Evaluation | None = None
    with ExitStack() as stack:
        stack.enter_context(keeper.alone())
        if teacher is not None:
            teacher.to(processes.device)
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
        coming = batches(
            pictures,
            prepare,
            share,
            seed=recipe.seed,
            steps=range(tally.step, plan.steps),
            workers=_workers(recipe, processes),
            bad_pictures=recipe.bad_pictures,
            pin_memory=processes.device.type == "cuda",
        )
        clock = time.perf_counter()
        for pieces in processes.agreed(coming):
            rate = recipe.learning_rate * rate_at(tally.step)
            gathered = _gradient(network, pieces, recipe, teacher, processes, tally.step)
            norm = learner.gradient_norm()
            left_out = [sentence for batch in pieces for sentence in batch.skipped]
            total, skipped, asked = processes.sums(gathered, len(left_out), stop.asked is not None)  # all stop together
            loss = total * recipe.batch_size / (recipe.batch_size - skipped)  # the mean over those that were read
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
                    evaluation = _looked(model, held_out, recipe, processes)
                    epochs.append(_closed(plan, tally, evaluation))
                    model.record = replace(model.record, training=_told(recipe, pictures, plan, tally, evaluation))
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
            evaluation = _looked(model, held_out, recipe, processes)
            model.record = replace(model.record, training=_told(recipe, pictures, plan, tally, evaluation))
        keeper.keep_last(model)
    processes.wait()
    return Trained(
        model=model,
        steps=tally.step,
        seconds=tally.seconds,
        epochs=tuple(epochs),
        evaluation=evaluation,
        stopped=None if finished else stop.asked or "a signal to another process",
    )


def _gradient(
    network: nn.Module, pieces: list[Batch], recipe: Recipe, teacher: Teacher | None, processes: Processes, step: int
) -> Float[Tensor, ""]:
    """Gather the gradient of a batch in the parameters, piece by piece.

    Returns:
        The losses of the pictures that this process has read, added up and divided by the size of the whole batch.
    """
    gathered = torch.zeros((), device=processes.device)
    for number, batch in enumerate(pieces):
        torch.manual_seed(seed_of(recipe.seed, step, 3, number, processes.rank))
        pixels = batch.pixels.to(processes.device, non_blocking=True)
        targets = batch.targets.to(processes.device, non_blocking=True)
        last = number == len(pieces) - 1
        with nullcontext() if last else processes.apart(network):
            with torch.autocast(processes.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                output = network(pixels)
                taught = teacher(pixels) if teacher is not None else None
            part = recipe.objective(output, targets, taught).sum() / recipe.batch_size
            (part * processes.count).backward()  # several processes average what they find
        gathered += part.detach()
    return gathered


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


def _input_of(model: Network, recipe: Recipe) -> TrainingInput:
    if model.record.preprocessing is None:
        raise UsageError("Nobody said how pictures are prepared for this model; give its record a Preprocessing(…).")
    return TrainingInput(recipe.augment, model.record.preprocessing, model.config.image_size)


def _workers(recipe: Recipe, processes: Processes) -> int:
    """As many as asked for; else the processors that computing leaves over, shared by all processes."""
    if recipe.workers is not None:
        return recipe.workers
    return default_workers(processes=processes.on_this_machine, computing=1)


def _looked(model: Network, held_out: PictureSet | None, recipe: Recipe, processes: Processes) -> Evaluation | None:
    """What the first process finds in the pictures held out; the others wait for it."""
    if held_out is None or not processes.is_first:
        return None
    return evaluate(
        model,
        held_out,
        batch_size=recipe.batch_size,
        device=processes.device,
        workers=_workers(recipe, processes),
        bad_pictures=recipe.bad_pictures,
    )


def _closed(plan: Plan, tally: _Tally, evaluation: Evaluation | None) -> Epoch:
    """The end of a stretch; what was added up begins anew."""
    mean = tally.loss / tally.steps
    found = None if evaluation is None else {"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.nll}
    value = -mean if found is None else found["top1"]
    best = value >= tally.best
    tally.loss, tally.steps, tally.best = 0.0, 0, max(value, tally.best)
    return Epoch(
        epoch=plan.epoch(tally.step),
        step=tally.step,
        loss=mean,
        seconds=tally.seconds,
        skipped=tally.skipped,
        held_out=found,
        best=best,
    )


def _told(recipe: Recipe, pictures: PictureSet, plan: Plan, tally: _Tally, evaluation: Evaluation | None) -> Training:
    """What the record says of the weights as they are."""
    return Training(
        data=pictures.name,
        pictures=len(pictures),
        recipe=recipe.name,
        steps=tally.step,
        epochs=plan.epoch(tally.step),
        date=datetime.date.today().isoformat(),
        judged_by=None if evaluation is None else evaluation.data,
        judged=0 if evaluation is None else len(evaluation),
        top1=None if evaluation is None else evaluation.top1,
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
