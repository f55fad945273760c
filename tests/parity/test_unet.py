"""U-Nets in the names of milesial's Pytorch-UNet: a network of these names and its published forward, written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.load import load_model
from vitral.errors import MismatchError
from vitral.models.segmentation.unet import UNet


class Named(nn.Module):
    """Modules by these names."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def pair(inputs: int, outputs: int, between: int, bias: bool) -> Named:
    layers: list[nn.Module] = []
    for before, after in ((inputs, between), (between, outputs)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU()]
    return Named(double_conv=nn.Sequential(*layers))


class Peer(Named):
    def __init__(self, classes: int, bilinear: bool, bias: bool, w: int = 4) -> None:
        parts: dict[str, nn.Module] = {"inc": pair(3, w, w, bias)}
        half = 2 if bilinear else 1
        for place, (before, after) in enumerate(((w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 16 * w // half)), 1):
            parts[f"down{place}"] = Named(maxpool_conv=nn.Sequential(nn.MaxPool2d(2), pair(before, after, after, bias)))
        for place, before in enumerate((16 * w, 8 * w, 4 * w, 2 * w), 1):
            after = before // 2 // (half if place < 4 else 1)
            inside: dict[str, nn.Module] = {"conv": pair(before, after, before // 2, bias)}
            if not bilinear:
                inside["up"] = nn.ConvTranspose2d(before, before // 2, 2, 2)
            parts[f"up{place}"] = Named(**inside)
        parts["outc"] = Named(conv=nn.Conv2d(w, classes, 1))
        super().__init__(**parts)
        self.bilinear = bilinear

    def forward(self, x: Tensor) -> Tensor:
        parts: Any = dict(self.named_children())
        passed = [parts["inc"].double_conv(x)]
        for place in range(1, 5):
            down = parts[f"down{place}"].maxpool_conv
            passed.append(down[1].double_conv(down[0](passed[-1])))
        x = passed[4]
        for place in range(1, 5):
            up, beside = parts[f"up{place}"], passed[4 - place]
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True) if self.bilinear else up.up(x)
            high, wide = beside.shape[2] - x.shape[2], beside.shape[3] - x.shape[3]
            x = F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
            x = up.conv.double_conv(torch.cat([beside, x], dim=1))
        return parts["outc"].conv(x)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bilinear", [True, False])
def test_the_same_numbers(bilinear: bool, bias: bool, tmp_path: Path) -> None:
    network: Any = stirred(Peer(3, bilinear, bias))  # type: ignore[arg-type]
    # The values of masks lie beside the weights in files since 2022.
    torch.save({**network.state_dict(), "mask_values": [0, 1, 2]}, tmp_path / "checkpoint_epoch5.pth")
    model = load_model(tmp_path / "checkpoint_epoch5.pth")
    assert isinstance(model, UNet)
    assert (model.config.enlarging, model.config.bias) == ("bilinear" if bilinear else "learned", bias)
    assert model.record.layout == "milesial"
    for size in ((64, 64), (61, 83), (17, 16)):
        assert_same(model(pictures(*size, count=2)).logits, network(pictures(*size, count=2)))


@torch.no_grad()
def test_a_single_logit_is_that_of_the_second_class(tmp_path: Path) -> None:
    network: Any = stirred(Peer(1, True, True))  # type: ignore[arg-type]
    torch.save(network.state_dict(), tmp_path / "unet_carvana_scale1_epoch5.pth")
    model = load_model(tmp_path / "unet_carvana_scale1_epoch5.pth")
    pixels = pictures(61, 83)
    assert model.config.num_classes == 2
    assert_same(model(pixels).logits.softmax(1)[:, 1:], network(pixels).sigmoid(), 1e-5)
    assert model.record.labels == ("background", "car")


def test_what_the_name_of_a_published_file_tells(tmp_path: Path) -> None:
    network: Any = stirred(Peer(2, False, False))  # type: ignore[arg-type]
    torch.save(network.state_dict(), tmp_path / "unet_carvana_scale0.5_epoch2.pth")
    model = load_model(tmp_path / "unet_carvana_scale0.5_epoch2.pth")
    assert model.config.image_size == (640, 959)
    prepared = model.record.preprocessing
    assert prepared is not None
    assert (prepared.resize, prepared.size, prepared.interpolation) == ("exact", (640, 959), "bicubic")
    assert (prepared.mean, prepared.std) == ((0.0,) * 3, (1.0,) * 3)
    assert model.record.labels == ("background", "car")


def test_nothing_may_be_missing_or_more(tmp_path: Path) -> None:
    state = Peer(2, False, False).state_dict()
    lost = state.pop("up2.up.bias")
    torch.save({**state, "up9.up.bias": lost}, tmp_path / "unet.pth")
    with pytest.raises(MismatchError) as caught:
        load_model(tmp_path / "unet.pth")
    assert [name for name, _ in caught.value.missing] == ["up2.up.bias"]
    assert [name for name, _ in caught.value.unexpected] == ["up9.up.bias"]
