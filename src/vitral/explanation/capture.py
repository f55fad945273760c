"""What happens inside a network while it computes: attention maps, queries, keys, values, residual streams.

    with capture(model, layers=[-1], queries=0) as maps:
        model(pixels)
    maps[-1]                    # (b, h, 1, m): how the class token of the last block attends

Every attention of the house is mixed by `layers.attention.ScaledDotProduct`. That module is watched from outside for the
length of the `with`: fused kernels run as ever, the map is computed beside them from what they were given, and only for
the heads and rows that were asked for. The model's output does not change by a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any, Literal, SupportsIndex, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.layers.attention import ScaledDotProduct
from vitral.layers.block import Block

__all__ = ["Captured", "Layer", "LayerName", "Part", "attention_layers", "capture", "find_layer"]

LayerName = SupportsIndex | str
"""A layer by its number among the blocks (from the first, or negative from the last), or by name: "blocks.3.attention"."""

Part = Literal[
    "attention",
    "queries",
    "keys",
    "values",
    "attention_input",
    "attention_output",
    "mlp_hidden",
    "mlp_output",
    "residual_pre",
    "residual_mid",
    "residual_post",
]
"""What can be captured of a layer.

- attention (b h n m): softmax(QKᵀ · scale + bias), the map that mixes the values; single precision or better.
- queries (b h n k), keys (b h m k), values (b h m v): as they enter the product, after norms and rotation.
- attention_input (b n d): the tokens that the attention of a block reads, after a norm that stands before it.
- attention_output, mlp_output (b n d): what a branch adds to the residual stream.
- mlp_hidden (b n f): the hidden layer of the feed-forward network after its nonlinearity.
- residual_pre, residual_mid, residual_post (b n d): the stream of tokens before the block, between its attention and its
  feed-forward network, and after the block (the "hidden states").
"""
_OF_PRODUCT: tuple[Part, ...] = ("attention", "queries", "keys", "values")


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention of a network.

    Attributes:
        name: where it lies: "blocks.3.attention", "pool".
        product: the module that mixes its values.
        block: the transformer block it is part of; None where it stands alone, as in attention pooling.
    """

    name: str
    product: ScaledDotProduct
    block: Block | None


class Captured:
    """What was captured: `captured[layer]`, or `captured[layer, part]` where several parts were asked for.

    Layers are named as in `capture`. Each new forward through the model replaces what the last one left.
    """

    def __init__(self, layers: Sequence[Layer], known: Sequence[Layer], parts: Sequence[Part]) -> None:
        self._known, self._parts = known, tuple(parts)
        self.layers = tuple(layer.name for layer in layers)
        self._found: dict[tuple[str, Part], Any] = {}

    def __repr__(self) -> str:
        return f"Captured({', '.join(self._parts)} of {len(self.layers)} layers: {', '.join(self.layers)})"

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        """What was captured of the first part, layer by layer in the network's order."""
        return (self[name] for name in self.layers)

    def __getitem__(self, asked: LayerName | tuple[LayerName, Part]) -> Any:
        """A tensor, or whatever `reduce` made of it.

        Raises:
            UsageError: it was not asked for, or no forward has passed since.
        """
        name, part = asked if isinstance(asked, tuple) else (asked, self._parts[0])
        layer = find_layer(self._known, name)
        if part not in self._parts or layer.name not in self.layers:
            raise UsageError(
                f"{part} of {layer.name} was not captured, only {', '.join(self._parts)} of {', '.join(self.layers)}."
            )
        if (layer.name, part) not in self._found:
            raise UsageError(f"Nothing passed {layer.name} yet: call the model inside the `with`.")
        return self._found[layer.name, part]

    def blocks(self, start: SupportsIndex = 0) -> tuple[str, ...]:
        """The captured layers that are part of blocks, from one of them on.

        Raises:
            UsageError: there are not so many.
        """
        inside = tuple(name for name in self.layers if find_layer(self._known, name).block is not None)
        place = as_integer(start)
        if place is None or not -len(inside) <= place < len(inside):
            raise UsageError(f"start={start!r}, but the model has {len(inside)} layers, numbered 0 to {len(inside) - 1}.")
        return inside[place:]

    @property
    def pool(self) -> str | None:
        """The captured layer that pools by attention what the last block left; None where there is none."""
        return next((name for name in self.layers if find_layer(self._known, name).block is None), None)

    def keep(self, layer: str, part: Part, value: Any) -> None:
        """Take what was seen of a layer."""
        self._found[layer, part] = value


def attention_layers(model: nn.Module) -> tuple[Layer, ...]:
    """Every attention of a network, in its order.

    Raises:
        UsageError: it has none, or hides them behind `torch.compile`, which forgets whoever began to watch later.
    """
    if any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in model.modules()):
        raise UsageError("A compiled model cannot be watched. Pass the model as it was before torch.compile.")
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Block)}
    layers = []
    for path, module in model.named_modules():
        if isinstance(module, ScaledDotProduct):
            above = ["", *(path[:end] for end in range(len(path)) if path[end] == ".")]
            block = next((blocks[name] for name in reversed(above) if name in blocks), None)
            layers.append(Layer(above[-1] or path, module, block))
    if not layers:
        raise UsageError(f"A {type(model).__name__} has no attention to look at.")
    return tuple(layers)


def find_layer(layers: Sequence[Layer], asked: LayerName) -> Layer:
    """The layer that a name or a number means; numbers count the attentions of blocks.

    Raises:
        UnknownNameError: no layer is called so.
        UsageError: there are not so many.
    """
    if isinstance(asked, str):
        for layer in layers:
            if asked in (layer.name, layer.name.removesuffix(".attention")):
                return layer
        raise UnknownNameError("layer", asked, [layer.name for layer in layers])
    inside = [layer for layer in layers if layer.block is not None] or list(layers)
    number = as_integer(asked)
    if number is None:
        raise UsageError(f"A layer is a number or a name such as {layers[0].name!r}; {asked!r} came.")
    if not -len(inside) <= number < len(inside):
        raise UsageError(
            f"There is no layer {number}: the model has {len(inside)}, numbered 0 to {len(inside) - 1} (or -1 for the last)."
        )
    return inside[number]


@contextmanager
def capture(
    model: nn.Module,
    layers: LayerName | Iterable[LayerName] | None = None,
    *,
    parts: Part | Iterable[Part] = "attention",
    heads: SupportsIndex | Iterable[SupportsIndex] | None = None,
    queries: SupportsIndex | Iterable[SupportsIndex] | None = None,
    gradients: bool = False,
    reduce: Callable[[Tensor], Any] | None = None,
) -> Iterator[Captured]:
    """Watch a model for the length of a `with`; afterwards, also after an exception, nothing is left in it.

    Args:
        model: any network whose attention is the house's.
        layers: which, by number or name; None for all.
        parts: what to keep of each; see `Part`.
        heads: which heads of attention maps, queries, keys and values; None for all.
        queries: which asking tokens (rows) of attention maps and queries; None for all. Only what is asked for is computed.
        gradients: keep what was captured in the graph, so that a score can be differentiated by it. Attention maps are
            then mixed in the open instead of by a fused kernel, and the output agrees with the usual one up to rounding.
        reduce: what to keep of each tensor instead of itself, for what is too large to be kept: called as
            soon as the tensor is there.

    Captures may be nested; of those with gradients the innermost one's maps are the ones that mix.

    Raises:
        UsageError: the model has no attention, or not what was asked for.
        UnknownNameError: no such part or layer.
    """
    known = attention_layers(model)
    wanted_parts = _parts(parts)
    if layers is None:
        everywhere = set(wanted_parts) <= set(_OF_PRODUCT)
        wanted = [layer for layer in known if layer.block is not None or everywhere] or list(known)
    else:
        asked = {find_layer(known, name) for name in _listed(layers)}
        wanted = [layer for layer in known if layer in asked]
    if not wanted:
        raise UsageError("No layer to capture was named. Leave layers out for all of them.")
    if gradients and (heads is not None or queries is not None):
        raise UsageError("With gradients=True whole maps are mixed; leave heads and queries out and index the result.")
    if gradients and not torch.is_grad_enabled():
        raise UsageError("gradients=True needs gradients to be recorded, but they are switched off here (torch.no_grad).")
    places = _places(heads, "heads"), _places(queries, "queries")
    captured = Captured(wanted, known, wanted_parts)
    handles: list[RemovableHandle] = []
    watch = _Watch()
    try:
        for layer in wanted:
            pick = _Selection(layer.name, *places)
            for part in wanted_parts:
                keep = partial(_keep, captured, layer.name, part, gradients, reduce)
                handles.append(_watch(layer, part, keep, pick, gradients, watch))
        yield captured
    finally:
        watch.over = True
        for handle in handles:
            handle.remove()


class _Watch:
    """Lets a hook see what its own `with` asked for, and nothing else.

    A forward of another thread through the same model is none of ours, nor is one through a copy that was made meanwhile
    (`copy.deepcopy` copies hooks, and nobody would remove them there).
    """

    def __init__(self) -> None:
        self.thread, self.over = get_ident(), False

    def only(self, watched: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook, deaf to all else."""

        def heard(module: nn.Module, *given: Any) -> Any:
            ours = module is watched and not self.over and get_ident() == self.thread
            return hook(module, *given) if ours else None

        return heard


def _keep(
    captured: Captured,
    name: str,
    part: Part,
    gradients: bool,
    reduce: Callable[[Tensor], Any] | None,
    value: Tensor,
) -> None:
    if gradients and not value.requires_grad:
        raise UsageError(
            f"{part} of {name} leads back to nothing that requires a gradient. Call requires_grad_() on the pixels, "
            "and the model where gradients are recorded."
        )
    value = value if gradients else value.detach()
    captured.keep(name, part, value if reduce is None else reduce(value))


def _parts(parts: str | Iterable[str]) -> list[Part]:
    wanted = [parts] if isinstance(parts, str) else list(parts)
    for part in wanted:
        if part not in get_args(Part):
            raise UnknownNameError("part of a layer", part, get_args(Part))
    if not wanted:
        raise UsageError(f"No part to capture was named. Known: {', '.join(get_args(Part))}.")
    return cast(list[Part], wanted)


def _places(asked: SupportsIndex | Iterable[SupportsIndex] | None, kind: str) -> list[int] | None:
    if asked is None:
        return None
    places = [as_integer(place) for place in _listed(asked)]
    if not places or None in places:
        raise UsageError(f"{kind} must be a whole number or some of them; {asked!r} came.")
    return cast(list[int], places)


def _listed(asked: Any) -> list[Any]:
    """A list of what may have come alone."""
    alone = isinstance(asked, str) or as_integer(asked) is not None or not isinstance(asked, Iterable)
    return [asked] if alone else list(asked)


@dataclass(frozen=True)
class _Selection:
    """Heads and rows to be kept of a layer's tensors (b h n …)."""

    layer: str
    heads: list[int] | None
    rows: list[int] | None

    def __call__(self, x: Tensor) -> Tensor:
        # Rows come first: of a bias as large as a map, nothing so large is copied for one row.
        return self.of_heads(self._chosen(x, self.rows, 2, "asking token"))

    def of_heads(self, x: Tensor) -> Tensor:
        return self._chosen(x, self.heads, 1, "head")

    def _chosen(self, x: Tensor, places: list[int] | None, dim: int, kind: str) -> Tensor:
        if places is None:
            return x
        count = x.shape[dim]
        for place in places:
            if not -count <= place < count:
                raise UsageError(
                    f"There is no {kind} {place}: {self.layer} has {count}, numbered 0 to {count - 1} (or -1 for the last)."
                )
        return x.index_select(dim, torch.tensor([place % count for place in places], device=x.device))


def _watch(
    layer: Layer, part: Part, keep: Callable[[Tensor], None], pick: _Selection, mix: bool, watch: _Watch
) -> RemovableHandle:
    """Hang a hook where a part of a layer can be seen."""
    if part in _OF_PRODUCT:
        return _watch_product(layer.product, part, keep, pick, mix, watch)
    block = layer.block
    if block is None:
        raise UsageError(f"{layer.name} is not inside a block, so it has no {part}; it has {', '.join(_OF_PRODUCT)}.")
    between = block.norm2 if block.placement == "pre" else block.mlp
    entering: dict[Part, nn.Module] = {
        "residual_pre": block,
        "attention_input": block.attention,
        "residual_mid": between,
        "mlp_hidden": cast(nn.Module, block.mlp.down),
    }
    if part in entering:
        module = entering[part]
        return module.register_forward_pre_hook(watch.only(module, lambda _, inputs: keep(inputs[0])))
    # What a branch adds has passed its gain, and its norm where that stands behind the branch.
    leaving: dict[Part, nn.Module] = {
        "residual_post": block,
        "attention_output": block.scale1,
        "mlp_output": block.scale2,
    }
    module = leaving[part]
    return module.register_forward_hook(watch.only(module, lambda _, inputs, output: keep(output)))


def _watch_product(
    product: ScaledDotProduct, part: Part, keep: Callable[[Tensor], None], pick: _Selection, mix: bool, watch: _Watch
) -> RemovableHandle:
    def see(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor | None:
        given = dict(zip(("queries", "keys", "values", "bias"), inputs, strict=False)) | named
        if part != "attention":
            value = pick(given[part]) if part == "queries" else pick.of_heads(given[part])
            keep(value if mix else value.contiguous())  # as a view it would keep queries, keys and values in memory
            return None
        queries, keys, bias = given["queries"], given["keys"], given.get("bias")
        if bias is not None:  # it may be one for all heads or rows; where it is one for all pictures, it stays so
            bias = pick(bias.expand(-1, *queries.shape[1:3], keys.shape[2]))
        with torch.set_grad_enabled(mix and torch.is_grad_enabled()):
            weights = product.weights(pick(queries), pick.of_heads(keys), bias)
        keep(weights)
        if not mix:
            return None
        weights = F.dropout(weights, product.dropout, product.training)
        return weights.to(output.dtype) @ given["values"]

    return product.register_forward_hook(watch.only(product, see), with_kwargs=True)
