"""Fully convolutional networks against torchvision: the same numbers, there and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.segmentation.fcn import FCNHead

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from tests.parity.test_convolutional import _ResNet
from vitral.checkpoints.fcn.torchvision import VOC_CLASSES, _rows
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from vitral.errors import MismatchError, UsageError
from vitral.models.backbones.resnet import ResNet, ResNetConfig
from vitral.models.catalogue import CATALOGUE
from vitral.models.segmentation.fcn import FCN, FCNConfig

PLANES = (8, 16, 24, 40)


def peer(kind: str, auxiliary: bool = True, classes: int = 21) -> Any:
    """torchvision's network, small."""
    block = {"basic": BasicBlock, "bottleneck": Bottleneck}[kind]
    layers = {"layer4": "out", **({"layer3": "aux"} if auxiliary else {})}
    # torchvision's basic block refuses to be dilated.
    body = _ResNet(block, PLANES, (False, kind != "basic", kind != "basic"), 1, 64, nn.BatchNorm2d)
    widths = [plane * block.expansion for plane in PLANES]
    second = FCNHead(widths[2], classes) if auxiliary else None
    return stirred(segmentation.fcn.FCN(IntermediateLayerGetter(body, layers), FCNHead(widths[3], classes), second))  # type: ignore


def ours(network: Any, path: Path, named: Any = None) -> FCN:
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    model = load_model(path, architecture=named)
    assert isinstance(model, FCN)
    return model


def undilated() -> FCNConfig:
    """What nobody sees of torchvision's network on basic blocks."""
    return FCNConfig(backbone=ResNetConfig(block="basic", stage_channels=PLANES))


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("size", [(64, 64), (75, 98)], ids=str)
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_the_same_numbers(kind: str, size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    network = peer(kind)
    model = ours(network, tmp_path / f"fcn{suffix}", undilated() if kind == "basic" else None)
    pixels = pictures(*size, count=2)
    theirs = network(pixels)
    enlarged = {"size": size, "mode": "bilinear", "align_corners": False}
    assert_same(F.interpolate(model(pixels).logits, **enlarged), theirs["out"])  # type: ignore[arg-type]
    assert model.auxiliary is not None
    second = model.auxiliary(model.pyramid(pixels).maps[0])
    assert_same(F.interpolate(second, **enlarged), theirs["aux"])  # type: ignore[arg-type]


@torch.no_grad()
def test_what_travels_with_the_weights(tmp_path: Path) -> None:
    model = ours(peer("bottleneck"), tmp_path / "fcn_resnet50_coco-1167a1af.pth")
    assert model.record.layout == "torchvision"
    assert model.record.labels == VOC_CLASSES == tuple(segmentation.FCN_ResNet50_Weights.DEFAULT.meta["categories"])
    preset = segmentation.FCN_ResNet50_Weights.DEFAULT.transforms()
    prepared = model.record.preprocessing
    assert prepared is not None
    assert (prepared.resize, prepared.size, prepared.crop) == ("shortest_edge", tuple(preset.resize_size * 2), None)
    assert (prepared.mean, prepared.std) == (IMAGENET_MEAN, IMAGENET_STD) == (tuple(preset.mean), tuple(preset.std))
    assert prepared.interpolation == preset.interpolation.value
    assert model.config.backbone.dilated == 2
    assert model.config.image_size == (520, 520)


@torch.no_grad()
@pytest.mark.parametrize("auxiliary", [True, False])
def test_there_and_back(auxiliary: bool, tmp_path: Path) -> None:
    network = peer("bottleneck", auxiliary, classes=5)
    model = ours(network, tmp_path / "fcn.safetensors")
    assert (model.auxiliary is not None) == auxiliary
    assert model.record.labels == ()
    save_model(model, tmp_path / "out", layout="torchvision")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        name: tensor.tolist() for name, tensor in network.state_dict().items()
    }
    again = load_model(tmp_path / "out")
    assert again.config == model.config
    assert again.record.preprocessing == model.record.preprocessing
    assert torch.equal(again(pictures(61, 83)).logits, model(pictures(61, 83)).logits)


@pytest.mark.parametrize("name", ["fcn_r50", "fcn_r101"])
def test_every_published_name_is_in_the_table(name: str) -> None:
    with torch.device("meta"):
        builder = {"fcn_r50": segmentation.fcn_resnet50, "fcn_r101": segmentation.fcn_resnet101}[name]
        theirs = builder(weights=None, weights_backbone=None, aux_loss=True)
        model = FCN(CATALOGUE[name].config)
    state, table = model.state_dict(), _rows(model.config, "backbone.")
    shapes = {one: tuple(t.shape) for row in table for one, t in zip(row.theirs, row.write(state[row.ours]), strict=True)}
    assert shapes == {one: tuple(t.shape) for one, t in theirs.state_dict().items()}


def test_a_residual_network_is_still_one(tmp_path: Path) -> None:
    body = stirred(_ResNet(Bottleneck, PLANES, (False, False, False), 1, 64, nn.BatchNorm2d))  # type: ignore[arg-type]
    torch.save(body.state_dict(), tmp_path / "resnet.pth")
    assert isinstance(load_model(tmp_path / "resnet.pth"), ResNet)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    network = peer("bottleneck")
    state = network.state_dict()
    lost = "aux_classifier.0.weight"
    save_file({name: tensor for name, tensor in state.items() if name != lost}, tmp_path / "a.safetensors")
    with pytest.raises(MismatchError) as caught:
        load_model(tmp_path / "a.safetensors")
    assert [name for name, _ in caught.value.missing] == [lost]
    deep = FCNConfig(backbone=replace(CATALOGUE["resnet18d"].config, num_classes=0))
    with pytest.raises(UsageError, match="stand on a plain ResNet only"):
        save_model(FCN(deep), tmp_path / "deep", layout="torchvision")
