"""State dictionaries of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from tests.parity.peers import assert_same, bits, load, pictures, randomised
from vitral.checkpoints.files import Files
from vitral.checkpoints.save import save_model
from vitral.checkpoints.vit.torchvision import LAYOUT
from vitral.errors import CheckpointError
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.catalogue import CATALOGUE


def tiny(**options: Any) -> nn.Module:
    sizes = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 96}
    return randomised(torchvision.models.VisionTransformer(**{**sizes, "num_classes": 7, **options}))


NAMED = ViTConfig(width=64, heads=4)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"representation_size": 24}], ids=str)
def test_the_same_numbers(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = tiny(**options)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = load(tmp_path / "vit.pth", architecture=NAMED)
    assert_same(ours(pictures(64, 64, count=2)).logits, theirs(pictures(64, 64, count=2)))
    assert ours.record.layout == "torchvision"
    again = load(save_model(ours, tmp_path / "again"))
    for name, tensor in bits(ours).items():
        assert torch.equal(bits(again)[name], tensor), name


@torch.no_grad()
def test_files_of_before_0_13_spell_the_layers_differently(tmp_path: Path) -> None:
    theirs = tiny()
    state = theirs.state_dict()
    old = {k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for k, v in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "vit.pth")
    ours = load(tmp_path / "vit.pth", architecture=NAMED)
    assert_same(ours(pictures(64, 64)).logits, theirs(pictures(64, 64)))


def test_heads_that_cannot_be_guessed_are_asked_for(tmp_path: Path) -> None:
    torch.save(tiny(hidden_dim=72).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"heads cannot be seen .* width 72\. Name the architecture"):
        load(tmp_path / "vit.pth")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("vit_b_16", "vit_b16"),
        ("vit_b_32", "vit_b32"),
        ("vit_l_16", "vit_l16"),
        ("vit_l_32", "vit_l32"),
        ("vit_h_14", "vit_h14"),
    ],
)
def test_the_published_networks_are_ours_of_the_same_name(theirs: str, ours: str) -> None:
    with torch.device("meta"):
        peer = getattr(torchvision.models, theirs)()
        plan = LAYOUT.plan(Files(source=theirs, tensors=peer.state_dict(), kind="pickle"), None)
        parameters = dict(ViT(plan.config).named_parameters())
    assert plan.config == CATALOGUE[ours].config
    assert plan.config.heads == peer.encoder.layers[0].num_heads
    assert plan.config.norm_eps == peer.encoder.ln.eps
    needed = {
        name: tuple(part.shape)
        for row in plan.rows
        for name, part in zip(row.theirs, row.write(parameters[row.ours]), strict=True)
    }
    assert needed == {name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()}
