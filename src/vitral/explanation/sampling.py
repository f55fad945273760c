"""Where deformable attention looks: the places it samples, and how much each counts.

    with capture_samples(model) as found:
        model(pixels)
    found["decoder.5.cross_attention"].locations    # (b n h l p 2), from 0 to 1 over the maps
    found["decoder.5.cross_attention"].weights      # (b n h l p), summing to one over l and p

There is no map to be captured in deformable attention (Zhu et al. 2021, Deformable DETR, equation 3): a token names a few
places, and no other is ever compared with it. `layers.deformable.WeightedSamples` is handed them, and is watched from
outside as `explanation.capture` watches products; nothing in the model changes. What the places come to for each cell of
the maps, so that it can be held beside an attention map, is `Samples.on_cells`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import Watch, check_watchable
from vitral.layers.deformable import WeightedSamples
from vitral.layers.position import Grid

__all__ = ["CapturedSamples", "Samples", "capture_samples", "sampling_layers"]


@dataclass(frozen=True, eq=False)
class Samples:
    """What one layer of deformable attention looked up.

    Attributes:
        locations: x and y of every place, from 0 at the left and upper edge of the maps to 1 at the right and lower one; a
            place may lie beyond (b n h l p 2). In pictures that fill their input these are shares of its sides.
        weights: how much each place counts; they sum to one over maps and places (b n h l p). Where maps have different
            numbers of places, zeros fill up the shorter ones.
        grids: rows and columns of each map, in the order of l.
        module: what looked them up.
    """

    locations: Float[Tensor, "b n h l p 2"]
    weights: Float[Tensor, "b n h l p"]
    grids: tuple[Grid, ...]
    module: WeightedSamples

    def of(self, tokens: Iterable[int], picture: int = 0) -> Samples:
        """Those of some asking tokens of one picture, as a batch of one."""
        rows = list(tokens)
        one = slice(picture, picture + 1)
        return Samples(self.locations[one, rows], self.weights[one, rows], self.grids, self.module)

    def on_cells(self) -> tuple[Float[Tensor, "b n h _"], ...]:
        """How much each cell counts for each token and head, map by map, in reading order.

        Between cells a place takes from the four around it, by their distance. The attention is linear in what the cells
        tell, so what a cell counts is the derivative by it; and what lies beyond the edge of a map counts for nothing.
        """
        batch, count, heads = self.weights.shape[:3]
        cells = [rows * columns for rows, columns in self.grids]
        with torch.inference_mode(False), torch.enable_grad():
            told = self.weights.new_zeros(batch * count, sum(cells), heads, 1, requires_grad=True)
            each = (
                self.locations.detach().clone().flatten(0, 1)[:, None],
                self.weights.detach().clone().flatten(0, 1)[:, None],
            )
            # Its hooks are for what the model looks up.
            found = WeightedSamples(self.module.sampling)(told, each[0].to(told), each[1], self.grids)
            [counts] = torch.autograd.grad(found.sum(), [told])
        laid = counts[..., 0].unflatten(0, (batch, count)).transpose(2, 3)
        return laid.split(cells, dim=-1)


class CapturedSamples:
    """What was captured: `found[layer]`. Each new forward replaces what the last one left."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self.layers = layers
        self._found: dict[str, Samples] = {}

    def __repr__(self) -> str:
        return f"CapturedSamples({len(self.layers)} layers: {', '.join(self.layers)})"

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Samples]:
        """Layer by layer, in the network's order."""
        return (self[name] for name in self.layers)

    def __getitem__(self, layer: str) -> Samples:
        """What a layer looked up.

        Raises:
            UnknownNameError: it was not watched.
            UsageError: nothing has passed it.
        """
        if layer not in self.layers:
            raise UnknownNameError("captured layer", layer, self.layers)
        if layer not in self._found:
            raise UsageError(f"Nothing passed {layer} yet: call the model inside the `with`.")
        return self._found[layer]

    def keep(self, layer: str, samples: Samples) -> None:
        """Take what was seen of a layer."""
        self._found[layer] = samples


def sampling_layers(model: nn.Module) -> tuple[str, ...]:
    """The names of all deformable attentions of a network, in its order; none where it has none."""
    return tuple(_inside(model))


def _inside(model: nn.Module) -> dict[str, WeightedSamples]:
    """Name of the attention → what looks up in it."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, WeightedSamples))
    return {name.rpartition(".")[0] or name: module for name, module in found}


@contextmanager
def capture_samples(
    model: nn.Module, layers: str | Iterable[str] | None = None, *, gradients: bool = False
) -> Iterator[CapturedSamples]:
    """Watch where deformable attention looks, for the length of a `with`; nothing is left in the model afterwards.

    Args:
        model: a network with deformable attention.
        layers: which, by name (see `sampling_layers`); None for all.
        gradients: keep what was captured in the graph.

    Raises:
        UsageError: the model has none, or is compiled.
        UnknownNameError: no such layer.
    """
    check_watchable(model)
    known = _inside(model)
    if not known:
        raise UsageError(f"A {type(model).__name__} has no deformable attention; its maps are captured with `capture`.")
    asked = [layers] if isinstance(layers, str) else list(known) if layers is None else list(layers)
    for name in asked:
        if name not in known:
            raise UnknownNameError("layer", name, known)
    captured, watch = CapturedSamples(tuple(name for name in known if name in asked)), Watch()
    handles: list[RemovableHandle] = []

    def see(name: str, module: WeightedSamples) -> RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            given = dict(zip(("values", "locations", "weights", "grids"), inputs, strict=False)) | named
            locations, weights = (given[one] if gradients else given[one].detach() for one in ("locations", "weights"))
            captured.keep(name, Samples(locations, weights, tuple(map(tuple, given["grids"])), module))

        return module.register_forward_pre_hook(watch.only(module, hook), with_kwargs=True)

    try:
        for name in captured.layers:
            handles.append(see(name, known[name]))
        yield captured
    finally:
        watch.over = True
        for handle in handles:
            handle.remove()
