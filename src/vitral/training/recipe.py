"""A recipe: every choice of a training in one frozen page of plain values, to be read, changed and written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from vitral.base.config import check_choices, value_of
from vitral.base.numbers import as_integer, real_number, whole_number
from vitral.data.augment.chain import Augmentation
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.pictures import BadPictures
from vitral.data.segment_augment import SegmentAugmentation
from vitral.data.segments import SegmentKind
from vitral.data.transforms import Interpolation
from vitral.errors import UnknownNameError, UsageError
from vitral.tasks.classification.loss import Objective
from vitral.tasks.detection.loss import SetLoss
from vitral.tasks.segmentation.loss import MapLoss, MaskLoss
from vitral.training.optim import OptimizerName
from vitral.training.schedule import ScheduleKind

__all__ = ["Initialisation", "Precision", "Recipe", "TaskName", "changed", "option_names", "options_of"]

TaskName = Literal["classification", "detection", "segmentation"]
"""What there are trainings for: the class of a picture, the objects in it, or what its pixels show."""

Precision = Literal["fp32", "bf16"]
Initialisation = Literal["default", "xavier"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every choice of a training.

    The data are not part of it: they are given beside it, so that one recipe serves many folders.

    Attributes:
        name: what the recipe is called.
        task: what is trained for; the objective and the augmentation are those of the task.
        segments: of segmentation, what of the pixels is taught: "semantic", "instance" or "panoptic"; None: what the
            pictures say first.
        model: a network of the catalogue, to start from fresh weights, or a checkpoint (a folder, a file or a Hub id), whose
            head is replaced by one for the classes of the data.
        backbone: a checkpoint whose weights the network's backbone begins with; None for fresh ones.
        network: fields of the network's configuration that differ from the published ones.
        image_size: (height, width) of the input in pixels; None for the model's own. Positions of a checkpoint are
            carried over to it.
        initialisation: where fresh weights start: "default" as the model's page says, "xavier" as the ViT paper's code does,
            which suits narrow networks (Glorot and Bengio 2010, equation 16).
        mean: per channel, what is subtracted from pixels in [0, 1]; None for the model's own.
        std: per channel, what they are then divided by; None for the model's own.
        filter: what pictures are resized by when the trained model is judged and used; None for the model's own.
        crop_share: how they are cut then: their middle, this share of what the shorter side is resized to (timm calls
            it crop_pct); 1 for the largest square. None for the model's own way.

        epochs: how often the training sees as many pictures as there are.
        batch_size: pictures to a step of the optimiser, over all processes and parts together.
        accumulate: parts a batch is computed in, one after the other, where it does not fit into memory at once.
        seed: fixes the first weights, the order, the augmentation and the model's own randomness.

        optimizer: "adamw" (Loshchilov and Hutter 2019), "sgd" with momentum, or "lamb" (You et al. 2020).
        learning_rate: the peak, for the whole batch; nothing scales it behind your back.
        momentum: of SGD, and the first beta of the others.
        beta2: the second beta of AdamW and LAMB.
        weight_decay: on matrices only; norms, biases, positions and tokens are left alone.
        layer_decay: factor on the learning rate per layer from the head down (Clark et al. 2020); 1 for none.
        backbone_rate: factor on the learning rate of the network's backbone, which may have learned already.
        schedule: how the learning rate falls after the warm-up.
        drop_epochs: for the schedule "step": after so many epochs the learning rate drops; None for the others.
        drop_factor: by which it is multiplied there.
        warmup_epochs: over which it rises from near zero.
        final_rate: the share of the peak at which the fall ends.
        clip: the largest norm of the gradient; None for no clipping.
        frozen_depth: how much of the network stays as it is, from the input: 1 the embedding, 2 the first block as well, and
            so on; "body" is all but the last norm and the head.

        objective: what is made small.
        teacher: the checkpoint that distillation learns from.
        drop_path: stochastic depth of the last block, rising linearly from the first; None for the model's own.
        ema: decay of the moving average of the weights, which is then what is evaluated and kept; None for none.

        augment: what happens to the pictures.

        precision: "fp32", or "bf16": products in bfloat16, weights and sums in float32.
        compile: whether the model is compiled first; pays on a GPU, after a minute.
        checkpointing: whether blocks are computed again for the gradient instead of kept: a third slower, far less memory.
        workers: processes that read; 0 to read in between, None for one per processor beyond the first, up to 8.
        bad_pictures: what a picture that cannot be read does: "refuse" ends the training, "skip" leaves it out.
        evaluate_every: epochs between two looks at the pictures held out.
        save_every: epochs between two checkpoints; 0.1 is ten of them each epoch.
        keep: checkpoints to keep, besides the best model.

    Raises:
        UnknownNameError: a choice that is none.
        UsageError: a value of another type than its annotation's, or a number out of its range.
    """

    name: str = "custom"
    task: TaskName = "classification"
    segments: SegmentKind | None = None
    model: str = "vit_s16"
    backbone: str | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    initialisation: Initialisation = "default"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    filter: Interpolation | None = None
    crop_share: float | None = None

    epochs: float = 100.0
    batch_size: int = 128
    accumulate: int = 1
    seed: int = 0

    optimizer: OptimizerName = "adamw"
    learning_rate: float = 5e-4
    momentum: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    backbone_rate: float = 1.0
    schedule: ScheduleKind = "cosine"
    drop_epochs: tuple[float, ...] | None = None
    drop_factor: float = 0.1
    warmup_epochs: float = 5.0
    final_rate: float = 0.0
    clip: float | None = None
    frozen_depth: int | Literal["body"] = 0

    objective: Objective | SetLoss | MapLoss | MaskLoss = field(default_factory=Objective)
    teacher: str | None = None
    drop_path: float | None = None
    ema: float | None = None

    augment: Augmentation | ObjectAugmentation | SegmentAugmentation = field(default_factory=Augmentation)

    precision: Precision = "fp32"
    compile: bool = False
    checkpointing: bool = False
    workers: int | None = None
    bad_pictures: BadPictures = "refuse"
    evaluate_every: float = 1.0
    save_every: float = 1.0
    keep: int = 2

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("batch_size", "accumulate", "keep"):
            if whole_number(name, getattr(self, name)) > 1_000_000:
                raise UsageError(f"{name} must be at most 1,000,000; {getattr(self, name)} came.")
        if whole_number("seed", self.seed, least=0) >= 2**63:
            raise UsageError(f"seed must be less than 2**63; {self.seed} came.")
        if self.workers is not None:
            whole_number("workers", self.workers, least=0)
        if self.frozen_depth != "body":
            whole_number("frozen_depth", self.frozen_depth, least=0)
        for name, (least, most, ends) in _RANGES.items():
            number = getattr(self, name)
            if number is None:
                continue
            too_low = real_number(name, number) < least or (ends[0] == "(" and number == least)
            if too_low or number > most or (ends[1] == ")" and number == most):
                raise UsageError(f"{name} must be a number in {ends[0]}{least:g}, {most:g}{ends[1]}; {number!r} came.")
        for name, kinds in _PARTS[self.task].items():
            if not isinstance(getattr(self, name), kinds):
                came, wanted = type(getattr(self, name)).__name__, " or ".join(kind.__name__ for kind in kinds)
                raise UsageError(f"{name} of a recipe for {self.task} must be of type {wanted}; a {came} came.")
        if self.segments is not None and self.task != "segmentation":
            raise UsageError(
                f"segments is for segmentation, and {self.name} is a recipe for {self.task}. Say task='segmentation' "
                "(--task segmentation) too."
            )
        distils = isinstance(self.objective, Objective) and self.objective.distillation != "none"
        if distils != (self.teacher is not None):
            raise UsageError("distillation needs a teacher, and a teacher is for distillation: give both or neither.")
        drops = self.drop_epochs or ()
        if bool(drops) != (self.schedule == "step") or any(not 0 < real_number("drop_epochs", one) < 1e6 for one in drops):
            raise UsageError(
                f"drop_epochs are the epochs, more than 0, at which the schedule 'step' falls, and belong to no other; "
                f"{self.drop_epochs} came with {self.schedule!r}."
            )


_ENDLESS = float("inf")

# Least, most, and which of them are allowed: a square bracket includes its end, a round one does not.
_RANGES: dict[str, tuple[float, float, str]] = {
    "epochs": (0.0, 1e6, "(]"),
    "crop_share": (0.1, 1.0, "[]"),
    "learning_rate": (0.0, 1e3, "[]"),
    "momentum": (0.0, 1.0, "[)"),
    "beta2": (0.0, 1.0, "[)"),
    "weight_decay": (0.0, 1e3, "[]"),
    "layer_decay": (1e-3, 1.0, "[]"),
    "backbone_rate": (0.0, 1e3, "[]"),
    "drop_factor": (0.0, 1.0, "(]"),
    "warmup_epochs": (0.0, 1e6, "[]"),
    "final_rate": (0.0, 1.0, "[]"),
    "clip": (0.0, _ENDLESS, "()"),
    "drop_path": (0.0, 1.0, "[)"),
    "ema": (0.0, 1.0, "[)"),
    "evaluate_every": (0.0, _ENDLESS, "()"),
    "save_every": (0.0, _ENDLESS, "()"),
}


# Parts of a recipe whose fields are options like its own, by task: of which types they may be, the usual one first.
_PARTS: dict[str, dict[str, tuple[type, ...]]] = {
    "classification": {"objective": (Objective,), "augment": (Augmentation,)},
    "detection": {"objective": (SetLoss,), "augment": (ObjectAugmentation,)},
    "segmentation": {"objective": (MapLoss, MaskLoss), "augment": (SegmentAugmentation, ObjectAugmentation)},
}
_OWN = tuple(one.name for one in fields(Recipe) if one.name not in ("name", "network", "objective", "augment"))


def option_names(task: TaskName | None = None) -> tuple[str, ...]:
    """The name of every option of a task's recipes, those of every objective and augmentation it can have among them.

    Args:
        task: which; None for all of them together.
    """
    names = dict.fromkeys(_OWN)
    for each in (task,) if task else get_args(TaskName):
        for kinds in _PARTS[each].values():
            for kind in kinds:
                names |= dict.fromkeys(_hints(kind()))
    return tuple(names)


def options_of(recipe: Recipe) -> dict[str, Any]:
    """Every option and its value, flat, ready for JSON; fields of the network are called "network.depth" and so on."""
    told: dict[str, Any] = {one.name: getattr(recipe, one.name) for one in fields(recipe)}
    network = {f"network.{name}": value for name, value in told.pop("network").items()}
    for part in _PARTS[recipe.task]:
        told |= _values(told.pop(part))
    return {name: _plain(one) for name, one in (told | network).items()}


def changed(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """A recipe with some options changed by name.

    Args:
        recipe: the one to start from.
        options: name → value, or the value as text, as a command line has it ("0.1", "none", "0.2,1"). Names are those of
            `option_names` for the recipe's task, with "-" or "_"; "network.depth" is a field of the network's configuration,
            "network.backbone.norm" one of a configuration within it. Another task comes with its own objective and
            augmentation.

    Raises:
        UnknownNameError: no such option; the message names the nearest.
        UsageError: a value of another type than the option's, or out of its range.
    """
    recipe = _for_task(recipe, value_of(TaskName, options.get("task", recipe.task), "task"))
    homes = {"": {name: kind for name, kind in get_type_hints(Recipe).items() if name not in ("objective", "augment")}}
    homes |= {part: _hints(getattr(recipe, part)) for part in _PARTS[recipe.task]}
    known = (*_OWN, *(name for part in _PARTS[recipe.task] for name in homes[part]))
    new: dict[str, dict[str, Any]] = {home: {} for home in homes}
    network = dict(recipe.network)
    for given, value in options.items():
        name = given.replace("-", "_")
        if name == "image_size" and as_integer(value_of(None, value, given)) is not None:
            value = (value_of(int, value, given),) * 2  # one number for squares
        if name in ("network.image_size", "network.num_classes"):
            raise UsageError(f"{given} is not set so: --image-size is an option of its own, and the data say the classes.")
        if name.startswith("network."):
            network[name.removeprefix("network.")] = value_of(None, value, given)
            continue
        if name not in known:
            raise UnknownNameError("option of a training", given, (*known, "network.…"))
        home = next(home for home, hints in homes.items() if name in hints)
        new[home][name] = value_of(homes[home][name], value, given)
    inner = {home: _replaced(getattr(recipe, home), new[home]) for home in _PARTS[recipe.task]}
    return replace(recipe, **new[""], **inner, network=network)


def _for_task(recipe: Recipe, task: TaskName) -> Recipe:
    """The recipe for another task: with that one's usual objective and augmentation."""
    parts = {name: kinds[0]() for name, kinds in _PARTS[task].items()}
    return recipe if task == recipe.task else replace(recipe, task=task, **parts)


def _hints(part: Any) -> dict[str, Any]:
    """The fields of a part by the names of their options, and their annotations: "costs.l1" is within a part's part.

    How points are drawn and the like, which no text could say, is no option.
    """
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(type(part)).items():
        value = getattr(part, name)
        if is_dataclass(value):
            found |= {f"{name}.{inner}": own for inner, own in _hints(value).items()}
        elif not callable(value):
            found[name] = hint
    return found


def _values(part: Any) -> dict[str, Any]:
    """The values of a part by the names of their options."""
    found: dict[str, Any] = {}
    for name in _hints(part):
        value = part
        for field_name in name.split("."):
            value = getattr(value, field_name)
        found[name] = value
    return found


def _replaced(part: Any, values: Mapping[str, Any]) -> Any:
    """A part with some values changed, by the names of their options."""
    own = {name: value for name, value in values.items() if "." not in name}
    for name in {name.split(".")[0] for name in values if "." in name}:
        within = {inner.removeprefix(f"{name}."): value for inner, value in values.items() if inner.startswith(f"{name}.")}
        own[name] = _replaced(getattr(part, name), within)
    return replace(part, **own)


def _plain(value: Any) -> Any:
    """A value as JSON takes it: of a network, a configuration within the configuration too."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    return list(map(_plain, value)) if isinstance(value, tuple) else value
