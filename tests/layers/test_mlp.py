"""Feed-forward networks, norms and gains against torch, timm and closed forms."""

from __future__ import annotations

import pytest
import torch
from timm.layers import GluMlp
from torch import nn
from transformers.activations import ACT2FN

from vitral.layers import mlp as page
from vitral.layers.mlp import ACTIVATIONS, Mlp, Nonlinearity, SwiGLU
from vitral.layers.norm import LayerScale, norm_layer

THEIRS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "relu": "relu"}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_transformers(name: str) -> None:
    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(Nonlinearity(name)(x.clone()), ACT2FN[THEIRS[name]](x), atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(Nonlinearity(name)(x.clone()), ACT2FN[THEIRS[name]](x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_overwrites_only_when_no_gradient_is_recorded(name: str) -> None:
    x = torch.randn(5, 4)
    before = x.clone()
    Nonlinearity(name)(x)
    assert torch.equal(x, before), "with gradients recorded the argument is needed for the way back"
    leaf = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda leaf: Nonlinearity(name)(leaf * 1.5), leaf)


def test_the_overwriting_mlp_gives_what_the_recording_one_gives() -> None:
    mlp, x = Mlp(16, 48), torch.randn(3, 5, 16)
    recorded = mlp(x)
    with torch.no_grad():
        forgotten = mlp(x)
    with torch.inference_mode():
        inferred = mlp(x)
    assert torch.equal(recorded, forgotten)
    assert torch.equal(recorded, inferred)


def test_mlp_is_two_matrices_around_the_activation() -> None:
    mlp, x = Mlp(16, 48, "relu"), torch.randn(3, 5, 16)
    expected = (x @ mlp.up.weight.T + mlp.up.bias).clamp(min=0) @ mlp.down.weight.T + mlp.down.bias
    torch.testing.assert_close(mlp(x), expected)
    assert {name for name, _ in Mlp(16, 48, bias=False).named_parameters()} == {"up.weight", "down.weight"}


def test_swiglu_is_timms_gated_mlp() -> None:
    ours = SwiGLU(16, 24)
    theirs = GluMlp(16, 48, act_layer=nn.SiLU, gate_last=False)
    state = ours.state_dict()
    names = {"fc1": "gate_up", "fc2": "down"}
    theirs.load_state_dict({f"{t}.{p}": state[f"{o}.{p}"] for t, o in names.items() for p in ("weight", "bias")})
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_norms_are_their_formulas() -> None:
    x = torch.randn(2, 5, 16) * 3 + 1
    layer, rms = norm_layer(16, "layer", 1e-3), norm_layer(16, "rms", 1e-3)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(layer(x), centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt())
    torch.testing.assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt())
    assert len(list(layer.parameters())) == 2
    assert len(list(rms.parameters())) == 1


def test_layer_scale_is_a_gain_per_channel() -> None:
    scale, x = LayerScale(4, 0.1), torch.randn(2, 3, 4)
    torch.testing.assert_close(scale(x), 0.1 * x)
    with torch.no_grad():
        scale.gain.copy_(torch.arange(4.0))
    assert torch.equal(scale(x)[..., 3], 3 * x[..., 3])


@pytest.mark.parametrize("network", [Mlp(8, 16), SwiGLU(8, 16)], ids=["plain", "gated"])
def test_a_watcher_of_the_hidden_layer_keeps_what_it_saw(network: nn.Module) -> None:
    hidden = network.up if isinstance(network, Mlp) else network.gate_up
    seen: list[torch.Tensor] = []
    handle = hidden.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        watched = network.eval()(x)
        handle.remove()
        expected = hidden(x)
        assert torch.equal(watched, network(x))
    assert torch.equal(seen[0], expected)


@torch.no_grad()
def test_a_large_hidden_layer_is_computed_in_pieces_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, x = Mlp(16, 64), torch.randn(3, 50, 16)
    whole = mlp(x)
    monkeypatch.setattr(page, "_LARGE", 64 * 4 * 7)  # seven tokens, which do not divide 150
    seen: list[int] = []
    activate = Nonlinearity.forward
    monkeypatch.setattr(Nonlinearity, "forward", lambda self, x: (seen.append(x.shape[-2]), activate(self, x))[1])
    torch.testing.assert_close(mlp(x), whole)
    assert seen == [7] * 21 + [3]
    seen.clear()
    mlp.down.register_forward_pre_hook(lambda *_: None)
    mlp(x)  # whoever watches sees the hidden layer whole
    assert seen == [50]
