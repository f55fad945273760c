"""From one of our models to a folder that we, transformers or timm load."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from vitral.base.disk import exchange, staging
from vitral.checkpoints.files import read_json, write_json
from vitral.checkpoints.load import LAYOUTS
from vitral.checkpoints.table import foreign_state
from vitral.errors import CheckpointError, UnknownNameError, UsageError

__all__ = ["save_model"]


_DOCUMENTS = {"config.json", "preprocessor_config.json", "vitral.json"}


def save_model(model: nn.Module, directory: str | Path, layout: str = "vitral") -> Path:
    """Write a model's weights, configuration, preprocessing and labels.

    Everything is written beside the old files first and exchanged with them when it is whole, so that an interrupted call
    leaves what was there.

    Args:
        model: a model of ours.
        directory: where to; made if it is not there. A checkpoint that is there is replaced, other files stay.
        layout: "vitral"; or, as far as they have such a network, "transformers", "timm", "torchvision", or the authors' own:
            "shi-labs" (CCT), "microsoft" (CvT).

    Returns:
        The directory.

    Raises:
        UnknownNameError: no such layout, or one that is only read.
        UsageError: the layout has no way to state this model, or the model is not what its configuration says; nothing is
            written.
        OSError: the disk is full, or the directory cannot be written to.
    """
    writers = dict.fromkeys(one.name for one in LAYOUTS if one.compose)
    if layout not in writers:
        raise UnknownNameError("layout to write", layout, writers)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not hasattr(model, "record"):
        raise UsageError(
            f"A {type(model).__name__} is not one of Vitral's models; build it with create_model or load_model."
        )
    fitting = (one.compose for one in LAYOUTS if one.name == layout and isinstance(model, one.network or nn.Module))
    compose = next(fitting, None)
    if compose is None:
        raise UsageError(f"A {type(model).__name__} has no form in the layout of {layout}. Use layout='vitral'.")
    _check_whole(model)
    written = compose(model)
    directory = Path(directory).expanduser()
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; a directory was expected.")
    directory.mkdir(parents=True, exist_ok=True)
    with staging(directory) as room:
        for name, document in written.documents.items():
            write_json(room / name, document)
        try:
            save_file(foreign_state(written.model, written.rows), room / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # its own class for a full disk and the like
            raise _as_of_the_disk(error, directory / "model.safetensors") from error
        # safetensors makes files for their owner only; ours are as readable as any other.
        shutil.copymode(room / next(iter(written.documents)), room / "model.safetensors")
        replaced = [name for name in _DOCUMENTS if name not in written.documents and _describes_weights(directory / name)]
        # The weights move out first and in last: without them a half-changed folder is no checkpoint.
        exchange(room, [*written.documents, "model.safetensors"], away=replaced)
    return directory


def _check_whole(model: nn.Module) -> None:
    """Refuse a model that could not be loaded again: changed by hand, not finite, or with labels for other classes."""
    config, record = cast(Any, model).config, cast(Any, model).record
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in type(model)(config).state_dict().items()}
    state = model.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        came = tuple(state[name].shape) if name in state else "nothing"
        needed = tuple(expected[name]) if name in expected else "nothing"
        if came != needed:
            raise UsageError(
                f"The model is not what its configuration says: {name} is {came}, not {needed}. To change the number of "
                "classes use model.reset_head(n)."
            )
        if state[name].is_meta or not torch.isfinite(state[name]).all():
            raise UsageError(f"{name} of the model holds numbers that are not finite, or none at all. Nothing was written.")
    if record.labels and len(record.labels) != config.num_classes:
        raise UsageError(f"The record names {len(record.labels)} classes, but the model has {config.num_classes}.")


def _as_of_the_disk(error: SafetensorError, path: Path) -> OSError:
    """safetensors' error with the system's number for it, if it tells one."""
    told = re.search(r"os error (\d+)", str(error))
    if told is None:
        return OSError(f"The weights could not be written to {path} ({error}).")
    return OSError(int(told[1]), os.strerror(int(told[1])), str(path))


def _describes_weights(path: Path) -> bool:
    """Whether a file is a checkpoint's description, and not one of the user's own of the same name."""
    try:
        told = read_json(path)
    except CheckpointError:
        return False
    return bool(told.keys() & {"model_type", "architecture", "network", "image_processor_type", "feature_extractor_type"})
