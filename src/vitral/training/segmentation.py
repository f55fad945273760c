"""Training for segmentation: what every pixel shows, by class, object by object, or segment by segment."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn

from vitral.data.class_maps import ClassMaps
from vitral.data.instance_maps import InstanceMaps
from vitral.data.listed import PicturesWithLabels
from vitral.data.loader import Share
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.panoptic import PanopticMaps
from vitral.data.pictures import BadPictures
from vitral.data.segment_augment import SegmentAugmentation
from vitral.data.segment_loader import SegmentBatch, SegmentInput, SegmentTargets, segment_batches
from vitral.data.segments import SegmentKind, SegmentSet, SegmentSplits, read_segments
from vitral.data.synthetic import SegmentedScenes, SyntheticScenes
from vitral.data.tree import chosen_split
from vitral.errors import UsageError
from vitral.models.catalogue import CATALOGUE, Entry
from vitral.models.network import Network
from vitral.models.segmentation.detr_masks import MaskedDETR
from vitral.models.segmentation.kinds import MapNetwork, MaskNetwork
from vitral.models.segmentation.mask2former import Mask2Former
from vitral.tasks.segmentation.loss import DETR_MASK_LOSS, MASK2FORMER_LOSS, MASKFORMER_LOSS, MapLoss, MaskLoss
from vitral.tasks.segmentation.matching import MaskCosts
from vitral.training.evaluate_segments import check_fits_segments, evaluate_segments
from vitral.training.recipe import Recipe
from vitral.training.subject import Judgement, Loss, computing

__all__ = ["KnownSegments", "SegmentationSubject", "Segmented", "read_segmented", "segmented_split", "usual_segment_loss"]

# -- what is learned from ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmented:
    """What a segmenter learns from, and what it is judged by. Both have the same classes, in the same order.

    Attributes:
        kind: what is known of pixels.
        train: the pictures to learn from.
        held_out: the pictures to judge by during the training.
        assumes: what the files are taken to mean, in sentences.
    """

    kind: SegmentKind
    train: SegmentSet
    held_out: SegmentSet | None
    assumes: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.train.classes)


def read_segmented(
    path: str | os.PathLike[str],
    held_out: str | os.PathLike[str] | float | None = None,
    *,
    kind: SegmentKind | None = None,
    bad_pictures: BadPictures = "refuse",
    **meaning: Any,
) -> Segmented:
    """Segmented pictures to train on, and to judge by.

    Args:
        path: see `data.segments.read_segments`; or "scenes", 2,000 drawn ones to learn from and 200 to judge by.
        held_out: None: the split val, else test, else none. A share in (0, 1): that much of the training pictures, chosen
            by their names alone. Or another source, of which val, else test, else train is taken.
        kind: what is read of pixels; None: what the source says first.
        bad_pictures: what is done about lists and files that something is wrong with.
        **meaning: what label files mean (`void`, `offset`, `labels` and others); see `data.segments.read_segments`. That of
            another source to judge by is the same.

    Raises:
        UsageError: the source cannot be understood, or there is nothing to train on; a share that is none, or although
            there is a split val; the classes of two sources differ.
    """
    share = held_out if held_out is None or isinstance(held_out, float | int) else None
    found = read_segments(path, kind, held_out=share, bad=bad_pictures, **meaning)
    if found.train is None:
        raise UsageError(f"{path} has no split train, only {', '.join(found.sets)}. Nothing is there to learn from.")
    judge = found.test if found.val is None else found.val
    if isinstance(held_out, str | os.PathLike):
        other = read_segments(held_out, found.kind, bad=bad_pictures, **meaning)
        judge = next((one for one in (other.val, other.test) if one is not None), other.train)
        SegmentSplits(kind=found.kind, assumes="", train=found.train, val=judge)  # refuses other classes
    return Segmented(kind=found.kind, train=found.train, held_out=judge, assumes=found.assumes)


def segmented_split(
    path: str | os.PathLike[str],
    split: str | None = None,
    *,
    kind: SegmentKind | None = None,
    bad_pictures: BadPictures = "refuse",
    **meaning: Any,
) -> tuple[SegmentSet, SegmentKind]:
    """One segmented set of pictures, and what is known of its pixels.

    Args:
        path: see `read_segmented`.
        split: which, where the source has several: "train", "val" or "test".
        kind: what is read of pixels; None: what the source says first.
        bad_pictures: what is done about lists and files that something is wrong with.
        **meaning: what label files mean; see `data.segments.read_segments`.

    Raises:
        UsageError: the source cannot be understood; or it has several splits and none was named, or not the one that was.
        UnknownNameError: there is no such split anywhere.
    """
    found = read_segments(path, kind, bad=bad_pictures, **meaning)
    return chosen_split(found.sets, split, path), found.kind


# -- the subject ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KnownSegments:
    """A segmented set as a training knows it again.

    Args:
        segments: the set.
    """

    segments: SegmentSet

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.segments.name

    def __len__(self) -> int:
        return len(self.segments)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the classes, the names of pictures and of label files, and what those mean.

        Pixels are no part of it. SHA-256, 64 hexadecimal digits.
        """
        told: list[Any] = [type(self.segments).__name__, self.name, list(self.segments.classes), list(self.segments.names)]
        if isinstance(self.segments, ClassMaps):
            told.append(asdict(self.segments.labelling))
        if isinstance(self.segments, InstanceMaps):
            told.append(sorted(self.segments.void))
        if isinstance(self.segments, PicturesWithLabels | PanopticMaps):
            told.append(list(self.segments.labels.names))  # there may be several folders of them
        if isinstance(self.segments, SyntheticScenes | SegmentedScenes):
            told.append(asdict(self.segments))  # the names of drawn pictures say nothing of them
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def usual_segment_loss(model: type[nn.Module]) -> MapLoss | MaskLoss:
    """What the network's paper makes small; cross-entropy for networks of maps, MaskFormer's loss for others of masks.

    Args:
        model: the network's class.
    """
    if issubclass(model, MapNetwork):
        return MapLoss()
    return {Mask2Former: MASK2FORMER_LOSS, MaskedDETR: DETR_MASK_LOSS}.get(cast(Any, model), MASKFORMER_LOSS)


@dataclass(frozen=True, eq=False)
class SegmentationSubject:
    """The pixels of pictures, as a subject of training.

    A `MapLoss` teaches the class of every pixel. A `MaskLoss` teaches masks: of objects or of segments, where the pictures
    know them, else of classes.

    Args:
        segments: to train on.
        kind: what they know of pixels.
        recipe: whose objective, augmentation and precision are taken.
        judging: to be measured on; the best weights are those with the highest mean IoU, average precision or panoptic
            quality.

    Raises:
        UsageError: the recipe is for something else, or the pictures do not say what it teaches.
    """

    segments: SegmentSet
    kind: SegmentKind
    recipe: Recipe
    judging: SegmentSet | None = None

    def __post_init__(self) -> None:
        if self.recipe.task != "segmentation":
            raise UsageError(f"The recipe {self.recipe.name} is for {self.recipe.task}, not for segmentation.")
        if self.taught == "semantic" and not hasattr(self.segments, "class_map"):
            raise UsageError(
                f"{self.segments.name} knows objects, and not the class of every pixel, which a {self._objective_name} "
                "teaches. Take a network of masks, such as mask2former_r50."
            )
        said = self.recipe.objective
        if isinstance(said, MapLoss) and said.ignore not in (MapLoss.ignore, self.objective.ignore):
            raise UsageError(
                f"The maps of {self.segments.name} hold {self.objective.ignore} where nothing is known; the recipe says "
                f"ignore {said.ignore}. Leave ignore out."
            )

    @cached_property
    def objective(self) -> Any:
        """What is made small. Of maps, pixels are ignored of which the pictures say that nothing is known."""
        own = self.recipe.objective
        return replace(own, ignore=cast(Any, self.segments).ignore) if isinstance(own, MapLoss) else own

    @property
    def _objective_name(self) -> str:
        return type(self.recipe.objective).__name__

    @property
    def taught(self) -> SegmentKind:
        """What of the pixels is taught, and judged."""
        return "semantic" if isinstance(self.recipe.objective, MapLoss) else self.kind

    @property
    def parts(self) -> tuple[str, ...]:
        """What the loss is made of."""
        if isinstance(self.objective, MapLoss):
            return (*(name for name in _MAP_TERMS if getattr(self.objective, name)), "beside")
        return ("class", "mask", "dice", "beside")

    @cached_property
    def pictures(self) -> KnownSegments:
        """What is learned from."""
        return KnownSegments(self.segments)

    @cached_property
    def held_out(self) -> KnownSegments | None:
        """What the network is judged by."""
        return None if self.judging is None else KnownSegments(self.judging)

    def check(self, model: Network) -> None:
        """Refuse a model that says nothing of pixels, or not what the pictures know of them.

        Raises:
            UsageError: the sentence says what does not fit.
        """
        if "image-segmentation" not in model.tasks:
            raise UsageError(
                f"A {type(model).__name__} says nothing of pixels, which the pictures of {self.segments.name} are to teach. "
                f"{_way_to_segment(model, self.recipe.model)}"
            )
        wanted = MapLoss if isinstance(model, MapNetwork) else MaskLoss
        if not isinstance(self.recipe.objective, wanted):
            raise UsageError(f"A {type(model).__name__} is taught by a {wanted.__name__}; a {self._objective_name} came.")
        if model.config.num_classes != len(self.segments.classes):
            raise UsageError(
                f"The model has {model.config.num_classes} classes, {self.segments.name} has {len(self.segments.classes)}. "
                "Give it a head for them: model.reset_head(…)."
            )
        self._check_objective(model)
        for pictures, what in ((self.segments, "learn from"), (self.judging, "judge by")):
            if pictures is not None and not len(pictures):
                raise UsageError(f"{pictures.name} holds no pictures to {what}.")
        self._input_of(model).check(self.segments)
        if self.judging is not None:
            check_fits_segments(model, self.judging, self.taught)

    def _check_objective(self, model: Network) -> None:
        """Refuse what the loss itself would refuse at the first step."""
        if isinstance(self.objective, MapLoss):
            weights = self.objective.class_weights
            if weights is not None and len(weights) != len(self.segments.classes):
                raise UsageError(
                    f"class_weights has {len(weights)} numbers; {self.segments.name} has {len(self.segments.classes)} "
                    "classes, each of which needs one."
                )
            if self.objective.lovasz and self.objective.lovasz_over == "batch" and self.recipe.accumulate > 1:
                raise UsageError(
                    "IoU over a batch cannot be had from its pieces. Take lovasz_over='picture', or accumulate=1."
                )
        elif not isinstance(model, MaskedDETR):
            loss = cast(MaskLoss, self.objective)
            if loss.l1_weight or loss.giou_weight or not isinstance(loss.costs, MaskCosts):
                raise UsageError(
                    f"A {type(model).__name__} says no boxes, which this loss teaches or matches by. Give l1_weight and "
                    "giou_weight as 0, and costs of masks."
                )

    def batches(
        self, model: Network, share: Share, *, steps: range, workers: int, pin_memory: bool
    ) -> Iterator[list[SegmentBatch]]:
        """Pictures, augmented, and what their pixels show; see `data.segment_loader.segment_batches`."""
        return segment_batches(
            self.segments,
            self._input_of(model),
            share,
            seed=self.recipe.seed,
            steps=steps,
            workers=workers,
            bad_pictures=self.recipe.bad_pictures,
            pin_memory=pin_memory,
        )

    def amounts(self, batch: SegmentBatch) -> tuple[float, ...]:
        """Labelled pixels or objects, by which what is said of them is divided, and pictures."""
        if batch.class_map is not None:
            return float(self.objective.pixels_of(batch.class_map)), float(len(batch))
        return float(sum(len(one.labels) for one in cast(Any, batch.targets))), float(len(batch))

    def loss(self, network: nn.Module, batch: SegmentBatch, whole: tuple[float, ...], device: torch.device) -> Loss:
        """Every loss of pixels, or the class, the pixels and the dice of masks; and all beside it.

        What is beside it: the same of earlier layers and of heads further down, and boxes where they are taught.
        """
        count, pictures = whole
        pixels = batch.pixels.to(device, non_blocking=True)
        if batch.class_map is not None:
            with computing(self.recipe, device):
                output = network(pixels)
            class_map = batch.class_map.to(device, non_blocking=True)
            terms = self.objective(output, class_map, count, pictures)
        else:
            mask = None if batch.mask is None else batch.mask.to(device, non_blocking=True)
            targets = [one.to(device) for one in cast(Any, batch.targets)]
            with computing(self.recipe, device):
                output = network(pixels, mask)
            terms = self.objective(output, targets, count, pictures)
        told = [terms[name] for name in self.parts[:-1]]
        return Loss(terms["total"], torch.stack([*told, terms["total"] - torch.stack(told).sum()]).detach())

    def judge(self, model: Network, *, device: torch.device, workers: int) -> Judgement | None:
        """Mean IoU, average precision of masks, or panoptic quality, by which the best is chosen."""
        if self.judging is None:
            return None
        found = evaluate_segments(
            model,
            self.judging,
            self.taught,
            batch_size=self.recipe.batch_size,
            device=device,
            workers=workers,
            bad_pictures=self.recipe.bad_pictures,
        )
        numbers = found.numbers
        line = "  ".join(f"{told} {100 * numbers[name]:5.1f}" for told, name in _LINES[self.taught] if name in numbers)
        return Judgement(
            data=found.data,
            count=len(found),
            numbers=numbers,
            value=found.value,
            line=line,
            recorded={found.measure: found.value},
            details=found,
        )

    def _input_of(self, model: Network) -> SegmentInput:
        targets: SegmentTargets = "masks"
        if self.taught == "semantic":
            targets = "classes" if isinstance(model, MaskNetwork) else "map"
        augmentation = cast("SegmentAugmentation | ObjectAugmentation", self.recipe.augment)
        return SegmentInput(augmentation, model.record.preparing(), model.config.image_size, targets)


def _way_to_segment(model: Network, name: str) -> str:
    """What to take instead of a network that says nothing of pixels: a segmenter that is built on it, where there is one."""
    fitting = [one for one, entry in CATALOGUE.items() if _is_built_on(entry, model)]
    if not fitting:
        return "Take a segmenter, such as segformer_b0 (see `vitral models`)."
    beginning = "" if name in CATALOGUE else f" --backbone {name}"
    told = "has such a backbone" if name in CATALOGUE else "begins with its weights"
    return f"A segmenter {told}: --model {fitting[-1]}{beginning} (see `vitral models` for others)."


def _is_built_on(entry: Entry, model: Network) -> bool:
    """Whether a network of the catalogue is a segmenter whose backbone has the shape of a model."""
    backbone = getattr(entry.config, "backbone", None)
    return (
        "image-segmentation" in entry.build.tasks
        and type(backbone) is type(model.config)
        and all(getattr(backbone, name, None) == getattr(model.config, name, None) for name in _SHAPE)
    )


_SHAPE = (
    "block", "class_token", "depth", "depths", "distillation_token", "layer_scale", "mlp", "mlp_width", "patch_size",
    "position", "registers", "relative_bias", "rotary", "stage_channels", "stem", "stem_width", "version", "width", "widths",
)  # fmt: skip
"""Fields of a backbone's configuration that say whether weights of another one could fit."""

_MAP_TERMS = ("cross_entropy", "focal", "dice", "lovasz")
_LINES = {
    "semantic": (("mIoU", "miou"), ("pixels", "pixel_accuracy")),
    "instance": (("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75")),
    "panoptic": (("PQ", "pq"), ("SQ", "sq"), ("RQ", "rq")),
}
