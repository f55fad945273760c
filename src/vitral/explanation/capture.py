"""What happens inside a network while it computes: attention maps, queries, keys, values, residual streams.

    with capture(model, layers=[-1], queries=0) as maps:
        model(pixels)
    maps[-1]                    # (b, h, 1, m): how the class token of the last block attends

Every attention of the house is mixed by `layers.attention.ScaledDotProduct`. That module is watched from outside for the
length of the `with`: fused kernels run as ever, the map is computed beside them from what they were given, and only for
the heads and rows that were asked for. The model's output does not change by a bit.

An attention in windows or along lines mixes few tokens at a time. What is captured of it is the map between all tokens of
its grid, in reading order, windows and shifts undone; `captured.grid(layer)` is the grid, which differs from stage to stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import get_ident
from typing import Any, Literal, SupportsIndex, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.layout import Layout, cut, layout_of
from vitral.explanation.stages import coarser
from vitral.layers.attention import ScaledDotProduct
from vitral.layers.block import Block
from vitral.layers.position import Grid

__all__ = ["Captured", "Layer", "LayerName", "Part", "Watch", "attention_layers", "capture", "check_watchable", "find_layer"]

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

- attention (b h n m): softmax(QKᵀ · scale + bias), the map that mixes the values; single precision or better. Of windows and
  lines it is the map between all tokens; its rows sum to less than one where windows hold tokens that only fill them up, as
  what is paid to those is left out. Where channels attend to each other (XCiT) it is the map between those.
- queries (b h n k), keys (b h m k), values (b h m v): as they enter the product, after norms and rotation; of windows and
  lines one after the other, as if each were a picture (w h s k).
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
        layout: how the tokens that the product sees lie among those of the picture.
    """

    name: str
    product: ScaledDotProduct
    block: Block | None
    layout: Layout


@dataclass(frozen=True)
class _Tokens:
    """What entered a layer: how many tokens, their grid where somebody knows it, and how many the product saw of them."""

    count: int
    grid: Grid | None
    asking: int = 0
    asked: int = 0


class Captured:
    """What was captured: `captured[layer]`, or `captured[layer, part]` where several parts were asked for.

    Layers are named as in `capture`. Each new forward through the model replaces what the last one left.
    """

    def __init__(self, layers: Sequence[Layer], known: Sequence[Layer], parts: Sequence[Part]) -> None:
        self._known, self._parts = known, tuple(parts)
        self.layers = tuple(layer.name for layer in layers)
        self._found: dict[tuple[str, Part], Any] = {}
        self._tokens: dict[str, _Tokens] = {}
        self._size: tuple[int, int] | None = None
        self._grid_of: Callable[[tuple[int, int]], Grid] | None = None

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

    def grid(self, layer: LayerName) -> Grid:
        """Rows and columns of the tokens that enter a layer; those of a pool are the tokens it reads.

        Raises:
            UsageError: the layer was not captured, nothing has passed it, or nobody told it on which grid its tokens lie.
        """
        seen = self._seen(layer)
        grid = seen.grid
        if grid is None and self._grid_of is not None and self._size is not None:
            grid = self._grid_of(self._size)
        if grid is None or grid[0] * grid[1] > seen.count:
            raise UsageError(
                f"{find_layer(self._known, layer).name} does not tell on which grid its {seen.count} tokens lie."
            )
        return grid

    def prefix(self, layer: LayerName) -> int:
        """How many tokens stand before those of the grid where they enter a layer."""
        rows, columns = self.grid(layer)
        return self._seen(layer).count - rows * columns

    def asked_grid(self, layer: LayerName) -> Grid:
        """Rows and columns of the tokens that are asked, the columns of a map: coarser where a layer averages them first.

        Raises:
            UsageError: as for `grid`, or no grid over that of the asking tokens has so many cells.
        """
        grid, seen = self.grid(layer), self._seen(layer)
        layout = find_layer(self._known, layer).layout
        if layout.asked is not None:
            return layout.asked(grid, seen.asked)
        if layout.whole is not None or seen.asked in (0, seen.count, grid[0] * grid[1]):
            return grid
        prefix = self.prefix(layer)
        found = coarser(grid, seen.asked - prefix) or coarser(grid, seen.asked)
        if found is None:
            raise UsageError(f"{find_layer(self._known, layer).name} asks {seen.asked} tokens on a grid that is not known.")
        return found

    def channels(self, layer: LayerName) -> bool:
        """Whether a layer's map is between channels, and says of no token where it looks."""
        return find_layer(self._known, layer).layout.channels

    def whole(self, layer: LayerName, weights: Float[Tensor, "w h s t"]) -> Float[Tensor, "b h n m"]:
        """The map between all tokens of a layer, of what was captured with `whole=False` and may have been changed since.

        Args:
            layer: which.
            weights: one for each pair that its product mixes; of fused heads (w 1 s t).
        """
        layout = find_layer(self._known, layer).layout
        return weights if layout.whole is None else layout.whole(weights, self.grid(layer))

    def keep(self, layer: str, part: Part, value: Any) -> None:
        """Take what was seen of a layer."""
        self._found[layer, part] = value

    def entered(self, layer: str, tokens: Tensor, grid: Grid | None) -> None:
        """Take note of what enters a layer: tokens (b n d), or a map (b d i j)."""
        if grid is None and tokens.ndim == 4:
            grid = (tokens.shape[2], tokens.shape[3])
        count = tokens.shape[1] if tokens.ndim == 3 else tokens.shape[-2] * tokens.shape[-1]
        self._tokens[layer] = _Tokens(count, grid)

    def mixed(self, layer: str, asking: int, asked: int) -> None:
        """Take note of how many tokens a layer's product saw."""
        before = self._tokens.get(layer, _Tokens(asked, None))
        self._tokens[layer] = _Tokens(before.count, before.grid, asking, asked)

    def looks_at(self, model: Any, pixels: Any) -> None:
        """Take note of what enters the model, for layers that are not told the grid."""
        if isinstance(pixels, Tensor) and pixels.ndim == 4:
            self._size = (pixels.shape[2], pixels.shape[3])
            self._grid_of = getattr(getattr(model, "config", None), "grid_of", None)

    def _seen(self, layer: LayerName) -> _Tokens:
        name = find_layer(self._known, layer).name
        if name not in self.layers:
            raise UsageError(f"{name} was not captured, only {', '.join(self.layers)}.")
        if name not in self._tokens:
            raise UsageError(f"Nothing passed {name} yet: call the model inside the `with`.")
        return self._tokens[name]


def attention_layers(model: nn.Module) -> tuple[Layer, ...]:
    """Every attention of a network, in its order.

    Raises:
        UsageError: it has none, or hides them behind `torch.compile`, which forgets whoever began to watch later.
    """
    check_watchable(model)
    modules = dict(model.named_modules())
    layers = []
    for path, module in modules.items():
        if isinstance(module, ScaledDotProduct):
            above = ["", *(path[:end] for end in range(len(path)) if path[end] == ".")]
            around = [modules[name] for name in reversed(above)]
            block = next((one for one in around if isinstance(one, Block)), None)
            layers.append(Layer(above[-1] or path, module, block, layout_of(module, around)))
    if not layers:
        raise UsageError(f"A {type(model).__name__} has no attention to look at.")
    return tuple(layers)


def check_watchable(model: nn.Module) -> None:
    """Refuse a network behind `torch.compile`, which forgets whoever began to watch later.

    Raises:
        UsageError: saying what to pass instead.
    """
    if any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in model.modules()):
        raise UsageError("A compiled model cannot be watched. Pass the model as it was before torch.compile.")


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
    whole: bool = True,
    reduce: Callable[[Tensor], Any] | None = None,
) -> Iterator[Captured]:
    """Watch a model for the length of a `with`; afterwards, also after an exception, nothing is left in it.

    Args:
        model: any network whose attention is the house's.
        layers: which, by number or name; None for all.
        parts: what to keep of each; see `Part`.
        heads: which heads of attention maps, queries, keys and values; None for all.
        queries: which asking tokens (rows) of attention maps and queries; None for all. Only what is asked for is computed;
            but of windows and lines whole maps are laid out, one head at a time, before the rows are taken.
        gradients: keep what was captured in the graph, so that a score can be differentiated by it. Attention maps are
            then mixed in the open instead of by a fused kernel, and the output agrees with the usual one up to rounding.
        whole: whether maps of windows and lines are laid out over all tokens. If not they are kept as they are mixed, one
            window after the other (w h s s), which takes far less memory on a fine grid; `captured.whole` lays them out.
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
    if queries is not None and not whole:
        raise UsageError("queries number the tokens of the whole grid; leave whole=False out.")
    if gradients and not torch.is_grad_enabled():
        raise UsageError("gradients=True needs gradients to be recorded, but they are switched off here (torch.no_grad).")
    places = _places(heads, "heads"), _places(queries, "queries")
    captured = Captured(wanted, known, wanted_parts)
    handles: list[RemovableHandle] = []
    watch = Watch()
    try:
        handles.append(
            model.register_forward_pre_hook(
                watch.only(model, lambda one, given: captured.looks_at(one, next(iter(given), 0)))
            )
        )
        for layer in wanted:
            handles += _watch_tokens(layer, captured, watch)
            pick = _Selection(layer.name, *places)
            for part in wanted_parts:
                keep = partial(_keep, captured, layer.name, part, gradients, reduce)
                lay = partial(captured.whole, layer.name) if whole and layer.layout.whole is not None else None
                handles.append(_watch(layer, part, keep, pick, gradients, lay, watch))
        yield captured
    finally:
        watch.over = True
        for handle in handles:
            handle.remove()


class Watch:
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
        return self.of_heads(self.of_rows(x))

    def of_rows(self, x: Tensor) -> Tensor:
        return self._chosen(x, self.rows, 2, "asking token")

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


def _watch_tokens(layer: Layer, captured: Captured, watch: Watch) -> list[RemovableHandle]:
    """Hang hooks where it can be seen how many tokens enter a layer, and on which grid they lie."""

    def enter(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = (*inputs, *named.values())
        tokens = next((one for one in given if isinstance(one, Tensor)), None)
        if tokens is not None:
            captured.entered(layer.name, tokens, next((tuple(one) for one in given if _is_grid(one)), None))

    def mixed(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        queries, keys, *_rest = (*inputs, *named.values())
        captured.mixed(layer.name, queries.shape[2], keys.shape[2])

    around, product = layer.layout.around, layer.product
    return [
        around.register_forward_pre_hook(watch.only(around, enter), with_kwargs=True),
        product.register_forward_pre_hook(watch.only(product, mixed), with_kwargs=True),
    ]


def _is_grid(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(side, int) for side in given)


def _watch(
    layer: Layer,
    part: Part,
    keep: Callable[[Tensor], None],
    pick: _Selection,
    mix: bool,
    lay: Callable[[Tensor], Tensor] | None,
    watch: Watch,
) -> RemovableHandle:
    """Hang a hook where a part of a layer can be seen."""
    if part in _OF_PRODUCT:
        return _watch_product(layer.product, part, keep, pick, mix, lay, watch)
    block = layer.block
    if block is None:
        raise UsageError(f"{layer.name} is not inside a block, so it has no {part}; it has {', '.join(_OF_PRODUCT)}.")
    between = block.norm2 if block.placement == "pre" else block.mlp
    if part == "mlp_hidden" and not hasattr(block.mlp, "down"):
        raise UsageError(f"{layer.name} is followed by a {type(block.mlp).__name__}, which has no {part}.")
    entering: dict[Part, nn.Module] = {
        "residual_pre": block,
        "attention_input": block.attention,
        "residual_mid": between,
        "mlp_hidden": cast(nn.Module, getattr(block.mlp, "down", block.mlp)),
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
    product: ScaledDotProduct,
    part: Part,
    keep: Callable[[Tensor], None],
    pick: _Selection,
    mix: bool,
    lay: Callable[[Tensor], Tensor] | None,
    watch: Watch,
) -> RemovableHandle:
    # Rows are those of the whole grid, and the product of windows does not know them.
    at_once = pick if lay is None else replace(pick, rows=None)

    def see(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor | None:
        given = dict(zip(("queries", "keys", "values", "bias"), inputs, strict=False)) | named
        if part != "attention":
            value = at_once(given[part]) if part == "queries" else pick.of_heads(given[part])
            keep(value if mix else value.contiguous())  # as a view it would keep queries, keys and values in memory
            return None
        queries, keys, bias = given["queries"], given["keys"], given.get("bias")
        if bias is not None:  # it may be one for all heads or rows; where it is one for all pictures, it stays so
            bias = at_once(bias.expand(-1, *queries.shape[1:3], keys.shape[2]))
        with torch.set_grad_enabled(mix and torch.is_grad_enabled()):
            weights = product.weights(at_once(queries), pick.of_heads(keys), bias)
        if lay is None:
            keep(weights)
        elif mix:  # what is mixed is cut out of the whole map, so that a score can be differentiated by that
            laid = lay(weights)
            weights = cut(laid, weights, lay)
            keep(laid)
        else:
            keep(
                lay(weights) if pick.rows is None else torch.cat([pick.of_rows(lay(one)) for one in weights.split(1, 1)], 1)
            )
        if not mix:
            return None
        weights = F.dropout(weights, product.dropout, product.training)
        return weights.to(output.dtype) @ given["values"]

    return product.register_forward_hook(watch.only(product, see), with_kwargs=True)
