"""A vision transformer written out in plain arithmetic from a model's weights: the oracle for what `capture` sees.

Nothing of the house computes here, except that tokens enter as `ViT.embed` gives them, and the matrices of attention are
mixed in the open. In double precision its rounding is far below what is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit import modeling_dinov3_vit

from vitral.models.backbones.vit import ViT

__all__ = ["Eager"]

Parts = dict[str, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: x * (x > 0),
}


@dataclass
class Eager:
    """A model's arithmetic once more, with everything on its way kept.

    After a call, `found["blocks.0"]` and `found["pool"]` hold the parts of a layer by their names in `capture`.
    Whatever stands in `nudges` is added to the attention map of that layer before it mixes.
    """

    model: ViT
    dtype: torch.dtype = torch.float64
    nudges: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = {name: tensor.detach().to(self.dtype) for name, tensor in self.model.named_parameters()}
        self.found: dict[str, Parts] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """The logits (or, without classes, the pooled vector)."""
        config = self.model.config
        tokens, grid = self.model.embed(pixels)
        tokens = tokens.to(self.dtype)
        for index in range(config.depth):
            tokens = self.block(index, tokens, grid)
        tokens = self.norm("norm", tokens) if config.final_norm else tokens
        patches = tokens[:, config.prefix :]
        if config.pool == "attention":
            pooled = self.pool(tokens if config.pool_prefix else patches)
        elif config.pool == "class_and_mean":
            pooled = torch.cat([tokens[:, 0], patches.mean(1)], dim=1)
        else:
            pooled = tokens[:, 0] if config.pool == "class" else patches.mean(1)
        pooled = self.norm("pool_norm", pooled) if config.pool_norm else pooled
        if config.representation:
            pooled = torch.tanh(self.linear("representation.0", pooled))
        if not config.num_classes:
            return pooled
        logits = self.linear("head", pooled)
        return (logits + self.linear("distillation_head", tokens[:, 1])) / 2 if config.distillation_head else logits

    def block(self, index: int, x: Tensor, grid: tuple[int, int]) -> Tensor:
        config, name = self.model.config, f"blocks.{index}"
        before, after = (config.norm_placement == place for place in ("pre", "res_post"))
        parts = self.found[name] = {"residual_pre": x}

        def branch(number: int, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
            norm = f"{name}.norm{number}"
            entering = self.norm(norm, x) if before else x
            if number == 1:
                parts["attention_input"] = entering
            out = compute(entering)
            out = self.norm(norm, out) if after else out
            return out * self.weights[f"{name}.scale{number}.gain"] if config.layer_scale is not None else out

        def added(number: int, x: Tensor, branch: Tensor) -> Tensor:
            return x + branch if before or after else self.norm(f"{name}.norm{number}", x + branch)

        parts["attention_output"] = branch(1, x, lambda x: self.attention(name, x, grid))
        parts["residual_mid"] = x = added(1, x, parts["attention_output"])
        parts["mlp_output"] = branch(2, x, lambda x: self.mlp(name, x, parts))
        parts["residual_post"] = x = added(2, x, parts["mlp_output"])
        return x

    def attention(self, name: str, x: Tensor, grid: tuple[int, int]) -> Tensor:
        config, parts, path = self.model.config, self.found[name], f"{name}.attention"
        projected = self.linear(f"{path}.qkv", x)
        if config.qkv_bias and not config.key_bias:
            shifts = [self.weights[f"{path}.{one}_bias"] for one in ("query", "value")]
            projected = projected + torch.cat([shifts[0], 0 * shifts[0], shifts[1]])
        k = config.width // config.heads
        heads: list[list[Tensor]] = [[], [], []]
        for head in range(config.heads):
            for kind in range(3):
                start = kind * config.width + head * k
                heads[kind].append(projected[:, :, start : start + k])
        queries, keys, values = (torch.stack(one, dim=1) for one in heads)
        if config.qk_norm:
            queries, keys = self.norm(f"{path}.query_norm", queries), self.norm(f"{path}.key_norm", keys)
        if config.rotary:
            queries, keys = self.rotated(queries, grid), self.rotated(keys, grid)
        logits = queries @ keys.transpose(2, 3) / math.sqrt(k)
        if config.relative_bias != "none":
            which = name.split(".")[1]
            table = "relative_bias.table" if config.relative_bias == "shared" else f"block_biases.{which}.table"
            logits = logits + relative_bias(self.weights[table], grid)
        parts.update(queries=queries, keys=keys, values=values)
        mixed = self.mixed(name, logits, values)
        return self.linear(f"{path}.projection", mixed)

    def mixed(self, name: str, logits: Tensor, values: Tensor) -> Tensor:
        """Tokens mixed by the map of some logits, heads side by side."""
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True) + self.nudges.get(name, 0.0)
        self.found[name]["attention"] = weights
        return torch.cat([weights[:, head] @ values[:, head] for head in range(values.shape[1])], dim=-1)

    def mlp(self, name: str, x: Tensor, parts: Parts) -> Tensor:
        path = f"{name}.mlp"
        if self.model.config.mlp == "swiglu":
            gate, up = self.linear(f"{path}.gate_up", x).chunk(2, dim=-1)
            hidden = ACTIVATIONS["silu"](gate) * up
        else:
            hidden = ACTIVATIONS[self.model.config.activation](self.linear(f"{path}.up", x))
        parts["mlp_hidden"] = hidden
        return self.linear(f"{path}.down", hidden)

    def pool(self, tokens: Tensor) -> Tensor:
        """The head of Zhai et al. 2022: one learned query attends, then a feed-forward network."""
        heads, parts = self.model.config.heads, self.found.setdefault("pool", {})
        asking = self.linear("pool.query_projection", self.weights["pool.query"]).expand(len(tokens), -1, -1)
        told = self.linear("pool.key_value", tokens).chunk(2, dim=-1)
        queries, keys, values = (torch.stack(x.chunk(heads, dim=-1), dim=1) for x in (asking, *told))
        parts.update(queries=queries, keys=keys, values=values)
        logits = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        pooled = self.linear("pool.projection", self.mixed("pool", logits, values))
        hidden = ACTIVATIONS[self.model.config.activation](self.linear("pool.mlp.up", self.norm("pool.norm", pooled)))
        return (pooled + self.linear("pool.mlp.down", hidden))[:, 0]

    def rotated(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        config: Any = self.model.config
        size = config.patch_size[0]
        rope = modeling_dinov3_vit.DINOv3ViTRopePositionEmbedding(
            DINOv3ViTConfig(
                hidden_size=config.width,
                num_attention_heads=config.heads,
                patch_size=size,
                rope_theta=config.rotary_base,
            )
        )
        cos, sin = rope.eval()(torch.empty(1, 3, grid[0] * size, grid[1] * size))
        return modeling_dinov3_vit.apply_rotary_pos_emb(x, x, cos.to(x), sin.to(x))[0]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Tensor) -> Tensor:
        config, gain = self.model.config, self.weights[f"{name}.weight"]
        if config.norm == "rms":
            return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * gain
        off = x - x.mean(-1, keepdim=True)
        return off / (off.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * gain + self.weights[f"{name}.bias"]


def relative_bias(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """BEiT's bias, pair by pair: a row of the table for each offset; its last three serve the class token."""
    rows, columns = grid
    places = [None, *((row, column) for row in range(rows) for column in range(columns))]
    bias = torch.empty(table.shape[1], len(places), len(places), dtype=table.dtype)
    for n, asking in enumerate(places):
        for m, asked in enumerate(places):
            if asking is None or asked is None:
                row = {(True, False): -3, (False, True): -2, (True, True): -1}[asking is None, asked is None]
            else:
                row = (asking[0] - asked[0] + rows - 1) * (2 * columns - 1) + asking[1] - asked[1] + columns - 1
            bias[:, n, m] = table[row]
    return bias
