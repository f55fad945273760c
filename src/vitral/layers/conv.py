"""A convolution, the batch normalisation behind it and an activation, which are one operation when nothing is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.linear import unrecorded
from vitral.layers.mlp import ACTIVATIONS

__all__ = ["BatchNormKind", "ConvActivation", "ConvNorm", "FrozenBatchNorm", "as_map"]

ConvActivation = Literal["none", "relu", "silu", "gelu", "gelu_tanh", "quick_gelu"]
"""What follows a convolution: nothing, or one of `layers.mlp.ACTIVATIONS`."""

BatchNormKind = Literal["batch", "frozen", "none"]
"""Batch normalisation (Ioffe and Szegedy 2015), the same with nothing left to learn, or none."""

# oneDNN's names, and their variant, of the activations that it computes while a result is still at hand.
_FUSED = {"none": ("none", ""), "relu": ("relu", ""), "silu": ("swish", ""), "gelu": ("gelu", "none")}
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def as_map(pixels: Float[Tensor, "b c y x"], channels: int, smallest: int = 1) -> Float[Tensor, "b c y x"]:
    """Pictures as convolutions like them on a CPU, the channels of a pixel side by side, once they are found fit.

    Args:
        pixels: prepared pictures.
        channels: how many channels the network takes.
        smallest: the height and the width in pixels of which the network leaves a cell at least.

    Raises:
        UsageError: pictures of other channels, or too small.
    """
    if pixels.shape[1] != channels:
        raise UsageError(f"The model takes pictures of {channels} channels; {pixels.shape[1]} came.")
    height, width = pixels.shape[2:]
    if min(height, width) < smallest:
        raise UsageError(
            f"Of a picture of {height}×{width} pixels nothing is left behind the last pooling; the model takes those of "
            f"{smallest}×{smallest} and more. Enlarge it first."
        )
    return pixels.contiguous(memory_format=torch.channels_last)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by fixed statistics and a fixed gain and shift, all of them buffers.

    Detectors see too few pictures at once for statistics of their own, and keep those of the classifier they began as
    (Ren et al. 2015, Faster R-CNN; He et al. 2016, appendix A).

    Args:
        width: channels c.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, start in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((width,), start))

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """Normalise every channel."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, addition of a shortcut, activation; of the last three any may be missing.

    Where nothing is recorded for a gradient, the statistics and gains are multiplied into the convolution's weights
    (Jacob et al. 2018, section 3.2), the activation is computed in place, and on a CPU in single precision oneDNN does all
    in one pass over the map. The product is kept, and made anew as soon as any of its sources is another tensor or was
    changed. It is forgotten whenever the layer answers in two steps, as for every step of a training, and at every call of
    `train()` or `eval()`; these are needed after a change in place through `.data`, which torch itself does not notice. It
    is in no file and in no copy.

    In that case `conv` and `norm` are not called. Where one of them has a hook, or is not of the class it was made of (a
    part put in its place to look inside), both are called one after the other, and nothing is overwritten.

    Maps come out with the channels of a pixel side by side (`torch.channels_last`) when so they came in, and always when
    folded: convolutions on a CPU are quicker so.

    Args:
        inputs: channels c of the map.
        outputs: channels d of the result.
        kernel: side of the window, or its height and width.
        stride: cells from one window to the next.
        padding: cells of zeros on every side; None for half the window, which keeps the size at stride 1.
        groups: how many parts the channels are divided into, each seen only by its own outputs.
        dilation: cells from one weight of the window to the next.
        activation: what follows.
        norm: the normalisation.
        eps: its epsilon.
        bias: whether the convolution has a bias; None for one only where no normalisation follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        dilation: int = 1,
        activation: ConvActivation = "none",
        norm: BatchNormKind = "batch",
        *,
        eps: float = 1e-5,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        half = (dilation * (high - 1) // 2, dilation * (wide - 1) // 2)
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            (high, wide),
            stride,
            half if padding is None else padding,
            dilation,
            groups,
            bias=norm == "none" if bias is None else bias,
        )
        self.norm: nn.Module | None = None
        if norm != "none":
            self.norm = nn.BatchNorm2d(outputs, eps) if norm == "batch" else FrozenBatchNorm(outputs, eps)
        self.activation = activation
        self._kept: tuple[list[Any], Tensor, Tensor | None] | None = None

    def forward(
        self, x: Float[Tensor, "b c y x"], shortcut: Float[Tensor, "b d i j"] | None = None
    ) -> Float[Tensor, "b d i j"]:
        """Apply the layer.

        Args:
            x: a map; it is not changed.
            shortcut: added before the activation (He et al. 2016, equation 1); it is not changed.
        """
        whole = self._is_whole()
        if whole and self._may_fold(x):
            return self._in_one(x, shortcut)
        if not torch.compiler.is_compiling():
            self._kept = None  # fused optimisers and gathered statistics leave no trace on what they change
        y = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        if shortcut is not None:
            y = y.add_(shortcut) if whole else y + shortcut
        if self.activation == "none":
            return cast(Tensor, y)
        # The slope of ReLU is read from its result, and neither layer before it needs its own: it may overwrite.
        return F.relu(y, inplace=whole) if self.activation == "relu" else ACTIVATIONS[self.activation][0](y)

    def folded(self) -> tuple[Float[Tensor, "d c y x"], Float[Tensor, " d"] | None]:
        """Weights and bias of the one convolution that does what convolution and normalisation do with fixed statistics.

        They are for reading only, and share nothing that is written to with the layer's own.
        """
        sources = list(self._sources())
        stamp = [(source, source._version, source.data_ptr()) for source in sources]
        kept = self._kept
        if kept is None or not _same(kept[0], stamp):
            with torch.inference_mode(False), torch.no_grad():
                kept = (stamp, *self._folded_anew())
            self._kept = kept
        return kept[1], kept[2]

    def train(self, mode: bool = True) -> ConvNorm:
        """Set the mode; what was folded is forgotten."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConvNorm:
        self._kept = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # neither a copy nor a pickle takes the folded weights along

    def extra_repr(self) -> str:
        """The activation, as `print` shows it."""
        return f"activation={self.activation!r}"

    def _sources(self) -> Iterator[Tensor]:
        """Every tensor that the folded weights are made of, and the one that tells that statistics were gathered."""
        for part in (self.conv, self.norm):
            if part is not None:
                yield from (tensor for tensor in part._parameters.values() if tensor is not None)
                yield from (tensor for tensor in part._buffers.values() if tensor is not None)

    def _is_whole(self) -> bool:
        """Whether both parts are the ones the layer was made with, and nobody listens to them."""
        conv, norm = self.conv, self.norm
        return (
            type(conv) is nn.Conv2d
            and (norm is None or type(norm) is FrozenBatchNorm or type(norm) is nn.BatchNorm2d)
            and not _is_heard(conv)
            and not (norm is not None and _is_heard(norm))
        )

    def _may_fold(self, x: Tensor) -> bool:
        """Whether the layer, being whole, may answer in one operation."""
        weight, norm = self.conv._parameters.get("weight"), self.norm
        return (
            not self.training
            and unrecorded(x)
            and type(weight) is nn.Parameter  # not where a parametrisation computes it
            and weight.dtype == x.dtype
            and weight.device == x.device
            and weight.grad is None  # a step of an optimiser is to come
            and not weight.is_meta
            and (norm is None or not (norm.training and type(norm) is nn.BatchNorm2d))
            and not any(tensor.is_inference() for tensor in self._sources())  # they do not tell when they were changed
        )

    def _folded_anew(self) -> tuple[Tensor, Tensor | None]:
        weight, bias, norm = self.conv.weight.detach(), self.conv.bias, cast(Any, self.norm)
        if norm is None:
            return _pixelwise(weight), bias
        gain = norm.weight.float() * torch.rsqrt(norm.running_var.float() + norm.eps)
        middle = norm.running_mean.float() if bias is None else norm.running_mean.float() - bias.float()
        shift = norm.bias.float() - middle * gain
        folded = weight.float() * gain[:, None, None, None]
        return _pixelwise(folded.to(weight.dtype)), shift.to(weight.dtype)

    def _in_one(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        weight, bias = self.folded()
        conv, activation = self.conv, self.activation
        x = x.contiguous(memory_format=torch.channels_last)
        place = (conv.padding, conv.stride, conv.dilation, conv.groups)
        onednn = _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32
        if onednn and shortcut is None and activation in _FUSED:
            name, variant = _FUSED[activation]
            return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *place, name, [], variant))
        if onednn and shortcut is not None and activation in ("none", "relu"):
            shortcut = shortcut.contiguous(memory_format=torch.channels_last)
            last = None if activation == "none" else activation
            fused = torch.ops.mkldnn._convolution_pointwise
            return cast(Tensor, fused.binary(x, shortcut, weight, bias, *place, "add", 1.0, last, [], None))
        y = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        if shortcut is not None:
            y = y.add_(shortcut)
        if activation == "none":
            return y
        plain, overwriting = ACTIVATIONS[activation]
        return overwriting(y) if overwriting else plain(y)


def _same(before: list[Any], now: list[Any]) -> bool:
    """Whether two lists name the same tensors, unchanged and in the same memory."""
    return len(before) == len(now) and all(
        one[0] is other[0] and one[1:] == other[1:] for one, other in zip(before, now, strict=True)
    )


def _is_heard(module: nn.Module) -> bool:
    """Whether somebody is told when a module is called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn.modules.module._global_forward_hooks
        or nn.modules.module._global_forward_pre_hooks
    )


def _pixelwise(weight: Tensor) -> Tensor:
    """Weights with the channels of a cell side by side."""
    return weight.contiguous(memory_format=torch.channels_last)
