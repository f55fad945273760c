"""Name tables: which tensors of a foreign layout make which of our parameters, readable in both directions.

A table is a list of rows, built in plain Python from a model's configuration, so that it names every tensor a file must
hold: what is missing, unexpected or misshaped follows from it, and so does the file we write back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitral.errors import CheckpointError, MismatchError

__all__ = ["Row", "Tensors", "fill", "foreign_state", "permuted", "renamed", "same", "shaped", "stacked"]

Tensors = Mapping[str, Tensor]
"""A checkpoint's tensors by name; may read each from disk only when it is asked for."""


@dataclass(frozen=True)
class Row:
    """One of our parameters and the foreign tensors that hold it.

    Attributes:
        ours: our parameter's name.
        theirs: the foreign tensors' names.
        read: foreign tensors → ours.
        write: ours → foreign tensors; the exact inverse.
    """

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[Sequence[Tensor]], Tensor]
    write: Callable[[Tensor], Sequence[Tensor]]


def same(ours: str, theirs: str) -> Row:
    """The same tensor under another name."""
    return Row(ours, (theirs,), lambda parts: parts[0], lambda tensor: [tensor])


def renamed(ours: str, theirs: str, *, bias: bool = True) -> list[Row]:
    """A layer's weight and, unless told otherwise, bias, under another name."""
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in (("weight", "bias") if bias else ("weight",))]


def stacked(ours: str, *theirs: str) -> Row:
    """Several tensors of one shape, one above the other (queries, keys and values in one matrix)."""
    return Row(ours, theirs, lambda parts: torch.cat(list(parts)), lambda tensor: tensor.chunk(len(theirs)))


def shaped(ours: str, theirs: str, ours_shape: Sequence[int], theirs_shape: Sequence[int]) -> Row:
    """The same numbers in another shape."""
    return Row(ours, (theirs,), lambda parts: parts[0].reshape(*ours_shape), lambda t: [t.reshape(*theirs_shape)])


def permuted(ours: str, theirs: str, order: Sequence[int]) -> Row:
    """The same tensor with its dimensions in another order: ours[i] is theirs[order[i]]."""
    inverse = [order.index(axis) for axis in range(len(order))]
    return Row(ours, (theirs,), lambda parts: parts[0].permute(*order), lambda tensor: [tensor.permute(*inverse)])


def fill(
    model: nn.Module,
    rows: Iterable[Row],
    tensors: Tensors,
    *,
    source: str,
    ignored: Iterable[str] = (),
    advice: str = "",
) -> list[str]:
    """Give a model its weights in single precision, all of them or none.

    Args:
        model: a model whose parameters may be on the meta device.
        rows: the table.
        tensors: the checkpoint.
        source: what to call the checkpoint in a message.
        ignored: regular expressions of foreign names that are left out on purpose.
        advice: a last sentence for the message.

    Returns:
        The foreign names that were left out on purpose.

    Raises:
        MismatchError: a tensor is missing, unexpected or misshaped; the model is untouched.
        CheckpointError: a tensor is not made of floating-point numbers, or holds one that is not finite.
    """
    targets = model.state_dict(keep_vars=True)
    state: dict[str, Tensor] = {}
    missing: list[tuple[str, tuple[int, ...]]] = []
    misshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    used: set[str] = set()
    for row in rows:
        target = targets[row.ours]
        needed = [tuple(part.shape) for part in row.write(torch.empty(target.shape, device="meta"))]
        used.update(row.theirs)
        fits = True
        for name, shape in zip(row.theirs, needed, strict=True):
            if name not in tensors:
                missing.append((name, shape))
            elif tuple(tensors[name].shape) != shape:
                misshaped.append((name, tuple(tensors[name].shape), shape))
            fits = fits and name in tensors and tuple(tensors[name].shape) == shape
        if fits:
            parts = [tensors[name] for name in row.theirs]
            tensor = _checked(row.read(parts), target, row.theirs[0], source)
            # A file mapped into memory may be overwritten or cut short while the model lives.
            shared = any(tensor.untyped_storage().data_ptr() == part.untyped_storage().data_ptr() for part in parts)
            state[row.ours] = tensor.clone() if shared else tensor
    left = [name for name in tensors if name not in used]
    dropped = [name for name in left if any(re.fullmatch(pattern, name) for pattern in ignored) or not tensors[name].numel()]
    unexpected = [(name, tuple(tensors[name].shape)) for name in left if name not in set(dropped)]
    if missing or unexpected or misshaped:
        raise MismatchError(source, missing=missing, unexpected=unexpected, misshaped=misshaped, advice=advice)
    model.load_state_dict(state, strict=True, assign=True)
    stranded = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if stranded:
        raise CheckpointError(
            f"{', '.join(stranded)} of the model is in no file; a network computes such buffers when it runs."
        )
    return dropped


def _checked(tensor: Tensor, target: Tensor, name: str, source: str) -> Tensor:
    """A tensor fit for the place of `target`: dense and finite; in single precision, or counting if the place counts."""
    if tensor.is_floating_point() != target.is_floating_point():
        raise CheckpointError(f"{name} in {source} holds {tensor.dtype}; its place in the model holds {target.dtype}.")
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "no numbers" if tensor.is_meta else f"its numbers as {tensor.layout}"
        raise CheckpointError(f"{name} in {source} holds {kind}; plain, dense numbers were expected.")
    if not tensor.is_floating_point():
        return tensor.contiguous()
    tensor = tensor.float()
    # The sum is several times cheaper than a look at every number, and finite whenever all is well.
    if not math.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        raise CheckpointError(f"{name} in {source} holds numbers that are not finite (NaN or infinity).")
    return tensor.contiguous()


def foreign_state(model: nn.Module, rows: Iterable[Row]) -> dict[str, Tensor]:
    """A model's weights under the names of a foreign layout."""
    parameters = model.state_dict()
    state: dict[str, Tensor] = {}
    for row in rows:
        parts = row.write(parameters[row.ours].detach().cpu())
        # A file must not hold two views of one storage.
        state.update({name: part.clone().contiguous() for name, part in zip(row.theirs, parts, strict=True)})
    return state
