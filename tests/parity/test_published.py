"""A published checkpoint with its trained weights, where there is one beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file

from tests.parity.peers import assert_same, bits, load, pictures
from vitral.checkpoints.save import save_model
from vitral.models.backbones.vit import ViT


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    folder = shared / "weights" / "deit_tiny_patch16_224"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("needs the published weights of DeiT-Ti in `shared`")
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> ViT:
    return load(folder)


@torch.no_grad()
def test_deit_tiny_gives_timms_logits(ours: ViT, folder: Path) -> None:
    theirs = timm.create_model("deit_tiny_patch16_224", pretrained=False, dynamic_img_size=True).eval()
    theirs.load_state_dict(load_file(folder / "model.safetensors"))
    assert sum(parameter.numel() for parameter in ours.parameters()) == 5_717_416
    for size in ((224, 224), (640, 480)):
        pixels = pictures(*size)
        assert_same(ours(pixels).tokens, theirs.forward_features(pixels))
        assert_same(ours(pixels).logits, theirs(pixels))
    assert len(ours.record.labels) == 1000


@torch.no_grad()
def test_deit_tiny_goes_through_transformers_and_comes_back(ours: ViT, tmp_path: Path) -> None:
    save_model(ours, tmp_path, layout="transformers")
    theirs, report = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pixels = pictures(224, 224)
    assert_same(theirs.eval()(pixels).logits, ours(pixels).logits)
    # Two of ImageNet's classes are called "crane" and two "maillot"; names from numbers lose none of them.
    assert tuple(theirs.config.id2label.values()) == ours.record.labels
    again = load(tmp_path)
    assert again.record.labels == ours.record.labels
    for name, tensor in bits(ours).items():
        assert torch.equal(bits(again)[name], tensor), name
