"""What a network costs, counted: parameters, multiply-adds, activations. Nothing is computed and no memory is taken.

A network of the same configuration is made without memory for its weights (on PyTorch's "meta" device) and asked about a
picture without pixels. Each call of a convolution, a linear layer, a matrix product, an attention or a recurrent layer is
seen as it passes, wherever it is made, and counted from the shapes of what went in and what came out.

Two units are in use, a factor of two apart. Papers that print "FLOPs" (ResNet, Swin, torchvision's and timm's tables,
fvcore) count a multiplication and the addition that follows it as one: this is `Cost.multiply_adds`. PyTorch's counter
(`torch.utils.flop_counter`) counts them as two: this is `Cost.torch_flops`, which that counter tells, not this page, so
that each checks the other.

Norms, activation functions, softmax, pooling, resizing and additions are not counted, as in most papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vitral.base.numbers import whole_number
from vitral.errors import UsageError
from vitral.models.network import Network

__all__ = ["Cost", "Counter", "profile"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network costs for a batch of pictures.

    Attributes:
        size: height and width of the pictures in pixels.
        batch: how many of them.
        parameters: numbers that are trained.
        multiply_adds: of the whole batch; what papers print as "FLOPs".
        attention: how many of them are the two products of attention, queries with keys and weights with values, without
            the projections before and behind.
        activations: numbers that come out of convolutions, linear layers, matrix products and both products of attention
            (Radosavovic et al. 2020, "Designing Network Design Spaces", section 3.2, who count convolutions; fvcore): what
            must pass through memory, which often says more about time than arithmetic does.
        torch_flops: what PyTorch's own counter says, a multiplication and an addition being two.
    """

    size: tuple[int, int]
    batch: int
    parameters: int
    multiply_adds: int
    attention: int
    activations: int
    torch_flops: int

    @property
    def agrees(self) -> bool:
        """Whether PyTorch's own counter comes to the same."""
        return self.torch_flops == 2 * self.multiply_adds


class _Work(NamedTuple):
    """What one call comes to."""

    multiply_adds: int
    activations: int


def profile(model: Network, size: int | tuple[int, int] | None = None, batch: int = 1) -> Cost:
    """Count what a network costs; it may lie on any device, and is left as it is.

    Args:
        model: the network.
        size: (height, width) of the pictures in pixels; one number for squares, None for the size the network is made for.
        batch: how many pictures.

    Raises:
        UsageError: a size or a batch that is none, or that the network cannot take; or a network whose costs depend on what
            it sees, as those of regions do.
    """
    given = model.config.image_size if size is None else (size, size) if isinstance(size, int) else size
    if len(given) != 2:
        raise UsageError(f"size must be a height and a width in pixels, or one number for squares; {size!r} came.")
    height, width = (whole_number("size", side) for side in given)
    batch = whole_number("batch", batch)
    with torch.device("meta"):
        hollow = type(model)(model.config).eval()
        pixels = torch.empty(batch, model.config.channels, height, width)
    theirs = FlopCounterMode(display=False)
    # With gradients recorded, as every quick road of ours, which no counter knows, is then closed.
    try:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False), Counter() as ours, theirs:
            hollow(pixels)
    except NotImplementedError as error:  # a value was asked for, and nothing has one here
        raise UsageError(
            f"What a {type(model).__name__} computes depends on what it sees, so that its cost cannot be told beforehand."
        ) from error
    return Cost(
        size=(height, width),
        batch=batch,
        parameters=sum(parameter.numel() for parameter in hollow.parameters()),
        multiply_adds=ours.multiply_adds,
        attention=ours.attention,
        activations=ours.activations,
        torch_flops=theirs.get_total_flops(),
    )


class Counter(TorchFunctionMode):
    """While this lasts, products of tensors are counted from their shapes, whoever asks for them.

        with Counter() as counter:
            model(pixels)
        counter.multiply_adds

    Gradients are not counted; neither are calls of a compiled network, or on the quick roads of `layers.linear`, which are
    taken where no gradient is recorded.

    Attributes:
        multiply_adds: so far.
        attention: how many of them are in the two products of attention.
        activations: numbers that came out so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = self.attention = self.activations = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Let a call pass, and count it if it is a product."""
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        work_of = _WORK.get(name)
        if work_of is not None:
            work = work_of([*args, *kwargs.values()], out)
            self.multiply_adds += work.multiply_adds
            self.activations += work.activations
            self.attention += work.multiply_adds if name == _ATTENTION else 0
        return out


_ATTENTION = "scaled_dot_product_attention"


def _convolution(given: Sequence[Any], out: Tensor) -> _Work:
    """Each number out is a sum over a window and the input channels of its group."""
    return _Work(out.numel() * math.prod(given[1].shape[1:]), out.numel())


def _transposed_convolution(given: Sequence[Any], out: Tensor) -> _Work:
    """Each number in goes to a window and the output channels of its group."""
    return _Work(given[0].numel() * math.prod(given[1].shape[1:]), out.numel())


def _product(left: int) -> Callable[[Sequence[Any], Tensor], _Work]:
    """A product whose left factor, the argument at `left`, is summed over its last axis."""
    return lambda given, out: _Work(out.numel() * given[left].shape[-1], out.numel())


def _attention(given: Sequence[Any], out: Tensor) -> _Work:
    """Queries (b h n k) with keys (b h m k), then the weights with values (b h m v)."""
    queries, keys = given[:2]
    weights = out.numel() // out.shape[-1] * keys.shape[-2]
    return _Work(weights * (queries.shape[-1] + out.shape[-1]), weights + out.numel())


def _einsum(given: Sequence[Any], out: Tensor) -> _Work:
    """Two factors: one multiplication for each choice of all indices, those aside that one factor alone sums over.

    Raises:
        UsageError: an equation of another kind.
    """
    equation, *factors = given
    if len(factors) == 1 and isinstance(factors[0], list | tuple):
        factors = list(factors[0])
    if not isinstance(equation, str) or len(factors) > 2:
        raise UsageError(f"Only products of two tensors, written as a text, can be counted; einsum of {equation!r} came.")
    if len(factors) == 1:
        return _Work(0, 0)
    asked, _, answer = equation.replace(" ", "").partition("->")
    sizes = [_indices(term, factor) for term, factor in zip(asked.split(","), factors, strict=True)]
    shared = sizes[0].keys() & sizes[1].keys()
    summed = [sizes[0][index] for index in shared if index not in answer and not index.isdecimal()]
    return _Work(out.numel() * math.prod(summed), out.numel())


def _indices(term: str, factor: Tensor) -> dict[str, int]:
    """Index → size of one factor; the axes that dots stand for are numbered from the last."""
    before, dots, behind = term.partition("...")
    count = factor.ndim - len(before) - len(behind)
    names = [*before, *(str(place) for place in reversed(range(count))), *behind] if dots else [*term]
    return dict(zip(names, factor.shape, strict=True))


def _recurrent(given: Sequence[Any], out: Sequence[Any]) -> _Work:
    """Each matrix of each layer and direction meets each step once.

    Steps come as (sequence, states, weights, …), or packed as (rows, lengths, states, weights, …).
    """
    data, weights = given[0], next(filter(_are_weights, given))
    steps = data.numel() // data.shape[-1]
    return _Work(steps * sum(weight.numel() for weight in weights if weight.ndim == 2), out[0].numel())


def _are_weights(one: Any) -> bool:
    """Whether this is a list of matrices and biases; states have three axes."""
    return isinstance(one, list | tuple) and len(one) > 0 and all(isinstance(part, Tensor) and part.ndim < 3 for part in one)


_WORK: dict[str, Callable[[Sequence[Any], Any], _Work]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("linear", "matmul", "__matmul__", "mm", "bmm"), _product(0)),
    **dict.fromkeys(("__rmatmul__", "addmm", "baddbmm"), _product(1)),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "einsum": _einsum,
    _ATTENTION: _attention,
}
"""Name of a function of PyTorch → what a call of it comes to, from its arguments and its result."""
