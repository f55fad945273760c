"""Finding and reading a checkpoint's files: a folder, a single file, or a repository of the Hub.

Nothing here runs code from a file: safetensors and npz hold only numbers, and pickles are read with
`weights_only=True`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitral.base.hub import fetch_repository, looks_like_repository
from vitral.checkpoints.box import folder_of
from vitral.checkpoints.table import Tensors
from vitral.errors import CheckpointError, UsageError

__all__ = ["Files", "open_files", "read_json", "read_processor", "write_json"]

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".tar")
_TRAINING_STATE = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")
_WRAPPERS = (
    *("ema", "model", "state_dict", "teacher", "model_ema", "model_state", "student", "net", "module"),
    *("model_state_dict", "weights", "params"),
)
_WRAPPED = ("module.", "_orig_mod.")  # by whoever runs a network in several processes, or compiles it
_PART = ("backbone.", "model.", "encoder.module.")  # of what was trained: names of some layouts begin so, too


@dataclass(frozen=True)
class Files:
    """An opened checkpoint.

    Attributes:
        source: what the user called it.
        tensors: its tensors by name.
        kind: "safetensors", "pickle" or "npz".
        config: its config.json, or an empty dictionary.
        preprocessor: its preprocessor_config.json, or an empty dictionary.
        native: its vitral.json, or an empty dictionary.
    """

    source: str
    tensors: Tensors
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)
    native: dict[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> Files | None:
        """The network, where a training saved it as a part of something larger ("backbone.…"); None where it did not."""
        if self.kind != "pickle" or not any(name.startswith(_PART) for name in self.tensors):
            return None
        return replace(self, tensors=_without(_PART, self.tensors))


def open_files(source: str | Path) -> Files:
    """Open a checkpoint.

    Args:
        source: a folder, a weights file (.safetensors, .bin, .pt, .pth, .npz; a config.json beside it counts), the id of a
            repository of the Hub ("facebook/deit-tiny-patch16-224"), or the name of the model in the box.

    Raises:
        CheckpointError: there is nothing there, or it cannot be read; the message says what was looked for.
        HubError: the Hub cannot be reached or has no such repository.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise UsageError(f"A checkpoint is named by a path or a Hub id; {source!r} came.")
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, str(source))
    if path.is_file():
        return _open_file(path, str(source), path.parent)
    if (boxed := folder_of(source)) is not None:
        return _open_folder(boxed, str(source))
    if isinstance(source, str) and looks_like_repository(source):
        return _open_folder(fetch_repository(source), source)
    raise CheckpointError(
        f"There is no checkpoint at {str(source)!r}: it is no folder and no file, and not the form of a Hub id (owner/name)."
    )


def _open_folder(folder: Path, source: str) -> Files:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return _open_file(folder / name, source, folder)
    for run in (folder, folder.parent):  # what a training leaves, or one of the checkpoints it goes on from
        best = next(
            (run / name for name in ("best", "last") if (run / "recipe.json").is_file() and (run / name).is_dir()), None
        )
        if best is not None:
            raise CheckpointError(f"{source} is of a training, whose model lies in a folder within it: use {best}.")
    others = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".npz", *_PICKLES)]
    others = [path for path in others if not path.name.startswith(_TRAINING_STATE)]
    if len(others) == 1:
        return _open_file(others[0], source, folder)
    found = ", ".join(path.name for path in others) if others else "none"
    raise CheckpointError(
        f"{source} holds no weights under a known name (looked for {', '.join(_WEIGHTS)}; other weight files: {found}). "
        "Give the path of the file itself."
    )


def _open_file(path: Path, source: str, folder: Path) -> Files:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise CheckpointError(
                f"{path.name} is a pointer of Git LFS, not the weights themselves. Fetch them with: git lfs pull"
            )
    if path.name.endswith(".index.json"):
        tensors, kind = _open_shards(path), "safetensors" if "safetensors" in path.name else "pickle"
    elif path.suffix == ".npz":
        tensors, kind = _open_npz(path), "npz"
    elif path.suffix == ".safetensors":
        tensors, kind = _Safetensors([path]), "safetensors"
    elif path.suffix in _PICKLES:
        tensors, kind = _open_pickle(path), "pickle"
    else:
        raise CheckpointError(
            f"{path.name} is not a kind of weights file we know (.safetensors, .npz, {', '.join(_PICKLES)})."
        )
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors.")
    return Files(
        source=source,
        tensors=tensors,
        kind=kind,
        config=read_json(folder / "config.json"),
        preprocessor=read_json(folder / "preprocessor_config.json"),
        native=read_json(folder / "vitral.json"),
    )


class _Safetensors(Mapping[str, Tensor]):
    """Tensors of one or more safetensors files, mapped into memory and read when asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self._where: dict[str, Any] = {}
        for path in paths:
            try:
                handle = safe_open(path, framework="pt")
                self._where.update(dict.fromkeys(handle.keys(), handle))  # type: ignore[no-untyped-call]
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(
                    f"{path.name} is not a readable safetensors file ({error}). Download it again."
                ) from error

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _open_shards(index: Path) -> Tensors:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index.name} has no weight_map from tensor names to file names.")
    paths = [index.parent / Path(name).name for name in sorted(set(weight_map.values()))]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise CheckpointError(f"{index.name} names files that are not there: {', '.join(absent)}. Download them too.")
    if index.name.endswith(".safetensors.index.json"):
        return _Safetensors(paths)
    return {name: tensor for path in paths for name, tensor in _open_pickle(path).items()}


def _open_npz(path: Path) -> Tensors:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path.name} is not a readable npz file of plain arrays ({error}).") from error


def _open_pickle(path: Path) -> Tensors:
    try:
        # Training scripts of the field keep their command line beside the weights; it is an inert bag of names.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes provoke
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().split("\n")[0].split(". ")[0]
        raise CheckpointError(
            f"{path.name} cannot be read as plain weights ({reason}). A pickle that needs code of its own is refused, as it "
            "could run anything; ask its publisher for safetensors."
        ) from error
    return _unwrapped(content, path.name)


def _unwrapped(content: Any, name: str) -> Tensors:
    """The state dictionary inside what a training script saved, without the prefixes of wrappers."""
    for _ in range(8):  # wrappers within wrappers; more would be a dictionary that holds itself
        if not isinstance(content, dict):
            break
        # A tensor may lie beside what is wrapped, such as the number of updates.
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict) and content[key]), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} holds a {type(content).__name__}, not a dictionary of tensors.")
    return _without(_WRAPPED, {str(key): value for key, value in content.items() if isinstance(value, Tensor)})


def _without(prefixes: Sequence[str], tensors: Tensors) -> Tensors:
    """The tensors by names without these prefixes, where they have them, in whatever order they stand."""
    before: Tensors = {}
    while before.keys() != tensors.keys():
        before = tensors
        for prefix in prefixes:
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def read_processor(folder: str | Path) -> dict[str, Any]:
    """The content of the preprocessor_config.json of a folder or a Hub repository.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(folder).expanduser()
    if not path.exists() and looks_like_repository(str(folder)):
        path = fetch_repository(str(folder))
    content = read_json(path if path.is_file() else path / "preprocessor_config.json")
    if not content:
        raise CheckpointError(f"{folder} holds no preprocessor_config.json.")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file.

    Raises:
        CheckpointError: it is not readable JSON, or no object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not readable JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}; an object of named values was expected.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
