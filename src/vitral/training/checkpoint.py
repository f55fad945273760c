"""The checkpoints of a training run: what it needs to go on after a kill as if nothing had happened.

```
run/
  step-00000420/           one checkpoint; the last few are kept
    state.safetensors      every tensor
    state.json             everything else, and which tensor goes where
    manifest.json          format, step, and the size and SHA-256 of every other file
  best/                    what `save_best` was given to write, and best.json: the value and the step
```

A checkpoint appears under its name when it is whole and on the disk, never sooner; see `vitral.base.disk`. Nothing is
pickled, so reading one runs no code. `state.json` is plain JSON: dictionaries whose keys are strings, lists, strings, finite
numbers, true, false and null mean themselves, and an object with one key that begins with `$` is something else:

| written                          | means                                                    |
|----------------------------------|----------------------------------------------------------|
| `{"$tensor": "model/weight"}`    | that tensor of state.safetensors                         |
| `{"$tuple": [0.9, 0.999]}`       | a tuple                                                  |
| `{"$float": "inf"}`              | a float that is not finite: inf, -inf or nan             |
| `{"$dict": [[0, …], [1, …]]}`    | a dictionary by pairs, where not all keys are plain text |
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitral.base.disk import check_space, staging, sweep, whole_folder
from vitral.base.numbers import real_number, whole_number
from vitral.errors import CheckpointError, UsageError

__all__ = ["Best", "Checkpoints", "Saved", "State"]

State = dict[str, Any]
"""What a run saves: tensors, numbers, strings, booleans and None, in dictionaries, lists and tuples, however nested."""

_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_TENSORS, _OTHERS, _MANIFEST, _BEST = "state.safetensors", "state.json", "manifest.json", "best.json"
_SPARE = 1 << 20  # bytes beyond the tensors: the other files
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names that the safetensors format has for kinds of numbers."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that was found whole.

    Attributes:
        step: the step it was saved at.
        folder: where it lies.
        skipped: a sentence about each newer one that is damaged, and so was not taken.
    """

    step: int
    folder: Path
    skipped: tuple[str, ...] = ()

    @cached_property
    def state(self) -> State:
        """What was saved: the same nesting, types and keys, every number to the bit, tensors in memory of the CPU.

        It is read when it is first asked for, and kept.

        Raises:
            CheckpointError: the files are no longer what was found.
        """
        try:
            with safe_open(self.folder / _TENSORS, framework="pt") as file:
                # Copied, as what is mapped from a file would hold on to it, and change or crash with it.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dictionary
            state = _restored(json.loads((self.folder / _OTHERS).read_bytes()), tensors)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(
                f"The checkpoint in {self.folder} cannot be read ({type(error).__name__}: {error}). Ask for the newest anew."
            ) from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{_OTHERS} in {self.folder} holds a {type(state).__name__}, not a state.")
        return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best that a run has met.

    Attributes:
        value: how good, in the units of what was measured.
        step: when.
        folder: where what was kept of it lies.
    """

    value: float
    step: int
    folder: Path


class Checkpoints:
    """The checkpoints of one run. One process at a time may save; any may read.

    Args:
        folder: where they lie; made when the first is saved.
        keep: how many are kept; two, so that one is left where the newest is damaged.

    Raises:
        UsageError: `keep` is no whole number of at least 1.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = whole_number("keep", keep)

    def save(self, step: int, state: State) -> Saved:
        """Write a checkpoint whole, or not at all; then remove those before it beyond the last `keep`.

        When this returns the checkpoint is on the disk. One of the same step is replaced.

        Args:
            step: steps done, from 0.
            state: what to save. Tensors may lie on any device and share memory; each is written on its own. An
                `OrderedDict` (a module's `state_dict()`) comes back as a plain dictionary.

        Returns:
            The checkpoint.

        Raises:
            UsageError: the state holds something that would not come back the same; the message says where. Nothing is
                written.
            OSError: the disk is full, or cannot be written to. The checkpoints that were there still are.
        """
        step = whole_number("step", step, least=0)
        tensors: dict[str, Tensor] = {}
        others = json.dumps(_plain(state, (), tensors), allow_nan=False).encode()
        size = sum(tensor.nbytes for tensor in tensors.values())
        check_space(self.folder, size + size // 50 + len(others) + _SPARE)
        folder = self.folder / f"step-{step:08d}"
        with whole_folder(folder) as fresh:
            digests = {_OTHERS: _write(fresh / _OTHERS, others), _TENSORS: _write_tensors(fresh / _TENSORS, tensors)}
            listed = {name: {"size": (fresh / name).stat().st_size, "sha256": digest} for name, digest in digests.items()}
            manifest = {"format": _FORMAT, "step": step, "files": listed}
            _write(fresh / _MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        self._remove([older for number, older in self._found() if number < step][max(self.keep - 1, 0) :])
        return Saved(step=step, folder=folder)

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, whole or damaged, the newest first."""
        return [step for step, _ in self._found()]

    def newest(self) -> Saved | None:
        """The newest checkpoint of which every file is what was written, to the byte. Leftovers of kills are swept.

        Damaged ones stay where they are, and are told of in `Saved.skipped`.

        Returns:
            None where there are no checkpoints.

        Raises:
            CheckpointError: there are, but all are damaged; a run must not start anew over them unasked.
        """
        sweep(self.folder)
        skipped: list[str] = []
        for step, folder in self._found():
            fault = _fault(folder, step)
            if fault is None:
                return Saved(step=step, folder=folder, skipped=tuple(skipped))
            skipped.append(f"The checkpoint {folder} was skipped: {fault}")
        if skipped:
            told = "\n".join(skipped)
            raise CheckpointError(
                f"No checkpoint in {self.folder} is whole. Move the folder elsewhere to start anew.\n{told}"
            )
        return None

    def cut_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: a run that goes on from this one will not pass through them again.

        Raises:
            OSError: they cannot be removed.
        """
        self._remove([folder for number, folder in self._found() if number > step])

    def save_best(self, value: float, step: int, write: Callable[[Path], object]) -> Best:
        """Replace the best with this, whole or not at all.

        Args:
            value: how good it is, a finite number.
            step: steps done, from 0.
            write: called with an empty folder to write into, a Vitral checkpoint of the model, say. The file "best.json" is
                ours.

        Raises:
            UsageError: the step or the value is no such number, or `write` wrote a best.json.
            OSError: the disk is full, or cannot be written to. The best that was there still is.
        """
        value, step = real_number("value", value), whole_number("step", step, least=0)
        folder = self.folder / "best"
        with whole_folder(folder) as fresh:
            write(fresh)
            _write(fresh / _BEST, (json.dumps({"value": value, "step": step}, indent=2) + "\n").encode())
        return Best(value=value, step=step, folder=folder)

    def best(self) -> Best | None:
        """The best so far, or None. Leftovers of kills are swept.

        Raises:
            CheckpointError: best.json is not what was written.
        """
        sweep(self.folder)
        folder = self.folder / "best"
        if not folder.is_dir():
            return None
        try:
            told = json.loads((folder / _BEST).read_bytes())
            return Best(
                value=real_number("value", told["value"]), step=whole_number("step", told["step"], least=0), folder=folder
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(
                f"{folder / _BEST} does not tell a value and a step ({error}). Move {folder} elsewhere to go on without it."
            ) from error

    def _found(self) -> list[tuple[int, Path]]:
        """Step and folder of every checkpoint, whole or damaged, the newest first."""
        if not self.folder.is_dir():
            return []
        named = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted(((int(match[1]), path) for match, path in named), reverse=True)

    def _remove(self, folders: list[Path]) -> None:
        """Remove checkpoints; hidden first, for half of one must not lie about under its name."""
        if folders:
            with staging(self.folder) as room:
                for folder in folders:
                    os.replace(folder, room / folder.name)  # noqa: PTH105


def _plain(value: Any, where: tuple[Any, ...], tensors: dict[str, Tensor] | None) -> Any:
    """A value as JSON; its tensors, where it may have any, go to `tensors`, named by the keys that lead to them."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor) and tensors is not None:
        return {"$tensor": _keep(value, where, tensors)}
    if kind in (list, tuple):
        items = [_plain(item, (*where, place), tensors) for place, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if kind in (dict, OrderedDict):
        pairs = [(key, _plain(item, (*where, key), tensors)) for key, item in value.items()]
        if all(type(key) is str and not key.startswith("$") for key in value):
            return dict(pairs)
        return {"$dict": [[_plain(key, (*where, key), None), item] for key, item in pairs]}
    raise UsageError(
        f"{_called(where)} is a {kind.__module__}.{kind.__qualname__}, which would not come back the same. "
        "Save tensors, Python's own numbers, strings, booleans and None, in dictionaries, lists and tuples."
    )


def _keep(tensor: Tensor, where: tuple[Any, ...], tensors: dict[str, Tensor]) -> str:
    """Note a tensor under a name of its own."""
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        raise UsageError(
            f"{_called(where)} is a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}; a checkpoint cannot hold "
            "it. Save a dense one of real numbers (of complex ones, torch.view_as_real)."
        )
    wanted = "/".join(map(str, where)).encode("utf-8", "backslashreplace").decode()
    name, number = wanted, 2
    while name in tensors or name == "__metadata__":  # 0 and "0" are two keys; the other name is the format's own
        name, number = f"{wanted}~{number}", number + 1
    tensors[name] = tensor
    return name


def _called(where: tuple[Any, ...]) -> str:
    return "state" + "".join(f"[{key!r}]" for key in where)


def _restored(told: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_plain` was given."""
    if isinstance(told, list):
        return [_restored(item, tensors) for item in told]
    if not isinstance(told, dict):
        return told
    match list(told.items()):
        case [("$tensor", name)]:
            return tensors[name]
        case [("$tuple", items)]:
            return tuple(_restored(item, tensors) for item in items)
        case [("$float", text)]:
            return float(text)
        case [("$dict", pairs)]:
            return {_restored(key, tensors): _restored(item, tensors) for key, item in pairs}
    return {key: _restored(item, tensors) for key, item in told.items()}


def _write(path: Path, content: bytes) -> str:
    """Write a file that must not be there yet; gives its SHA-256."""
    return _write_pieces(path, [memoryview(content)])


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a file in the format of safetensors (its README, section "Format"); gives its SHA-256.

    The library writes such files from tensors that all lie in memory of the CPU at once and share none of it, and the file
    would have to be read again for its SHA-256. Here they come one after another, from whatever device they lie on.
    """
    ordered = sorted(tensors, key=lambda name: -tensors[name].itemsize)  # so that each begins at a multiple of its size
    header: dict[str, Any] = {}
    end = 0
    for name in ordered:
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)

    def pieces() -> Iterator[memoryview]:
        yield memoryview(len(told).to_bytes(8, "little") + told)
        for name in ordered:
            numbers = tensors[name].detach().cpu().resolve_neg().contiguous()
            if numbers.numel():
                yield numbers.reshape(-1).view(torch.uint8).numpy().data

    return _write_pieces(path, pieces())


def _write_pieces(path: Path, pieces: Iterator[memoryview] | list[memoryview]) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("xb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
    except FileExistsError as error:
        raise UsageError(f"The file {path.name} was written by the caller; that name is the checkpoint's own.") from error
    except OSError as error:
        error.filename = str(path)  # a full disk does not say which file it refused
        raise
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(folder: Path, step: int) -> str | None:
    """What is wrong with a checkpoint, as a sentence; None where every file is what was written."""
    if not (folder / _MANIFEST).is_file():
        return f"it has no {_MANIFEST}, so it was not written to its end, or that file was removed."
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        version, told = manifest["format"], manifest["step"]
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"its {_MANIFEST} cannot be understood ({type(error).__name__}: {error})."
    if version != _FORMAT:
        return f"it is of format {version!r}, and this version of Vitral reads {_FORMAT}. Update Vitral."
    if told != step:
        return f"its {_MANIFEST} is of step {told!r}, its folder's name of step {step}."
    for name in sorted({_TENSORS, _OTHERS, *files}):
        try:
            if name not in files:
                return f"its {_MANIFEST} does not list {name}."
            if not (folder / name).is_file():
                return f"{name} is missing."
            size, digest = files[name]
            if (found := (folder / name).stat().st_size) != size:
                return f"{name} has {found} bytes where {size} were written."
            if _digest(folder / name) != digest:
                return f"{name} is not what was written (its SHA-256 differs)."
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})."
    return None
