"""The layout of the authors' repository (facebookresearch/xcit): bare state dictionaries of its class, as .pth.

It is timm's but for two spellings: the positions are called pos_embeder, and class attention projects queries, keys and
values by one matrix. DINO's XCiT (Caron et al. 2021) is published so too. It is read; what timm's layout holds is the same.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.table import Tensors
from vitral.checkpoints.xcit import timm
from vitral.models.backbones.xcit import XCiT, XCiTConfig

__all__ = ["LAYOUT"]


def _recognises(files: Files) -> bool:
    return "cls_attn_blocks.0.attn.qkv.weight" in files.tensors and "blocks.0.attn.temperature" in files.tensors


def _plan(files: Files, architecture: XCiTConfig | None) -> Plan:
    plan = timm.LAYOUT.plan(replace(files, tensors=_as_timm(files.tensors)), architecture)
    licence = plan.record.licence or "apache-2.0"
    # DINO's projection head stands beside the network in a file of its training.
    ignored = (r"head\.(mlp|last_layer)\..*",)
    return replace(plan, record=replace(plan.record, layout="facebook", licence=licence), ignored=ignored)


def _as_timm(tensors: Tensors) -> Tensors:
    """The tensors under timm's names, the matrix of class attention in three."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("cls_attn_blocks.") and ".attn.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=False):
                found[name.replace(".qkv.", f".{letter}.")] = part
        else:
            found[name.replace("pos_embeder.", "pos_embed.")] = tensor
    return found


LAYOUT = Layout(name="facebook", network=XCiT, recognises=_recognises, plan=_plan)
