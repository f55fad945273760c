"""Several networks held against each other: what they cost, how fast they answer, and what they learn in the same time.

```
names → contenders → for each size:  counted (models.profile), timed in turns, weighed in processes of their own
                   → on pictures:    each trained from the same recipe for as many steps, or for as long
      → a Comparison: tables, the front that nothing beats, how costs grow with the picture
```

A contender that fails at a size is named with the reason there, and the others go on.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from vitral.base.config import value_of
from vitral.base.device import resolve_device
from vitral.base.numbers import real_number, whole_number
from vitral.data.splits import Splits
from vitral.errors import UnknownNameError, UsageError, VitralError
from vitral.models.catalogue import CATALOGUE, configured
from vitral.models.network import Network
from vitral.models.profile import Cost, profile
from vitral.training.classification import ClassificationSubject
from vitral.training.footprint import network_of, peak_memory
from vitral.training.loop import Epoch, Step, fit
from vitral.training.plan import Plan
from vitral.training.recipe import Recipe
from vitral.training.start import model_for

__all__ = [
    "QUANTITIES",
    "Budget",
    "Compared",
    "Comparison",
    "Contender",
    "Failed",
    "Learned",
    "Quantity",
    "Speed",
    "contender_of",
    "contenders_of",
    "exponent",
    "learn",
    "machine",
    "measure",
]

Budget = Literal["steps", "seconds"]
"""What is the same for all in training: the steps of the optimiser, and so the pictures seen; or the time."""

Quantity = Literal[
    "parameters", "multiply_adds", "activations", "seconds_per_picture", "pictures_per_second", "memory", "top1"
]

QUANTITIES: dict[Quantity, tuple[str, Literal["less", "more"]]] = {
    "parameters": ("parameters", "less"),
    "multiply_adds": ("multiply-adds per picture", "less"),
    "activations": ("activations per picture", "less"),
    "seconds_per_picture": ("seconds per picture", "less"),
    "pictures_per_second": ("pictures per second", "more"),
    "memory": ("peak memory in bytes", "less"),
    "top1": ("top-1 accuracy", "more"),
}
"""Quantity → what it is called, and whether less or more of it is better."""

_LADDER = (1, 2, 4)
"""Sizes at which costs are counted besides, in multiples of the smallest: growth needs more than one point."""

_TURN = 0.05  # seconds that a turn of timing lasts at least, up to
_MOST = 20  # calls
_TRIED = 6  # steps of a training that tell how long one takes; the first two are not counted


# -- who is compared --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A network to be compared.

    Attributes:
        name: as it was asked for.
        model: a name of the catalogue, or a checkpoint: a folder, a file, a Hub id.
        fields: of the network's configuration, that differ from the published ones.
    """

    name: str
    model: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        """Whether its weights are random."""
        return self.model in CATALOGUE


def contender_of(name: str) -> Contender:
    """A contender from a text: "vit_ti16", "vit_ti16:patch_size=4,depth=6", or a checkpoint.

    Raises:
        UnknownNameError: no network, file or Hub repository can be called so, or the network has no such field.
        UsageError: fields that are written or filled wrongly, or that are not for a contender to set.
    """
    model, colon, told = name.partition(":")
    if model not in CATALOGUE:
        if Path(name).exists() or ("/" in name and "=" not in told):
            return Contender(name=name, model=name)
        if "/" in model or Path(model).exists():
            raise UsageError(f"Fields are for networks of the catalogue; {model} is a checkpoint, and is what it is.")
        raise UnknownNameError("model to compare (and no such file)", model, CATALOGUE)
    fields: dict[str, Any] = {}
    for part in _between_commas(told) if colon else ():
        option, equals, value = (piece.strip() for piece in part.partition("="))
        option = option.replace("-", "_")
        if not (option and equals and value):
            raise UsageError(f"Fields are given as NAME:field=value,field=value; {part!r} of {name!r} is none.")
        if option in fields:
            raise UsageError(f"{option} was given twice in {name!r}.")
        if option in ("image_size", "num_classes"):
            raise UsageError(f"{option} is not for one network to set: all have the same sizes, and data say the classes.")
        fields[option] = value_of(None, value, option)
    configured(CATALOGUE[model].config, fields)
    return Contender(name=name, model=model, fields=fields)


def _between_commas(text: str) -> list[str]:
    """The parts of a text between its commas, but for those inside brackets."""
    parts, inside = [""], 0
    for sign in text:
        inside += (sign in "([") - (sign in ")]")
        if sign == "," and inside == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def contenders_of(names: Iterable[str]) -> tuple[Contender, ...]:
    """Several contenders.

    Raises:
        UsageError: none, or one twice; and see `contender_of`.
    """
    names = list(names)
    if not names:
        raise UsageError("Say which networks to compare: vitral compare vit_ti16 cct_7_7x2_224")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name!r} was given twice.")
    return tuple(map(contender_of, names))


# -- what comes of it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a network answers.

    Attributes:
        size: height and width of the pictures in pixels.
        batch: how many it sees at once.
        seconds: for such a batch, the median over turns.
        memory: bytes needed at most, weights included; None where the system does not tell.
    """

    size: tuple[int, int]
    batch: int
    seconds: float
    memory: int | None = None

    @property
    def pictures_per_second(self) -> float:
        """Pictures answered in a second."""
        return self.batch / self.seconds


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a network learnt within the common budget.

    Attributes:
        size: height and width of the pictures in pixels.
        fresh: whether it began with random weights; else with those of its checkpoint.
        top1: the share of the pictures held out that it names rightly.
        low: where 95 % of such shares lie, were other pictures drawn: the lower end,
        high: and the upper.
        loss: the cross-entropy of the pictures held out, in nats.
        judged: how many those are.
        steps: of the optimiser.
        epochs: how often it saw as many pictures as there are.
        seconds: of training, without judging.
    """

    size: tuple[int, int]
    fresh: bool
    top1: float
    low: float
    high: float
    loss: float
    judged: int
    steps: int
    epochs: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What a network could not do.

    Attributes:
        what: "counting", "timing", "memory" or "training".
        size: height and width of the pictures in pixels.
        batch: how many at once; None where that does not matter.
        reason: a sentence.
    """

    what: str
    size: tuple[int, int]
    batch: int | None
    reason: str

    @classmethod
    def of(cls, what: str, size: tuple[int, int], batch: int | None, error: Exception) -> Failed:
        """What an error says of it, in one line."""
        text = " ".join(str(error).split()) or "no reason was given"
        reason = text if isinstance(error, VitralError) else f"{type(error).__name__}: {text[:200]}"
        return cls(what=what, size=size, batch=batch, reason=reason)

    def __str__(self) -> str:
        at = f"{self.size[0]} × {self.size[1]}" + ("" if self.batch is None else f", {self.batch} at once")
        return f"{self.what} at {at}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All that is known of one network.

    Attributes:
        name: as it was asked for.
        costs: for one picture, at the sizes asked for and at larger ones, which tell how they grow; smallest first.
        speeds: by size and batch, as asked for.
        learned: what it learnt; None where nobody asked, or it failed.
        failed: what it could not do.
    """

    name: str
    costs: tuple[Cost, ...] = ()
    speeds: tuple[Speed, ...] = ()
    learned: Learned | None = None
    failed: tuple[Failed, ...] = ()

    def cost(self, size: tuple[int, int]) -> Cost | None:
        """What one picture of a size costs."""
        return next((one for one in self.costs if one.size == size), None)

    def speed(self, size: tuple[int, int], batch: int) -> Speed | None:
        """How fast such batches are answered."""
        return next((one for one in self.speeds if (one.size, one.batch) == (size, batch)), None)

    def growth(self, what: Literal["multiply_adds", "attention", "activations", "seconds"]) -> float | None:
        """The power of the number of pixels with which a cost grows; for seconds, those of the largest batch.

        None where it is known at one size only, or is nothing.
        """
        found: list[tuple[int, float]]
        if what == "seconds":
            most = max((one.batch for one in self.speeds), default=0)
            found = [(math.prod(one.size), one.seconds) for one in self.speeds if one.batch == most]
        else:
            found = [(math.prod(one.size), getattr(one, what)) for one in self.costs]
        return exponent(found)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        kinds: tuple[Literal["multiply_adds", "attention", "activations", "seconds"], ...] = (
            "multiply_adds",
            "attention",
            "activations",
            "seconds",
        )
        told = {
            "name": self.name,
            "costs": [asdict(one) for one in self.costs],
            "speeds": [asdict(one) | {"pictures_per_second": one.pictures_per_second} for one in self.speeds],
            "learned": None if self.learned is None else asdict(self.learned),
            "failed": [asdict(one) for one in self.failed],
            "growth": {kind: self.growth(kind) for kind in kinds},
        }
        return _listed(told)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Networks held against each other.

    Attributes:
        models: in the order asked for.
        sizes: (height, width) of the pictures in pixels, as asked for; the first one counts in `value` and in training.
        batches: pictures at once, as asked for; the largest counts in `value`.
        machine: where it was measured; see `machine`.
        training: the recipe, the pictures and the budget, ready for JSON; None where nothing was trained.
    """

    models: tuple[Compared, ...]
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    machine: Mapping[str, Any]
    training: Mapping[str, Any] | None = None

    def value(self, model: Compared, quantity: Quantity) -> float | None:
        """A quantity of a network at the first size, per picture in the largest batch; None where it is not known.

        Raises:
            UnknownNameError: no such quantity.
        """
        if quantity not in QUANTITIES:
            raise UnknownNameError("quantity", quantity, QUANTITIES)
        size = self.sizes[0]
        if quantity == "top1":
            return None if model.learned is None else model.learned.top1
        if quantity in ("parameters", "multiply_adds", "activations"):
            cost = model.cost(size)
            return None if cost is None else float(getattr(cost, quantity))
        speed = model.speed(size, max(self.batches))
        if speed is None:
            return None
        if quantity == "memory":
            return None if speed.memory is None else float(speed.memory)
        return speed.pictures_per_second if quantity == "pictures_per_second" else 1 / speed.pictures_per_second

    def front(self, across: Quantity = "multiply_adds", up: Quantity = "parameters") -> tuple[str, ...]:
        """The Pareto front: names of the networks that no other beats in one quantity without losing in the other.

        They come in the order of `across`, the best first. Networks that lack either quantity are left out; of two that
        are equal in both, both are in.

        Args:
            across: one quantity.
            up: the other.

        Raises:
            UnknownNameError: no such quantity.
        """
        found: list[tuple[float, float, str]] = []
        for model in self.models:
            first, second = self.value(model, across), self.value(model, up)
            if first is not None and second is not None:
                found.append((_less_is_better(across, first), _less_is_better(up, second), model.name))
        # From the best in one quantity on, only who is better in the other than all before is not beaten.
        front: list[tuple[float, float, str]] = []
        for one in sorted(found, key=lambda one: one[:2]):
            if not front or one[1] < front[-1][1] or one[:2] == front[-1][:2]:
                front.append(one)
        return tuple(name for *_, name in front)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        up: Quantity = "parameters" if all(model.learned is None for model in self.models) else "top1"
        across: tuple[Quantity, ...] = ("multiply_adds", "pictures_per_second")
        told = {
            "machine": dict(self.machine),
            "sizes": self.sizes,
            "batches": self.batches,
            "units": "multiply_adds: a multiplication and its addition are one; torch_flops: two; memory: bytes; per batch",
            "training": None if self.training is None else dict(self.training),
            "models": [model.to_dict() for model in self.models],
            "fronts": [{"across": one, "up": up, "names": self.front(one, up)} for one in across],
        }
        return _listed(told)


def _less_is_better(quantity: Quantity, value: float) -> float:
    return value if QUANTITIES[quantity][1] == "less" else -value


def _listed(value: Any) -> Any:
    """The same with lists in place of tuples, as JSON gives it back."""
    if isinstance(value, Mapping):
        return {name: _listed(one) for name, one in value.items()}
    return [_listed(one) for one in value] if isinstance(value, list | tuple) else value


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The p of y ∝ xᵖ that fits points (x, y) best, by least squares of their logarithms; None where nothing tells.

    Args:
        points: x and y, positive.
    """
    if len({x for x, _ in points}) < 2 or not all(x > 0 and y > 0 for x, y in points):
        return None
    x, y = np.log(np.array(points, np.float64)).T
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Where, when and with what something is measured."""
    processor = platform.processor() or platform.machine()
    told = Path("/proc/cpuinfo")
    if told.exists():
        named = [line.partition(":")[2].strip() for line in told.read_text().splitlines() if line.startswith("model name")]
        processor = named[0] if named else processor
    there = torch.device(device)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(there) if there.type == "cuda" else str(there),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


# -- counting and timing ----------------------------------------------------------------------------------------------


def measure(
    contenders: Sequence[Contender],
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    *,
    rounds: int = 5,
    memory: bool = True,
    device: str | int | torch.device | None = "cpu",
    watch: Callable[[str], None] | None = None,
) -> tuple[Compared, ...]:
    """Count what networks cost, time them in turns, and weigh them.

    All networks are in memory at once, and each round lets every one of them answer, so that a machine that slows down
    does so for all. In single precision, without gradients.

    Args:
        contenders: the networks.
        sizes: (height, width) of the pictures in pixels.
        batches: numbers of pictures at once.
        rounds: turns that each gets; the median counts.
        memory: whether memory is measured, in a process for each network and size.
        device: where to compute.
        watch: told what is being done.

    Raises:
        UsageError: sizes, batches or rounds that are none.
    """
    there = resolve_device(device)
    sizes = [(whole_number("size", high), whole_number("size", wide)) for high, wide in sizes]
    batches = [whole_number("batch", batch) for batch in batches]
    whole_number("rounds", rounds)
    if not sizes or not batches:
        raise UsageError("At least one size and one batch are needed.")
    told = watch or (lambda _: None)
    found = {one.name: Compared(name=one.name) for one in contenders}
    for size in sizes:
        networks = _counted(contenders, size, found, told)
        for network in networks.values():
            network.to(there)
        for batch in batches:
            _timed(networks, size, batch, rounds, there, found, told)
        networks.clear()  # before processes weigh them
        for one in contenders if memory else ():
            _weighed(one, size, found, str(there), told)
    smallest = min(sizes, key=math.prod)
    for one in contenders:
        _laddered(one, smallest, found, told)
    return tuple(found.values())


def _counted(
    contenders: Sequence[Contender], size: tuple[int, int], found: dict[str, Compared], told: Callable[[str], None]
) -> dict[str, Network]:
    """The networks that take pictures of a size, what each costs being noted."""
    networks = {}
    for one in contenders:
        told(f"{one.name} at {_side(size)}: counting")
        try:
            network = network_of(one.model, one.fields, size)
            cost = profile(network, size)
        except Exception as error:  # whatever it is, it is this network's own failure, and the others go on
            _note(found, one.name, "counting", size, None, error)
            continue
        networks[one.name] = network
        found[one.name] = replace(found[one.name], costs=(*found[one.name].costs, cost))
    return networks


def _laddered(one: Contender, smallest: tuple[int, int], found: dict[str, Compared], told: Callable[[str], None]) -> None:
    """Count what pictures of larger sizes would cost; a size that the network does not take is no failure here."""
    known = found[one.name]
    if not known.costs:
        return
    told(f"{one.name}: how it grows")
    costs = {cost.size: cost for cost in known.costs}
    for times in _LADDER:
        size = smallest[0] * times, smallest[1] * times
        if size in costs:
            continue
        try:
            with torch.device("meta") if one.fresh else torch.device("cpu"):
                costs[size] = profile(network_of(one.model, one.fields, size), size)
        except Exception:  # nobody asked for this size
            continue
    found[one.name] = replace(known, costs=tuple(sorted(costs.values(), key=lambda cost: math.prod(cost.size))))


def _timed(
    networks: dict[str, Network],
    size: tuple[int, int],
    batch: int,
    rounds: int,
    device: torch.device,
    found: dict[str, Compared],
    told: Callable[[str], None],
) -> None:
    """Let all networks answer in turns, and note the median of each."""
    pixels: dict[int, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {}
    calls: dict[str, int] = {}

    def turn(name: str, times: int) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            networks[name](pixels[networks[name].config.channels])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begun) / times

    names = list(networks)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if number and name not in seconds:  # failed before
                continue
            told(f"{name} at {_side(size)}, {batch} at once: turn {number} of {rounds}" if number else f"{name}: warming up")
            channels = networks[name].config.channels
            if channels not in pixels:
                pixels[channels] = torch.randn(batch, channels, *size, generator=generator).to(device)
            try:
                with torch.inference_mode():
                    took = turn(name, calls.get(name, 1))
                    if not number:  # the first call finds out how to be quick, the second is
                        took = turn(name, 1)
            except Exception as error:
                seconds.pop(name, None)
                _note(found, name, "timing", size, batch, error)
                continue
            if number:
                seconds[name].append(took)
            else:
                seconds[name], calls[name] = [], min(_MOST, max(1, math.ceil(_TURN / max(took, 1e-9))))
    for name, took_each in seconds.items():
        speed = Speed(size=size, batch=batch, seconds=statistics.median(took_each))
        found[name] = replace(found[name], speeds=(*found[name].speeds, speed))


def _weighed(
    one: Contender, size: tuple[int, int], found: dict[str, Compared], device: str, told: Callable[[str], None]
) -> None:
    """Note the memory that a network needs for the batches it was timed with."""
    known = found[one.name]
    batches = [speed.batch for speed in known.speeds if speed.size == size]
    if not batches:
        return
    told(f"{one.name} at {_side(size)}: weighing")
    try:
        threads = torch.get_num_threads()
        peaks = peak_memory(one.model, one.fields, size, batches, device=device, threads=threads)
    except Exception as error:
        _note(found, one.name, "memory", size, None, error)
        return
    speeds = tuple(replace(speed, memory=peaks.get(speed.batch)) if speed.size == size else speed for speed in known.speeds)
    found[one.name] = replace(known, speeds=speeds)


def _note(
    found: dict[str, Compared], name: str, what: str, size: tuple[int, int], batch: int | None, error: Exception
) -> None:
    found[name] = replace(found[name], failed=(*found[name].failed, Failed.of(what, size, batch, error)))


def _side(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


# -- learning ---------------------------------------------------------------------------------------------------------


def learn(
    contender: Contender,
    splits: Splits,
    recipe: Recipe,
    size: tuple[int, int],
    *,
    budget: Budget = "steps",
    seconds: float | None = None,
    device: str | int | torch.device | None = None,
    watch: Callable[[Step | Epoch], None] | None = None,
) -> Learned:
    """Train a network by a recipe that all share, and judge it by the pictures held out.

    Steps being equal, every network sees the same pictures in the same order and augmentation as often as the recipe says.
    Time being equal, a few steps are tried first, and the recipe is given as many epochs as fit into it; its warm-up keeps
    its share, and its learning rate falls to the end, as it would not if a clock broke off.

    Args:
        contender: the network; a checkpoint begins with its weights and a fresh head.
        splits: pictures to train on, and to judge by.
        recipe: every choice but the network and the size.
        size: (height, width) of the pictures in pixels.
        budget: what is equal for all.
        seconds: how long each may train, where time is equal.
        device: where to compute.
        watch: told every step.

    Raises:
        UsageError: no pictures are held out, a budget without its seconds, or a network that takes no such size.
        TrainingError: the loss is not finite.
    """
    if budget not in get_args(Budget):
        raise UnknownNameError("budget", budget, get_args(Budget))
    if (budget == "seconds") != (seconds is not None):
        raise UsageError("A budget of time needs its seconds, and one of steps takes none: the recipe's epochs say them.")
    if splits.held_out is None:
        raise UsageError(f"{splits.train.name} holds no pictures out to judge by; say which, or what share.")
    own = replace(recipe, model=contender.model, network=dict(contender.fields), image_size=size)
    if seconds is not None:
        if real_number("seconds", seconds) <= 0:
            raise UsageError(f"seconds must be more than 0; {seconds!r} came.")
        own = _for_time(own, splits, seconds, device)
    own = replace(own, evaluate_every=own.epochs, save_every=own.epochs)
    subject = ClassificationSubject(splits.train, own, splits.held_out)
    trained = fit(model_for(own, splits.train.classes), subject, own, device=device, watch=watch)
    judged = trained.evaluation
    if judged is None:  # one process of several, which is not the one that judges
        raise UsageError("Comparing runs in one process; start it without accelerate.")
    low, high = judged.intervals()["top1"]
    return Learned(
        size=size,
        fresh=contender.fresh,
        top1=judged.top1,
        low=low,
        high=high,
        loss=judged.nll,
        judged=len(judged),
        steps=trained.steps,
        epochs=Plan.of(own, len(splits.train)).epoch(trained.steps),
        seconds=trained.seconds,
    )


def _for_time(recipe: Recipe, splits: Splits, seconds: float, device: str | int | torch.device | None) -> Recipe:
    """The recipe with as many epochs as a training of so many seconds has time for, and its warm-up in proportion."""
    count = len(splits.train)
    took: list[float] = []

    def note(event: Step | Epoch) -> None:
        if isinstance(event, Step):
            took.append(recipe.batch_size / event.pictures_per_second)

    short = replace(recipe, epochs=_TRIED * recipe.batch_size / count, warmup_epochs=0.0)
    short = replace(short, evaluate_every=short.epochs, save_every=short.epochs)
    subject = ClassificationSubject(splits.train, short)
    fit(model_for(short, splits.train.classes), subject, short, device=device, watch=note)
    steps = max(1, int(seconds / statistics.median(took[2:])))
    epochs = steps * recipe.batch_size / count
    return replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs / recipe.epochs, 1.0) * epochs)
