"""Convolution, norm and activation: folded against torch's own parts one after the other, and never stale."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm, FrozenBatchNorm, as_map
from vitral.layers.mlp import ACTIVATIONS


def made(**options: Any) -> ConvNorm:
    """A layer whose statistics and gains all matter, in evaluation mode."""
    layer = ConvNorm(8, 12, **{"kernel": 3, **options}).eval()
    with torch.no_grad():
        if layer.norm is not None:
            norm: Any = layer.norm
            norm.weight.normal_(1, 0.5)
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return layer


def slow(layer: ConvNorm, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """The definition, in double precision."""
    conv, norm = layer.conv, layer.norm
    bias = None if conv.bias is None else conv.bias.double()
    y = F.conv2d(x.double(), conv.weight.double(), bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    if norm is not None:
        shape = (1, -1, 1, 1)
        mean, var = norm.running_mean.double().view(shape), norm.running_var.double().view(shape)
        y = (y - mean) / (var + norm.eps).sqrt() * norm.weight.double().view(shape) + norm.bias.double().view(shape)
    if shortcut is not None:
        y = y + shortcut.double()
    return (y if layer.activation == "none" else ACTIVATIONS[layer.activation][0](y)).float()


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    assert one.shape == other.shape
    assert (one - other).abs().max().item() <= tolerance * max(1.0, other.abs().max().item())


@pytest.mark.parametrize("activation", ["none", *ACTIVATIONS])
@pytest.mark.parametrize("norm", ["batch", "frozen", "none"])
def test_folded_is_the_definition(activation: Any, norm: Any) -> None:
    for options, add in itertools.product(
        ({}, {"stride": 2, "groups": 4}, {"dilation": 2, "bias": True}, {"kernel": (1, 5)}, {"kernel": 1, "padding": 1}),
        (False, True),
    ):
        layer, x = made(activation=activation, norm=norm, **options), torch.randn(2, 8, 15, 11)
        shape = layer(x).shape
        shortcut = torch.randn(shape) if add else None
        kept = (x.clone(), shortcut.clone() if shortcut is not None else None)
        recorded = layer(x, shortcut)
        expected = slow(layer, x, shortcut)
        close(recorded, expected)
        for quiet in (torch.no_grad(), torch.inference_mode()):
            with quiet:
                close(layer(x, shortcut), expected)
                assert layer._kept is not None, "it was not folded"
        assert torch.equal(x, kept[0])
        assert shortcut is None or torch.equal(shortcut, kept[1])


def test_it_is_torchvisions_block_in_training_too() -> None:
    theirs = Conv2dNormActivation(8, 12, 5, stride=2, groups=2)
    ours = ConvNorm(8, 12, 5, 2, groups=2, activation="relu")
    ours.load_state_dict(
        {
            ours_name: theirs.state_dict()[name]
            for ours_name, name in zip(ours.state_dict(), theirs.state_dict(), strict=True)
        }
    )
    x = torch.randn(4, 8, 15, 11)
    for _ in range(2):
        mine, other = ours(x), theirs(x)
        torch.testing.assert_close(mine, other)
        gradients = [
            torch.autograd.grad(out.square().sum(), net.parameters()) for out, net in ((mine, ours), (other, theirs))
        ]
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(one, two)
    for one, two in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_the_frozen_norm_is_torchvisions() -> None:
    theirs, ours = FrozenBatchNorm2d(6), FrozenBatchNorm(6)
    with torch.no_grad():
        for buffer in theirs.buffers():
            buffer.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 6, 5, 7, requires_grad=True)
    torch.testing.assert_close(ours.train()(x), theirs(x))
    assert list(ours.parameters()) == []


def optimised(optimiser: str, **options: Any) -> Callable[[ConvNorm, Tensor], None]:
    def change(layer: ConvNorm, x: Tensor) -> None:
        with torch.enable_grad():
            layer(x).square().sum().backward()
        getattr(torch.optim, optimiser)(layer.parameters(), lr=0.1, **options).step()
        layer.zero_grad()

    return change


def loaded(assign: bool) -> Callable[[ConvNorm, Tensor], None]:
    def change(layer: ConvNorm, x: Tensor) -> None:
        state = {name: (torch.rand_like(v) + 0.5 if v.is_floating_point() else v) for name, v in layer.state_dict().items()}
        layer.load_state_dict(state, assign=assign)

    return change


def data_replaced(layer: ConvNorm, x: Tensor) -> None:
    layer.conv.weight.data = torch.randn_like(layer.conv.weight)


def data_written(layer: ConvNorm, x: Tensor) -> None:
    layer.conv.weight.data.mul_(2)
    layer.eval()


def statistics_gathered(layer: ConvNorm, x: Tensor) -> None:
    layer.train()(x)
    layer.eval()


def only_norm_trained(layer: ConvNorm, x: Tensor) -> None:
    layer.norm.train()
    layer(x)
    layer.norm.eval()


def norm_called_alone(layer: ConvNorm, x: Tensor) -> None:
    layer.norm.train()(torch.randn(2, 12, 3, 3) * 3 + 1)
    layer.norm.eval()


def part_exchanged(layer: ConvNorm, x: Tensor) -> None:
    layer.conv.weight = nn.Parameter(torch.randn_like(layer.conv.weight))


def there_and_back(layer: ConvNorm, x: Tensor) -> None:
    layer.to(torch.float64).conv.weight.data.mul_(1.5)
    layer.to(torch.float32)


CHANGES: dict[str, Callable[[ConvNorm, Tensor], Any]] = {
    "weights": lambda layer, x: layer.conv.weight.mul_(2),
    "mean": lambda layer, x: layer.norm.running_mean.add_(1),
    "epsilon's companion": lambda layer, x: layer.norm.running_var.mul_(3),
    "gain": lambda layer, x: layer.norm.weight.copy_(torch.randn(12)),
    "SGD": optimised("SGD"),
    "SGD, foreach": optimised("SGD", foreach=True),
    "AdamW, fused": optimised("AdamW", fused=True),
    "a state loaded": loaded(assign=False),
    "a state put in place": loaded(assign=True),
    "data replaced": data_replaced,
    "data written": data_written,
    "statistics": statistics_gathered,
    "statistics of a part": only_norm_trained,
    "the norm called alone": norm_called_alone,
    "an exchanged part": part_exchanged,
    "another precision": there_and_back,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_what_was_folded_is_never_stale(change: str, quiet: Any) -> None:
    layer, x = made(activation="relu"), torch.randn(2, 8, 9, 7)
    for _ in range(2):
        with quiet():
            before = layer(x)
        assert layer._kept is not None
        with torch.no_grad():
            CHANGES[change](layer, x)
        with quiet():
            after = layer(x)
        close(after, slow(layer, x))
        assert (after - before).abs().max() > 1e-4


def test_what_was_folded_is_kept_and_freed() -> None:
    layer, x = made(activation="relu"), torch.randn(2, 8, 9, 7)
    with torch.no_grad():
        first = layer.folded()
        layer(x)
        assert layer.folded()[0] is first[0]
    layer.train()
    assert layer._kept is None


def test_files_copies_and_pickles_know_nothing_of_it() -> None:
    layer, x = made(activation="relu"), torch.randn(2, 8, 9, 7)
    names = set(layer.state_dict())
    with torch.no_grad():
        expected = layer(x)
    assert set(layer.state_dict()) == names == set(made().state_dict())
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert other._kept is None
        with torch.no_grad():
            assert torch.equal(other(x), expected)
            layer.conv.weight.mul_(1.5)
            assert torch.equal(other(x), expected)
            layer.conv.weight.div_(1.5)


def test_whoever_listens_to_a_part_hears_it() -> None:
    layer, x = made(activation="relu"), torch.randn(2, 8, 9, 7)
    seen: list[Tensor] = []
    for part, attach in ((layer.norm, "register_forward_hook"), (layer.conv, "register_forward_pre_hook")):
        handle = getattr(part, attach)(lambda _m, x, *out: seen.append((out or x)[0]))
        with torch.no_grad():
            answer = layer(x)
        handle.remove()
        close(answer, slow(layer, x))
    assert len(seen) == 2
    assert seen[0].min() < 0, "the activation overwrote what the hook kept"
    assert seen[1] is x
    layer.norm, whole = nn.Sequential(layer.norm), layer.norm
    with torch.no_grad():
        answer = layer(x)
    layer.norm = whole
    close(answer, slow(layer, x))


def test_half_precision_folds_in_single() -> None:
    layer, x = made(activation="relu"), torch.randn(2, 8, 15, 11)
    with torch.no_grad():
        expected = layer(x)
        half = layer.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert ((half.float() - expected).norm() / expected.norm()).item() < 1e-2


def test_it_compiles_exports_and_follows_autocast() -> None:
    layer, x = made(activation="relu"), torch.randn(2, 8, 15, 11)
    with torch.no_grad():
        expected = layer(x)
        exported = torch.export.export(layer, (x,)).module()
        close(exported(x), expected)
        traced = torch.jit.trace(layer, (x,))
        close(traced(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        mapped = torch.func.vmap(layer)(x[None])
        close(mapped[0], expected)


def test_a_layer_made_in_inference_mode_is_never_folded() -> None:
    with torch.inference_mode():
        layer, x = made(activation="relu"), torch.randn(2, 8, 9, 7)
        close(layer(x), slow(layer, x))
        layer.conv.weight.mul_(2)  # such tensors do not count their changes
        close(layer(x), slow(layer, x))


def test_pictures_are_laid_pixel_by_pixel_or_refused() -> None:
    pixels = torch.randn(2, 3, 9, 7)
    laid = as_map(pixels, 3)
    assert torch.equal(laid, pixels)
    assert laid.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(UsageError, match="3 channels; 1 came"):
        as_map(pixels[:, :1], 3)
    with pytest.raises(UsageError, match=r"9×7 pixels.*8×8"):
        as_map(pixels, 3, 8)
