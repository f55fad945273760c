"""Every transformer that timm knows is read as what it is, or refused in a sentence; never as something else.

Networks are made without memory for their weights, so all names are walked in seconds: what the tensors' names and
shapes and config.json say must lead to the configuration that timm built.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_config_for_hf
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.load import LAYOUTS
from vitral.errors import CheckpointError

MODULES = ("vision_transformer", "deit", "beit", "eva", "vision_transformer_relpos", "vision_transformer_hybrid")
NAMES = [name for module in MODULES for name in timm.list_models(module=module)]
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
POOLS = {"class": "token", "mean": "avg", "attention": "map"}

# Parts our network does not have: parallel and differential attention, rotations of EVA's kind, stems of convolutions …
FOREIGN = r"eva02|rope|dinov3|sapiens|vit_pe_|aimv2|beit3|_xp_|pwee|dwee|dlittle|18x2|relpos|_resnet|mci|lingbot"


def network(name: str) -> nn.Module:
    with torch.device("meta"):
        try:
            return timm.create_model(name, depth=1)
        except (TypeError, ValueError, AssertionError, IndexError):  # its depth is fixed by other arguments
            return timm.create_model(name)


def differences(theirs: nn.Module, config: Any) -> list[str]:
    """What timm built and we would not."""
    block, eps = theirs.blocks[0], theirs.blocks[0].norm1.eps
    mlp = getattr(block.mlp, "act", None)
    kind = type(mlp).__name__ + ("Tanh" if getattr(mlp, "approximate", "none") == "tanh" else "")
    told = {
        "heads": (block.attn.num_heads, config.heads),
        "norm_eps": (eps, config.norm_eps),
        "activation": (ACTIVATIONS.get(kind, kind), "silu" if config.mlp == "swiglu" else config.activation),
        "pool": (theirs.global_pool, POOLS[config.pool]),
        "pool_prefix": (getattr(theirs, "pool_include_prefix", False), config.pool_prefix),
        "image_size": (tuple(theirs.patch_embed.img_size), config.image_size),
        "prefix": (theirs.num_prefix_tokens, config.prefix),
        "placement": (isinstance(block, ResPostBlock), config.norm_placement == "res_post"),
        "rotary": (getattr(theirs, "rope", None) is not None, config.rotary),
    }
    return [f"{field}: {theirs_} there, {ours} here" for field, (theirs_, ours) in told.items() if theirs_ != ours]


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_of_timm_is_read_as_itself_or_refused(name: str, tmp_path: Path) -> None:
    theirs = network(name)
    save_config_for_hf(theirs, str(tmp_path / "config.json"))
    told = json.loads((tmp_path / "config.json").read_text())
    files = Files(source=name, tensors=theirs.state_dict(), kind="safetensors", config=told)
    layout = next((layout for layout in LAYOUTS if layout.recognises(files)), None)
    if layout is None:
        assert re.search(FOREIGN, name)
        return
    plan, refused = None, ""
    try:
        plan = layout.plan(files, None)
    except CheckpointError as error:
        refused = str(error)
    if plan is None:
        assert re.search(FOREIGN, name), refused
        assert "refused rather than computed wrongly" in refused
        return
    with torch.device("meta"):
        parameters = dict(plan.build(plan.config).named_parameters())
    needed = {
        foreign: tuple(part.shape)
        for row in plan.rows
        for foreign, part in zip(row.theirs, row.write(parameters[row.ours]), strict=True)
    }
    held = {
        foreign: tuple(tensor.shape)
        for foreign, tensor in files.tensors.items()
        if not any(re.fullmatch(pattern, foreign) for pattern in plan.ignored)
    }
    if needed != held:  # a MismatchError: refused too
        assert re.search(FOREIGN, name), set(needed.items()) ^ set(held.items())
        return
    assert not differences(theirs, plan.config)
