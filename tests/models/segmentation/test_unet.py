"""U-Nets through the harness, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.segmentation.harness import SegmentationHarness
from vitral.errors import UsageError
from vitral.models.catalogue import CATALOGUE
from vitral.models.segmentation.unet import UNet, UNetConfig

SMALL = UNetConfig(image_size=(64, 64), num_classes=5, stage_channels=(4, 8, 16))
PAPER = replace(SMALL, border="mirrored", norm="none")


class TestUNet(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "zeros": SMALL,
        "as in the paper": replace(PAPER, channels=1, dropout=0.2),
        "interpolating": replace(SMALL, stage_channels=(4, 8, 16, 32), enlarging="bilinear", bias=True),
    }
    cells = 1
    auxiliary: ClassVar[Mapping[str, int]] = dict.fromkeys(kinds, 0)
    idle = (r".*\.conv\.bias",)  # before a batch normalisation, which takes it away


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return CATALOGUE[name].build(CATALOGUE[name].config)


def expected(channels: int, classes: int, per_convolution: int) -> int:
    """Numbers of a U-Net of 64 to 1024 channels, with so many beside the windows for each channel of a convolution."""
    widths = (64, 128, 256, 512, 1024)
    total = 64 * classes + classes
    for before, width in zip((channels, *widths), widths, strict=False):
        total += 9 * before * width + 9 * width * width + 2 * per_convolution * width
    for width in widths[:-1]:
        total += 4 * 2 * width * width + width
        total += 9 * 2 * width * width + 9 * width * width + 2 * per_convolution * width
    return total


def test_the_number_of_parameters() -> None:
    paper, usual = on_meta("unet_2015"), on_meta("unet")
    assert sum(one.numel() for one in paper.parameters()) == expected(1, 2, 1) == 31_030_658
    assert sum(one.numel() for one in usual.parameters()) == expected(3, 2, 2) == 31_037_698
    convolutions = [one for one in paper.modules() if isinstance(one, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 23  # section 2


def test_of_572_pixels_388_are_told() -> None:
    model = on_meta("unet_2015")
    assert model.read(torch.empty(1, 1, 572, 572, device="meta")).shape == (1, 2, 388, 388)
    assert model.config.turning(388) == 28  # figure 1
    assert model.config.grid_of((388, 389)) == (28, 29)
    # The tile for which nothing is computed too much, and the least that a pixel more takes.
    sizes: list[tuple[int, ...]] = []
    model.down[0].first.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    for side in (388, 389):
        assert model(torch.empty(1, 1, side, 388, device="meta")).logits.shape == (1, 2, side, 388)
    assert sizes == [(572, 572), (588, 572)]


@torch.no_grad()
@pytest.mark.parametrize("size", [(52, 68), (33, 47), (25, 30)])
def test_what_surrounds_a_picture_is_its_mirror_image(size: tuple[int, int]) -> None:
    model = TestUNet.small("as in the paper")
    pixels = torch.randn(2, 1, *size)
    margin = 20  # of three stages: four cells of each map on the way down, and of the two on the way up, halved
    needed = [4 * (-(-(side + 12) // 4) + 4) + 12 for side in size]
    behind = [whole - margin - side for whole, side in zip(needed, size, strict=True)]
    surrounded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (margin, behind[0]), (margin, behind[1])), mode="reflect")
    told = model.read(torch.from_numpy(surrounded))
    torch.testing.assert_close(model(pixels).logits, told[:, :, : size[0], : size[1]])


@torch.no_grad()
def test_pictures_however_small_are_mirrored_again_and_again() -> None:
    model = TestUNet.small("as in the paper")
    for size in ((1, 1), (2, 3), (5, 1)):
        pixels = torch.randn(1, 1, *size)
        # A single row or column, which has no mirror image, is repeated.
        surrounded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (20, 100), (20, 100)), mode="reflect")
        told = model.read(torch.from_numpy(surrounded[:, :, :68, :68].copy()))
        torch.testing.assert_close(model(pixels).logits, told[:, :, : size[0], : size[1]], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_tiles_tell_what_the_whole_does() -> None:
    """Nothing that a tile does not see matters to what it tells (figure 2)."""
    model = TestUNet.small("as in the paper")
    pixels = torch.randn(1, 1, 100, 132)
    whole = model.read(pixels)
    tile = model.read(pixels[:, :, 32:100, 16:100])
    inside = whole[:, :, 32 : 32 + tile.shape[2], 16 : 16 + tile.shape[3]]
    torch.testing.assert_close(tile, inside, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_rest_is_filled_up_below_and_to_the_right() -> None:
    model = TestUNet.small("zeros")
    seen: list[torch.Tensor] = []
    model.up[-1].pair.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.randn(1, 3, 63, 64))
    (beside_and_above,) = seen
    assert not beside_and_above[:, 4:, -1].any()
    assert beside_and_above[:, 4:, -2].any()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"stage_channels": (4,)}, "from 2 to 10 stages; 1 came"),
        ({"stage_channels": (4, 9)}, r"Channels double from stage to stage; \(4, 9\) came"),
        ({"border": "mirrored", "enlarging": "bilinear"}, "enlarging 'bilinear' goes with border 'zeros'"),
        ({"border": "mirror"}, "Unknown border of a UNetConfig 'mirror'"),
        ({"num_classes": 0}, "num_classes must be from 1"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SMALL, **wrong)


def test_pictures_that_are_too_small_are_refused() -> None:
    with pytest.raises(UsageError, match="3×9 pixels nothing is left"):
        UNet(SMALL)(torch.zeros(1, 3, 3, 9))
    assert SMALL.grid_of((63, 64)) == (15, 16)
