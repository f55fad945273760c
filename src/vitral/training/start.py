"""Where a training starts from: fresh weights of the catalogue, or a checkpoint whose head and size are changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.chance import seed_of
from vitral.checkpoints.load import load_model
from vitral.data.pictures import PictureSet
from vitral.data.segment_augment import SegmentAugmentation
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import CATALOGUE, configured, create_model, enough_memory
from vitral.models.network import Network, backbone_of
from vitral.training.recipe import Recipe

__all__ = ["Teacher", "model_for", "teacher_for"]


def model_for(recipe: Recipe, classes: tuple[str, ...]) -> Network:
    """The model a recipe starts from, with a new head for the classes and a record that says how pictures are prepared.

    The same recipe gives the same weights; the caller's random state is left as it was.

    Raises:
        UnknownNameError: no such network, or no such field of its configuration.
        UsageError: the network takes no such value, or memory does not suffice for it.
        CheckpointError: the checkpoint cannot be read.
    """
    size = recipe.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(recipe.seed, 0))
        if recipe.model in CATALOGUE:
            fields = dict(recipe.network) | ({} if size is None else {"image_size": size}) | _paths(recipe)
            model: Any = create_model(recipe.model, num_classes=len(classes), **fields)
            if recipe.initialisation == "xavier":
                model.apply(_xavier)
            if recipe.backbone is not None:
                _begin_with(model, recipe.backbone)
        else:
            model = _loaded(recipe)
            model.reset_head(len(classes))
            if size is not None and size != model.config.image_size:
                with enough_memory(type(model), replace(model.config, image_size=size)):
                    model = model.resized(size)
    model.record = replace(model.record, labels=classes, preprocessing=_prepared(recipe, model), problem="single_label")
    return model.train()


@torch.no_grad()
def _begin_with(model: Any, source: str) -> None:
    """Give a network's backbone the weights of a checkpoint, whose classifier is left behind.

    Where the checkpoint is of a network that has itself a backbone of that kind, it is that one's.

    Raises:
        UsageError: the network has no backbone, or one of another shape.
    """
    found = backbone_of(model)
    if found is None:
        raise UsageError(f"{type(model).__name__} has no backbone that could begin with the weights of {source}.")
    backbone: Any = found[1]
    learned: Any = load_model(source)
    within = backbone_of(learned)
    if within is not None and type(learned) is not type(backbone):
        learned = within[1]
    size = backbone.config.image_size
    if learned.config.image_size != size and learned.tables_at(learned.config.grid_of(size)):
        learned = learned.resized(size)  # positions are carried over to the other grid
    own, came = backbone.state_dict(), learned.state_dict()
    wrong = [name for name, tensor in own.items() if name not in came or came[name].shape != tensor.shape]
    wrong = [name for name in wrong if not name.endswith("num_batches_tracked")]
    if wrong:
        raise UsageError(
            f"The weights of {source} do not fit the backbone: {len(wrong)} of its {len(own)} tensors are missing or of "
            f"another shape, the first {wrong[0]}. Take a checkpoint of the same network, of the same size."
        )
    backbone.load_state_dict({name: came.get(name, tensor) for name, tensor in own.items()})


def _paths(recipe: Recipe) -> dict[str, float]:
    return {} if recipe.drop_path is None else {"drop_path": recipe.drop_path}


def _loaded(recipe: Recipe) -> Any:
    """A checkpoint's model, with the recipe's stochastic depth and other fields that hold no weights."""
    if not Path(recipe.model).exists() and "/" not in recipe.model:
        raise UnknownNameError("model to start from (and no such file)", recipe.model, CATALOGUE)
    model: Any = load_model(recipe.model)
    wanted = dict(recipe.network) | _paths(recipe)
    if not wanted:
        return model
    changed = type(model)(configured(model.config, wanted))
    try:
        changed.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"The weights of {recipe.model} do not fit a network with {', '.join(sorted(wanted))} changed; only fields "
            "without weights, such as drop_path and dropout, can differ from the checkpoint's."
        ) from error
    changed.record = model.record
    return changed


def _prepared(recipe: Recipe, model: Any) -> Preprocessing:
    """How pictures are prepared: as the model's record says, with what the recipe changes."""
    told: Preprocessing | None = model.record.preprocessing
    if told is None:
        raise UsageError(
            f"Nobody said how pictures are prepared for {recipe.model}, which takes {model.config.channels} channels."
        )
    if recipe.mean is not None:
        told = replace(told, mean=recipe.mean)
    if recipe.std is not None:
        told = replace(told, std=recipe.std)
    if recipe.filter is not None:
        told = replace(told, interpolation=recipe.filter)
    if recipe.crop_share is not None:
        size = model.config.image_size
        covered = round(size[0] / recipe.crop_share), round(size[1] / recipe.crop_share)
        told = replace(told, resize="shortest_edge", size=covered, crop=size)
    return told if recipe.task == "classification" else _whole(recipe.augment, told, model.config.image_size)


def _whole(augment: Any, told: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    """Detectors and segmenters see whole pictures at the size they learned: all of the input's, or each in its own shape."""
    if isinstance(augment, SegmentAugmentation):
        if augment.relative == "picture":
            return replace(told, resize="none", crop=None, longest=None, multiple=1)
        return replace(told, resize="shortest_edge", size=(min(size),) * 2, crop=None, longest=None, multiple=1)
    if augment.sized:
        return replace(told, resize="exact", size=size, crop=None, longest=None, multiple=1)
    side, longest = max(augment.sides), augment.longest
    multiple = 1 if longest is None else told.multiple
    return replace(told, resize="shortest_edge", size=(side, side), crop=None, longest=longest, multiple=multiple)


class Teacher(nn.Module):
    """A trained network that answers for the pupil's inputs.

    Args:
        model: the network.
        own: how pictures are prepared for it.
        pupils: how they are prepared for the pupil.
    """

    def __init__(self, model: Network, own: Preprocessing, pupils: Preprocessing) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        # own input = (pixel · scale − mean) / std = pupil's input · gain + shift
        mean, std, pupil_mean, pupil_std = (
            torch.tensor(v).view(-1, 1, 1) for v in (own.mean, own.std, pupils.mean, pupils.std)
        )
        share = own.scale / pupils.scale
        self.register_buffer("gain", pupil_std * share / std, persistent=False)
        self.register_buffer("shift", (pupil_mean * share - mean) / std, persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k"]:
        """The teacher's logits."""
        gain, shift = self.get_buffer("gain"), self.get_buffer("shift")
        logits: Tensor = self.model(pixels * gain + shift).logits
        return logits

    def train(self, mode: bool = True) -> Teacher:
        """A teacher is never in training."""
        return super().train(False)


def teacher_for(recipe: Recipe, pupil: Network, pictures: PictureSet) -> Teacher | None:
    """The teacher of a recipe, if it has one.

    Raises:
        UsageError: it knows other classes than the pictures show, or prepares pictures in another number of channels.
    """
    if recipe.teacher is None:
        return None
    model: Any = load_model(recipe.teacher)
    labels, own, pupils = model.record.labels, model.record.preprocessing, pupil.record.preprocessing
    if model.config.num_classes != len(pictures.classes) or (labels and tuple(labels) != tuple(pictures.classes)):
        raise UsageError(
            f"The teacher {recipe.teacher} knows {model.config.num_classes} classes ({', '.join(labels[:5])}…), the "
            f"pictures show {len(pictures.classes)} ({', '.join(pictures.classes[:5])}…). They must be the same ones."
        )
    if own is None or pupils is None or len(own.mean) != len(pupils.mean):
        raise UsageError(f"The teacher {recipe.teacher} does not take pictures with the channels of the pupil.")
    return Teacher(model, own, pupils)


def _xavier(part: nn.Module) -> None:
    if isinstance(part, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(part.weight)
