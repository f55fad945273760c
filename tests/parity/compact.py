"""Compact transformers written out in plain arithmetic, from a state dictionary under the authors' names: the oracle.

Nothing of the house computes here, and no code of the authors: only what their page says, in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["answer", "random_state"]


def random_state(
    *,
    width: int,
    depth: int,
    mlp: int,
    tokens: int,
    classes: int,
    convolutions: tuple[int, ...] = (64,),
    kernel: int = 3,
    channels: int = 3,
    patches: bool = False,
    position: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Weights under the authors' names, so large that a part left out, or two exchanged, changes the answer."""
    widths = [channels, *convolutions, width]
    shapes: dict[str, tuple[int, ...]] = {
        f"tokenizer.conv_layers.{i}.0.weight": (after, before, kernel, kernel)
        for i, (before, after) in enumerate(pairwise(widths))
    }
    if patches:
        shapes["tokenizer.conv_layers.0.0.bias"] = (width,)
    if position:
        shapes["classifier.positional_emb"] = (1, tokens, width)
    for i in range(depth):
        block = f"classifier.blocks.{i}"
        shapes[f"{block}.self_attn.qkv.weight"] = (3 * width, width)
        for name, (after, before) in {
            "self_attn.proj": (width, width),
            "linear1": (mlp, width),
            "linear2": (width, mlp),
        }.items():
            shapes |= {f"{block}.{name}.weight": (after, before), f"{block}.{name}.bias": (after,)}
        shapes |= {f"{block}.{norm}.{part}": (width,) for norm in ("pre_norm", "norm1") for part in ("weight", "bias")}
    shapes |= {"classifier.norm.weight": (width,), "classifier.norm.bias": (width,)}
    shapes |= {"classifier.attention_pool.weight": (1, width), "classifier.attention_pool.bias": (1,)}
    shapes |= {"classifier.fc.weight": (classes, width), "classifier.fc.bias": (classes,)}
    draw = torch.Generator().manual_seed(seed)
    spread = {name: 0.3 if len(shape) == 1 else 1.5 / math.sqrt(math.prod(shape[1:])) for name, shape in shapes.items()}
    return {
        name: torch.randn(shape, generator=draw) * spread[name] + 0.5 * name.endswith(("norm.weight", "norm1.weight"))
        for name, shape in shapes.items()
    }


def answer(
    state: Mapping[str, Tensor], pixels: Tensor, *, heads: int, stride: int = 1, maps: dict[str, Tensor] | None = None
) -> Tensor:
    """The logits; every attention map on the way, and the pool's weights, are left in `maps`."""
    weights = {name: tensor.double() for name, tensor in state.items()}
    x, layer = pixels.double(), 0
    while (name := f"tokenizer.conv_layers.{layer}.0") + ".weight" in weights:
        kernel, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        if bias is not None:  # CVT: patches
            x = F.conv2d(x, kernel, bias, stride=kernel.shape[2])
        else:
            x = F.conv2d(x, kernel, None, stride=stride, padding=kernel.shape[2] // 2)
            x = F.max_pool2d(x.clamp(min=0), 3, 2, 1)
        layer += 1
    x = x.flatten(2).transpose(1, 2) + weights.get("classifier.positional_emb", 0.0)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def norm(name: str, x: Tensor) -> Tensor:
        away = x - x.mean(-1, keepdim=True)
        return (
            away / (away.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        )

    block = 0
    while (name := f"classifier.blocks.{block}") + ".linear1.weight" in weights:
        parts = linear(f"{name}.self_attn.qkv", norm(f"{name}.pre_norm", x)).chunk(3, dim=-1)
        queries, keys, values = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        attention = (queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])).softmax(-1)
        if maps is not None:
            maps[f"blocks.{block}"] = attention
        mixed = (attention @ values).transpose(1, 2).flatten(2)
        x = norm(f"{name}.norm1", x + linear(f"{name}.self_attn.proj", mixed))
        hidden = linear(f"{name}.linear1", x)
        x = x + linear(f"{name}.linear2", hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)
        block += 1
    x = norm("classifier.norm", x)
    worth = linear("classifier.attention_pool", x).softmax(1)
    if maps is not None:
        maps["pool"] = worth.transpose(1, 2).unsqueeze(1)
    return linear("classifier.fc", (worth * x).sum(1))
