"""From one of our models to a folder that we, transformers or timm load."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from vitral.checkpoints.files import read_json, write_json
from vitral.checkpoints.load import LAYOUTS
from vitral.checkpoints.table import foreign_state
from vitral.errors import CheckpointError, UnknownNameError, UsageError

__all__ = ["save_model"]


_DOCUMENTS = {"config.json", "preprocessor_config.json", "vitral.json"}


def save_model(model: nn.Module, directory: str | Path, layout: str = "vitral") -> Path:
    """Write a model's weights, configuration, preprocessing and labels.

    Everything is written beside the directory first and moved in when it is whole, weights last, so that an interrupted
    call leaves what was there.

    Args:
        model: a model of ours.
        directory: where to; made if it is not there. A checkpoint that is there is replaced, other files stay.
        layout: "vitral", "transformers" or "timm".

    Returns:
        The directory.

    Raises:
        UnknownNameError: no such layout, or one that is only read.
        UsageError: the layout has no way to state this model; nothing is written.
        OSError: the disk is full, or the directory cannot be written to.
    """
    writers = dict.fromkeys(one.name for one in LAYOUTS if one.compose)
    if layout not in writers:
        raise UnknownNameError("layout to write", layout, writers)
    if not hasattr(model, "record"):
        raise UsageError(
            f"A {type(model).__name__} is not one of Vitral's models; build it with create_model or load_model."
        )
    fitting = (one.compose for one in LAYOUTS if one.name == layout and isinstance(model, one.network or nn.Module))
    compose = next(fitting, None)
    if compose is None:
        raise UsageError(f"A {type(model).__name__} has no form in the layout of {layout}. Use layout='vitral'.")
    written = compose(model)
    directory = Path(directory).expanduser()
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; a directory was expected.")
    directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".vitral-", dir=directory))
    try:
        for name, document in written.documents.items():
            write_json(staging / name, document)
        try:
            save_file(foreign_state(written.model, written.rows), staging / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # its own class for a full disk and the like
            raise OSError(f"The weights could not be written to {directory} ({error}).") from error
        # safetensors makes files for their owner only; ours are as readable as any other.
        shutil.copymode(staging / next(iter(written.documents)), staging / "model.safetensors")
        for name in (*written.documents, "model.safetensors"):
            os.replace(staging / name, directory / name)  # noqa: PTH105 - atomic within a file system
        for name in _DOCUMENTS - set(written.documents):
            if _describes_weights(directory / name):  # those that were just replaced: it would be believed
                (directory / name).unlink()
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return directory


def _describes_weights(path: Path) -> bool:
    """Whether a file is a checkpoint's description, and not one of the user's own of the same name."""
    try:
        told = read_json(path)
    except CheckpointError:
        return False
    return bool(told.keys() & {"model_type", "architecture", "network", "image_processor_type", "feature_extractor_type"})
