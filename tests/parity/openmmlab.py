"""Tensors by mmsegmentation's names, and what its vision transformer computes of them with PyTorch's own functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["State", "attend", "conv_norm", "encode", "layer"]

PATCH = 16


class State(dict[str, Tensor]):
    """Random tensors by name, so large that two of them exchanged change the result.

    Args:
        empty: whether their shapes are all that is wanted.
    """

    def __init__(self, *, empty: bool = False) -> None:
        super().__init__()
        self.empty = empty
        self.generator = torch.Generator().manual_seed(0)

    def random(self, name: str, *shape: int) -> None:
        if self.empty:
            self[name] = torch.empty(shape, device="meta")
        elif len(shape) == 1:
            self[name] = 0.5 + 0.3 * torch.randn(shape, generator=self.generator)
        else:  # keeps the scale of what passes
            self[name] = torch.randn(shape, generator=self.generator) * (2 / torch.Size(shape[1:]).numel()) ** 0.5

    def weight(self, name: str, *shape: int, bias: bool = True) -> None:
        self.random(f"{name}.weight", *shape)
        if bias:
            self.random(f"{name}.bias", shape[0])

    def norm(self, name: str, width: int) -> None:
        self.weight(name, width)

    def batch_norm(self, name: str, width: int) -> None:
        self.norm(name, width)
        self.random(f"{name}.running_mean", width)
        self[f"{name}.running_var"] = torch.linspace(0.5, 2.0, width)
        self[f"{name}.num_batches_tracked"] = torch.tensor(3)

    def conv_norm(self, name: str, outputs: int, inputs: int, kernel: int) -> None:
        self.weight(f"{name}.conv", outputs, inputs, kernel, kernel, bias=False)
        self.batch_norm(f"{name}.bn", outputs)

    def layer(self, name: str, width: int, hidden: int) -> None:
        """A layer of mmseg/models/backbones/vit.py."""
        self.norm(f"{name}.ln1", width)
        self.random(f"{name}.attn.attn.in_proj_weight", 3 * width, width)
        self.random(f"{name}.attn.attn.in_proj_bias", 3 * width)
        self.weight(f"{name}.attn.attn.out_proj", width, width)
        self.norm(f"{name}.ln2", width)
        self.weight(f"{name}.ffn.layers.0.0", hidden, width)
        self.weight(f"{name}.ffn.layers.1", width, hidden)

    def transformer(self, width: int, depth: int, hidden: int, patches: int, *, last: bool) -> None:
        """The whole of it; `last`: whether there is a norm behind the last layer."""
        self.random("backbone.cls_token", 1, 1, width)
        self.random("backbone.pos_embed", 1, patches + 1, width)
        self.weight("backbone.patch_embed.projection", width, 3, PATCH, PATCH)
        for place in range(depth):
            self.layer(f"backbone.layers.{place}", width, hidden)
        if last:
            self.norm("backbone.ln1", width)


def conv_norm(state: State, name: str, x: Tensor) -> Tensor:
    """mmcv's ConvModule: convolution, batch normalisation, ReLU."""
    kernel = state[f"{name}.conv.weight"]
    x = F.conv2d(x, kernel, padding=kernel.shape[2] // 2)
    bn = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *bn).relu()


def attend(state: State, prefix: str, tokens: Tensor, heads: int) -> Tensor:
    """Attention of all tokens to all."""
    turned = tokens.transpose(0, 1)
    mixed, _ = F.multi_head_attention_forward(
        turned,
        turned,
        turned,
        tokens.shape[2],
        heads,
        state[f"{prefix}in_proj_weight"],
        state[f"{prefix}in_proj_bias"],
        None,
        None,
        False,
        0.0,
        state[f"{prefix}out_proj.weight"],
        state[f"{prefix}out_proj.bias"],
        training=False,
        need_weights=False,
    )
    return mixed.transpose(0, 1)


def layer(state: State, name: str, tokens: Tensor, heads: int, eps: float) -> Tensor:
    """One layer, all norms with an epsilon."""
    normed = F.layer_norm(tokens, tokens.shape[2:], state[f"{name}.ln1.weight"], state[f"{name}.ln1.bias"], eps)
    tokens = tokens + attend(state, f"{name}.attn.attn.", normed, heads)
    normed = F.layer_norm(tokens, tokens.shape[2:], state[f"{name}.ln2.weight"], state[f"{name}.ln2.bias"], eps)
    first, second = f"{name}.ffn.layers.0.0", f"{name}.ffn.layers.1"
    hidden = F.gelu(F.linear(normed, state[f"{first}.weight"], state[f"{first}.bias"]))
    return tokens + F.linear(hidden, state[f"{second}.weight"], state[f"{second}.bias"])


def encode(state: State, pixels: Tensor, *, heads: int, levels: tuple[int, ...], class_token: bool = True) -> list[Tensor]:
    """The maps behind some layers, the last one normed where there is a norm for it."""
    kernel = state["backbone.patch_embed.projection.weight"]
    patches = F.conv2d(pixels, kernel, state["backbone.patch_embed.projection.bias"], stride=kernel.shape[2])
    grid = patches.shape[2:]
    tokens = torch.cat([state["backbone.cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    tokens = tokens + state["backbone.pos_embed"]
    if not class_token:
        tokens = tokens[:, 1:]
    depth, maps = sum(name.endswith(".attn.attn.in_proj_weight") and name.startswith("backbone.") for name in state), []
    for place in range(depth):
        tokens = layer(state, f"backbone.layers.{place}", tokens, heads, 1e-6)
        if place == depth - 1 and "backbone.ln1.weight" in state:
            norm = state["backbone.ln1.weight"], state["backbone.ln1.bias"]
            tokens = F.layer_norm(tokens, tokens.shape[2:], *norm, 1e-6)
        if place in levels:
            maps.append(tokens[:, int(class_token) :].transpose(1, 2).unflatten(2, grid))
    return maps
