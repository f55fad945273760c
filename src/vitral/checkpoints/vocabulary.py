"""The words that the config.json of transformers and of timm share over all families, read and written."""

from __future__ import annotations

from typing import Any, Literal

from vitral.checkpoints.files import Files
from vitral.checkpoints.preprocessing import Processor, to_transformers
from vitral.data.transforms import Preprocessing
from vitral.errors import CheckpointError, UnknownNameError
from vitral.layers.mlp import Activation
from vitral.models.record import Record

__all__ = [
    "activation_of",
    "add_timm_record",
    "check_described",
    "hidden_act_of",
    "timm_labels",
    "transformers_documents",
    "transformers_record",
]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_PROBLEMS: dict[str, Literal["single_label", "multi_label", "regression"]] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


def check_described(files: Files) -> None:
    """Refuse tensors of transformers that come without the description of their network.

    Raises:
        CheckpointError: there is no config.json, or an empty one.
    """
    if not files.config:
        raise CheckpointError(
            f"{files.source} has transformers' tensor names but no config.json beside it. Put the config.json it was "
            "published with into the same folder."
        )


def activation_of(hidden_act: Any) -> Activation:
    """The activation that transformers calls so.

    Raises:
        UnknownNameError: none is called so.
    """
    if hidden_act not in _ACTIVATIONS:
        raise UnknownNameError("activation (hidden_act in config.json)", str(hidden_act), _ACTIVATIONS)
    return _ACTIVATIONS[hidden_act]


def hidden_act_of(activation: Activation) -> str:
    """What transformers calls an activation."""
    return next(name for name, ours in _ACTIVATIONS.items() if ours == activation)


def transformers_record(files: Files, *, architecture: str, num_classes: int, preprocessing: Preprocessing | None) -> Record:
    """The record of files in transformers' layout.

    Args:
        files: with their config.json and, where there is one, their preprocessor_config.json.
        architecture: a name for the network.
        num_classes: classes of its head; labels are taken where there are as many.
        preprocessing: what was understood of the preprocessor; None where nothing was, which becomes a note.

    Raises:
        CheckpointError: labels whose keys are no numbers.
    """
    told = files.config
    unknown = f"Pictures are prepared by {files.preprocessor.get('image_processor_type')}, which is not known here."
    return Record(
        architecture=architecture,
        layout="transformers",
        source=files.source,
        preprocessing=preprocessing,
        notes=() if preprocessing else (unknown,),
        labels=_transformers_labels(told, num_classes),
        problem=_PROBLEMS.get(str(told.get("problem_type")), "single_label"),
        licence=told.get("license"),
    )


def _transformers_labels(told: dict[str, Any], num_classes: int) -> tuple[str, ...]:
    names = told.get("id2label") or {}
    if isinstance(names, list):
        names = dict(enumerate(names))
    if len(names) != num_classes:
        return ()
    try:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"id2label in config.json has a key that is no number ({error}).") from error


def transformers_documents(
    described: dict[str, Any], record: Record, num_classes: int, *, processor: Processor | None = None
) -> dict[str, dict[str, Any]]:
    """config.json and, where it is known how pictures are prepared, preprocessor_config.json.

    Args:
        described: the network itself, in transformers' words.
        record: the model's.
        num_classes: of its head; 0 for none.
        processor: that of a detector or segmenter; None for a classifier, whose logits may mean several things.
    """
    if num_classes:
        names = {str(index): record.label(index) for index in range(num_classes)}
        described = described | {"id2label": names, "label2id": {name: int(index) for index, name in names.items()}}
        # transformers has no single label of one class.
        if processor is None and (num_classes > 1 or record.problem != "single_label"):
            described["problem_type"] = next(name for name, ours in _PROBLEMS.items() if ours == record.problem)
    documents = {"config.json": described}
    if record.preprocessing is not None:
        documents["preprocessor_config.json"] = to_transformers(record.preprocessing, processor)
    return documents


def timm_labels(told: dict[str, Any], num_classes: int) -> tuple[str, ...]:
    """The labels in a config.json of timm, described where it describes them; none unless there are as many as classes."""
    names, described = told.get("label_names"), told.get("label_descriptions") or {}
    if isinstance(names, dict) and all(str(key).isdigit() for key in names):
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or len(names) != num_classes:
        return ()
    return tuple(str(described.get(name, name)) for name in names)


def add_timm_record(described: dict[str, Any], record: Record) -> None:
    """Put the licence and the labels, where they are known, into a config.json that already has a pretrained_cfg."""
    if record.licence:
        described["pretrained_cfg"]["license"] = record.licence
    if record.labels:
        described["label_names"] = list(record.labels)
