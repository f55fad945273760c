"""SETRs through the harness, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from tests.models.segmentation.harness import SegmentationHarness
from vitral.errors import UnknownNameError, UsageError
from vitral.models.backbones.vit import ViTConfig
from vitral.models.catalogue import CATALOGUE, create_model
from vitral.models.segmentation.setr import VARIANTS, SETRConfig

VIT = ViTConfig(patch_size=(16, 16), width=32, depth=4, heads=4, mlp_width=48, position_antialias=False)
SMALL = SETRConfig(image_size=(64, 64), num_classes=5, backbone=VIT, levels=(0, 1, 2, 3), decoder_width=12, branch_width=6)
BARE = replace(VIT, class_token=False, prefix_positions=0, pool="mean")


class TestSETR(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "naive": SMALL,
        "naive, two convolutions further down": replace(SMALL, auxiliary_convolutions=2, levels=(1, 3)),
        "pup": replace(SMALL, decoder="pup", convolutions=4, kernel=3, auxiliary_convolutions=2),
        "mla": replace(SMALL, decoder="mla", backbone=BARE),
        "mla, alone, in grey": replace(SMALL, decoder="mla", backbone=BARE, auxiliary=False, channels=1),
    }
    maps: ClassVar[Mapping[str, int]] = dict.fromkeys(kinds, 4)
    auxiliary: ClassVar[Mapping[str, int]] = {"naive": 3, "pup": 3, "mla": 4, "mla, alone, in grey": 0}

    @torch.no_grad()
    def test_pictures_of_any_size(self, kind: str) -> None:
        model = self.small(kind)
        whole = 1 if kind == "pup" else 4
        for size, cells in {(64, 64): whole, (48, 80): whole, (61, 83): 1, (9, 130): 1}.items():
            logits = model(self.pictures(model, 2, size)).logits
            assert logits.shape == (2, 5, size[0] // cells, size[1] // cells)
            assert torch.isfinite(logits).all()

    @torch.no_grad()
    def test_what_does_not_fill_a_patch_is_filled_up(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 1, (61, 83))
        whole = F.interpolate(model(F.pad(pixels, (0, 13, 0, 3))).logits, size=(64, 96), mode="bilinear")
        torch.testing.assert_close(model(pixels).logits, whole[..., :61, :83])


# Zheng et al. 2021, table 2, in millions. Theirs are of an older code, and near ours: without the auxiliary heads for naive
# and MLA, with them for PUP.
PUBLISHED = {
    "setr_naive_l16": (305.67, 305_727_763),
    "setr_mla_l16": (310.57, 310_657_555),
    "setr_pup_l16": (318.31, 318_467_148),
    "setr_naive_b16": (87.69, 87_619_603),
    "setr_mla_b16": (92.59, 92_351_763),
    "setr_pup_b16": (97.64, 98_063_692),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_near_the_published_number(name: str) -> None:
    published, count = PUBLISHED[name]
    with torch.device("meta"):
        model = create_model(name)
    seen = [len(one.flatten()) for part, one in model.named_parameters() if "pup" in name or "auxiliary" not in part]
    assert sum(seen) == count
    assert abs(count / 1e6 - published) < 0.005 * published


def test_published_networks_read_the_published_blocks() -> None:
    assert VARIANTS["setr_pup_l16"].levels == (9, 14, 19, 23)  # Z10, Z15, Z20, Z24
    assert VARIANTS["setr_mla_l16"].levels == (5, 11, 17, 23)
    assert not VARIANTS["setr_mla_l16"].backbone.class_token
    assert {CATALOGUE[name].paper for name in VARIANTS} == {"Zheng et al. 2021"}


def test_what_no_setr_can_be_is_refused(unchecked: None) -> None:
    with pytest.raises(UnknownNameError, match="decoder"):
        replace(SMALL, decoder="pub")
    with pytest.raises(UsageError, match="Levels of a pyramid are different numbers from 0 to 3"):
        replace(SMALL, levels=(1, 4))
    with pytest.raises(UsageError, match=r"levels are numbers of blocks from 0; \(-1,\) came"):
        replace(SMALL, levels=(-1,))
    with pytest.raises(UsageError, match="patches are square; patches of 16 × 8 pixels came"):
        replace(SMALL, backbone=replace(VIT, patch_size=(16, 8)))
    with pytest.raises(UsageError, match="num_classes must be from 1"):
        replace(SMALL, num_classes=0)
    with pytest.raises(UsageError, match="takes pictures of 3 channels; 4 came"):
        TestSETR.small("naive")(torch.zeros(1, 4, 64, 64))
