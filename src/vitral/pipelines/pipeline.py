"""The face that transformers' users know: `pipeline(task, model=…)`, the same parameters, the same output.

Stricter where theirs hurts: a misspelt keyword is refused with the nearest name, one unreadable file of many is one record
with its name, and `top_k=None` means all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import Tensor, nn

from vitral.base.device import resolve_dtype
from vitral.base.masks import encode_rle
from vitral.checkpoints.box import BOXED
from vitral.checkpoints.files import read_processor
from vitral.checkpoints.preprocessing import from_transformers
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.pipelines.predictor import Failure, Predictor, load
from vitral.pipelines.sources import sources_of
from vitral.tasks.classification.result import ScoreFunction, check_top_k
from vitral.tasks.detection.result import Options
from vitral.tasks.segmentation import decode as segmentation
from vitral.tasks.segmentation.result import Instances, Panoptic, Segmentation

__all__ = [
    "ImageClassificationPipeline",
    "ImageFeatureExtractionPipeline",
    "ImageSegmentationPipeline",
    "ObjectDetectionPipeline",
    "Pipeline",
    "pipeline",
]


class Pipeline:
    """What every pipeline shares: understanding inputs, checking options, shaping output.

    Args:
        predictor: the corridor.
        **options: defaults for the options of a call.
    """

    options: ClassVar[dict[str, Any]] = {"batch_size": 8, "num_workers": None, "timeout": None}
    """Options of a call and their defaults; a task adds its own."""

    def __init__(self, predictor: Predictor, **options: Any) -> None:
        self.predictor = predictor
        self.model, self.task, self.device = predictor.model, predictor.task, predictor.device
        self.defaults = self.options | self._checked(options)
        self.decoding(self.defaults)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.predictor!r})"

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        """Answer for one picture, for many, or for a stream.

        Args:
            inputs: one picture in any form; or a list of them, a folder, a pattern, an array of four dimensions: a list
                comes back; or a generator or a dataset: a generator comes back, which reads two batches ahead at most.
            **options: `batch_size`: how many pictures the model sees at once; `num_workers`: threads that read; `timeout`:
                seconds that fetching an address may take (10 unless told); and the task's own.

        Raises:
            PictureError: the one picture cannot be read. Of many, such a picture becomes {"name": …, "error": …}.
            UnknownNameError: a misspelt option; the message names the nearest.
        """
        sources = sources_of(options.pop("images", inputs))
        told = self.defaults | self._checked(options)
        timeout = 10.0 if told["timeout"] is None else told["timeout"]
        decoding = self.decoding(told)
        if sources.kind == "one":
            picture = next(iter(sources.pictures))
            return self.shaped(self.predictor(picture, timeout=timeout, **decoding), told)
        results = self.predictor.stream(
            sources.pictures, batch_size=told["batch_size"], workers=told["num_workers"], timeout=timeout, **decoding
        )
        answers = (r.to_dict() if isinstance(r, Failure) else self.shaped(r, told) for r in results)
        return list(answers) if sources.kind == "many" else answers

    def decoding(self, told: dict[str, Any]) -> dict[str, Any]:
        """The options of the task's decoding among those of a call."""
        return {}

    def shaped(self, result: Any, told: dict[str, Any]) -> Any:
        """A result in transformers' form."""
        raise NotImplementedError

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name not in self.options:
                raise UnknownNameError(f"keyword of the {self.task} pipeline", name, self.options)
        return options


class ImageClassificationPipeline(Pipeline):
    """For each picture a list of {"label": …, "score": …}, best first.

    Options of a call: `top_k`: how many classes, 5 unless told, None for all; `function_to_apply`: how logits become scores,
    "softmax", "sigmoid" or "none"; "default" is sigmoid for one class or independent classes, else softmax.
    """

    options: ClassVar[dict[str, Any]] = Pipeline.options | {"top_k": 5, "function_to_apply": "default"}

    def decoding(self, told: dict[str, Any]) -> dict[str, Any]:
        """The score function and the number of classes."""
        function = str(told["function_to_apply"] or "default").lower()
        if function not in get_args(ScoreFunction):
            raise UnknownNameError("function_to_apply", function, get_args(ScoreFunction))
        check_top_k(told["top_k"])
        return {"function": function, "top_k": told["top_k"]}

    def shaped(self, result: Any, told: dict[str, Any]) -> list[dict[str, Any]]:
        """Labels with scores."""
        return [{"label": label, "score": score} for label, score in zip(result.labels, result.scores.tolist(), strict=True)]


class ImageFeatureExtractionPipeline(Pipeline):
    """For each picture its tokens after the last norm as nested lists (1, n, d), as transformers gives them.

    Options of a call: `pool`: one vector per picture (1, e) instead; `return_tensors`: a tensor instead of lists.
    """

    options: ClassVar[dict[str, Any]] = Pipeline.options | {"pool": False, "return_tensors": False}

    def shaped(self, result: Any, told: dict[str, Any]) -> Any:
        """Tokens, or the pooled vector."""
        values: Tensor = (result.pooled if told["pool"] else result.tokens).unsqueeze(0)
        return values if told["return_tensors"] else values.tolist()


class ObjectDetectionPipeline(Pipeline):
    """For each picture a list of {"score": …, "label": …, "box": {"xmin": …, "ymin": …, "xmax": …, "ymax": …}}, best first.

    The edges of a box are whole pixels of the picture, cut off as transformers cuts them, and lie within it.

    Options of a call: `threshold`: only objects whose score is above it, 0.5 unless told; `top_k`: how many at most, None
    for as many as the network has queries.
    """

    options: ClassVar[dict[str, Any]] = Pipeline.options | {"threshold": 0.5, "top_k": None}

    def decoding(self, told: dict[str, Any]) -> dict[str, Any]:
        """The threshold and the number of objects."""
        return vars(Options(threshold=told["threshold"], top_k=told["top_k"]))

    def shaped(self, result: Any, told: dict[str, Any]) -> list[dict[str, Any]]:
        """Scores, labels and boxes."""
        edges = ("xmin", "ymin", "xmax", "ymax")
        rows = zip(result.scores.tolist(), result.labels, result.boxes.astype(int).tolist(), strict=True)
        return [{"score": score, "label": label, "box": dict(zip(edges, box, strict=True))} for score, label, box in rows]


class ImageSegmentationPipeline(Pipeline):
    """For each picture a list of {"score": …, "label": …, "mask": …, "area": …, "rle": …}.

    A mask is a Pillow image of mode L and the picture's size, 255 where it is; an area its pixels, and "rle" COCO's run
    lengths of them. Of classes ("semantic") the score is None, and they come in the order of the network; segments
    ("panoptic") come in the order of its queries, objects ("instance") the best first. Where objects may overlap, every mask
    is whole.

    Options of a call: `subtask`: "semantic", "instance" or "panoptic"; unless told panoptic where the network draws masks,
    else semantic; `threshold`: 0.9, `mask_threshold`: 0.5, `overlap_mask_area_threshold`: 0.5, `fused`: see
    `vitral.tasks.segmentation.decode.Options`; `class_map`: True makes every answer {"segments": the list, "class_map": the
    class of every pixel as an array (y, x), 255 where nothing is said, or 65535 where there are more than 255 classes}.
    """

    options: ClassVar[dict[str, Any]] = Pipeline.options | {
        "subtask": None,
        "threshold": 0.9,
        "mask_threshold": 0.5,
        "overlap_mask_area_threshold": 0.5,
        "fused": (),
        "class_map": False,
    }

    def decoding(self, told: dict[str, Any]) -> dict[str, Any]:
        """The subtask and the thresholds."""
        if not isinstance(told["class_map"], bool):
            raise UsageError(f"class_map must be True or False; {told['class_map']!r} came.")
        names = ("subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold", "fused")
        return vars(segmentation.Options(**{name: told[name] for name in names}))

    def shaped(self, result: Any, told: dict[str, Any]) -> Any:
        """Masks with labels and scores."""
        entries = [
            {
                "score": score,
                "label": label,
                "mask": Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))),
                "area": int(mask.sum()),
                "rle": encode_rle(mask),
            }
            for score, label, mask in _masks(result)
        ]
        if not told["class_map"]:
            return entries
        if isinstance(result, Instances):
            raise UsageError("class_map=True asks for one class per pixel, but objects may overlap. Use another subtask.")
        if isinstance(result, Segmentation):
            return {"segments": entries, "class_map": result.class_map}
        ignored = segmentation.ignored(int(cast(Any, self.model).config.num_classes))
        return {"segments": entries, "class_map": result.class_map(ignored)}


def _masks(
    result: Segmentation | Instances | Panoptic,
) -> Iterator[tuple[float | None, str, Bool[np.ndarray, "y x"]]]:
    """The score, the label and the mask of everything that was found."""
    if isinstance(result, Segmentation):
        for index in sorted(result.indices):
            yield None, result.labels[index], result.mask(index)
    elif isinstance(result, Instances):
        yield from zip(result.scores.tolist(), result.labels, result.masks, strict=True)
    else:
        for segment in result.segments:
            yield segment.score, segment.label, result.mask(segment.id)


_PIPELINES: dict[str, type[Pipeline]] = {
    "image-classification": ImageClassificationPipeline,
    "image-feature-extraction": ImageFeatureExtractionPipeline,
    "object-detection": ObjectDetectionPipeline,
    "image-segmentation": ImageSegmentationPipeline,
}
_EXAMPLES = {
    "object-detection": "facebook/detr-resnet-50",
    "image-segmentation": "nvidia/segformer-b0-finetuned-ade-512-512",
}
_BUILDING = (
    *("image_processor", "feature_extractor", "device", "device_map", "dtype", "torch_dtype", "revision", "framework"),
    *("architecture", "num_classes", "decoding", "trust_remote_code", "use_fast"),
)


def pipeline(task: str | None = None, model: str | Path | nn.Module | None = None, **options: Any) -> Pipeline:
    """A pipeline for a task, with transformers' parameters and output.

    Args:
        task: "image-classification", "image-feature-extraction", "object-detection" or "image-segmentation"; by default what
            the model can do.
        model: a folder, a weights file, a Hub id, or a model of Vitral's; for "image-classification" by default the model
            in the box, which knows the ten classes of CIFAR-10 (see `checkpoints.box`).
        **options: of transformers': image_processor (a folder with a preprocessor_config.json, its content, or a
            `Preprocessing`), device, dtype, revision, batch_size, num_workers, timeout, and the task's own as defaults for
            every call. Of ours: architecture and num_classes (see `checkpoints.load.load_model`), decoding (see
            `pipelines.predictor.Predictor`).

    Raises:
        UnknownNameError: no such task, or a misspelt keyword; the message names the nearest.
        UsageError: no model, or an option that cannot be had.
        CheckpointError: the checkpoint cannot be understood.
    """
    if task is not None and task not in _PIPELINES:
        raise UnknownNameError("task", task, _PIPELINES)
    if model is None and task != "image-classification":
        known_by = _EXAMPLES.get(task or "", "google/vit-base-patch16-224")
        example = task if task in _EXAMPLES else "image-classification"
        raise UsageError(f"Name a model: pipeline({example!r}, model={known_by!r}) or a path.")
    kinds = [_PIPELINES[task]] if task else list(_PIPELINES.values())
    known = (*_BUILDING, *dict.fromkeys(name for kind in kinds for name in kind.options))
    for name in options:
        if name not in known:
            raise UnknownNameError("keyword of pipeline", name, ("task", "model", *known))
    building = {name: options.pop(name) for name in _BUILDING if name in options}
    predictor = _predictor(task, BOXED if model is None else model, building)
    return _PIPELINES[predictor.task](predictor, **options)


def _predictor(task: str | None, model: str | Path | nn.Module, building: dict[str, Any]) -> Predictor:
    """Build the corridor from transformers' words."""
    if building.get("trust_remote_code"):
        raise UsageError("trust_remote_code=True was asked for, but Vitral never runs code that comes with a checkpoint.")
    if building.get("framework") not in (None, "pt"):
        raise UsageError(f"framework={building['framework']!r} was asked for; Vitral computes with PyTorch ('pt') only.")
    if building.get("revision") and isinstance(model, str) and not Path(model).exists():
        model = f"{model}@{building['revision']}"
    dtype = building.get("dtype") or building.get("torch_dtype")
    kept: dict[str, Any] = {name: building[name] for name in ("architecture", "num_classes", "decoding") if name in building}
    processor = building.get("image_processor") or building.get("feature_extractor")
    if processor is not None:
        kept["preprocessing"] = _preprocessing(processor)
    device = building.get("device", building.get("device_map"))
    return load(model, task=task, device=device, dtype=resolve_dtype(dtype), **kept)


def _preprocessing(processor: Any) -> Preprocessing:
    if isinstance(processor, Preprocessing):
        return processor
    content = processor if isinstance(processor, dict) else read_processor(processor)
    found = from_transformers(content, "", (224, 224))
    if found is None:
        raise UsageError(f"The image_processor {content.get('image_processor_type')!r} is not known. Pass a Preprocessing.")
    return found
