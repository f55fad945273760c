"""Checkpoints of XCiT: the same numbers as timm, from its layout and the authors', and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.files import Files
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.checkpoints.xcit.timm import LAYOUT
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.xcit import VARIANTS, XCiT
from vitral.models.catalogue import create_model

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}

# case → (architecture of timm, its arguments beside SMALL)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nano": ("xcit_nano_12_p16_224", {}),
    "tiny": ("xcit_tiny_12_p16_224", {"mlp_ratio": 1.3, "cls_attn_layers": 3}),
    "small at 8": ("xcit_small_24_p8_224", {"num_heads": 4}),
    "without biases": ("xcit_medium_24_p16_224", {"qkv_bias": False, "in_chans": 1}),
    "without positions": ("xcit_large_24_p8_224", {"use_pos_embed": False, "img_size": 64}),
    "without classes": ("xcit_tiny_12_p8_224", {"num_classes": 0, "tokens_norm": False}),
}


@dataclass
class Case:
    theirs: nn.Module
    ours: XCiT
    folder: Path

    def pictures(self, height: int, width: int, count: int = 1) -> Tensor:
        return pictures(height, width, count)[:, : self.ours.config.channels]


def load(source: Path, **options: Any) -> XCiT:
    model = load_model(source, **options)
    assert isinstance(model, XCiT)
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    architecture, options = CASES[request.param]
    arguments = {**SMALL, **options}
    theirs = stirred(timm.create_model(architecture, **arguments))
    folder = tmp_path_factory.mktemp("checkpoint")
    save_for_hf(theirs, folder, model_args=arguments, safe_serialization=True)
    return Case(theirs, load(folder), folder)


def assert_same_output(ours: XCiT, theirs: nn.Module, pixels: Tensor) -> None:
    out = ours(pixels)
    assert_same(out.tokens, theirs.forward_features(pixels))
    assert_same(out.pooled if out.logits is None else out.logits, theirs(pixels))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (40, 16)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_same_numbers(case: Case, size: tuple[int, int]) -> None:
    pixels = case.pictures(*size, count=2)
    assert_same_output(case.ours, case.theirs, pixels)
    maps = case.theirs.forward_intermediates(pixels, indices=[0, 1], intermediates_only=True)
    for ours, theirs in zip(case.ours.pyramid(pixels, [0, 1]).maps, maps, strict=True):
        assert_same(ours, theirs)


def test_the_same_gradients(case: Case) -> None:
    pixels = case.pictures(48, 48)
    slopes = []
    for answer in (lambda x: case.ours(x).tokens, case.theirs.forward_features):
        given = pixels.clone().requires_grad_()
        answer(given).square().sum().backward()
        slopes.append(given.grad)
        case.ours.zero_grad()
        case.theirs.zero_grad()
    assert_same(slopes[0], slopes[1])


@torch.no_grad()
def test_what_we_write_is_read_by_timm(case: Case, tmp_path: Path) -> None:
    save_model(case.ours, tmp_path, layout="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = case.pictures(64, 96)
    assert_same(theirs.forward_features(pixels), case.theirs.forward_features(pixels), 1e-6)
    assert_same(theirs(pixels), case.theirs(pixels), 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["vitral", "timm"])
def test_what_we_write_is_read_by_us_bit_by_bit(case: Case, layout: str, tmp_path: Path) -> None:
    again = load(save_model(case.ours, tmp_path, layout=layout))
    assert again.config == case.ours.config
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in case.ours.state_dict().items())


def as_published(theirs: nn.Module) -> dict[str, Tensor]:
    """A network of timm in the spelling of the authors' repository."""
    state: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        if "cls_attn_blocks" in name and ".attn.q." in name:
            parts = [theirs.state_dict()[name.replace(".q.", f".{letter}.")] for letter in "qkv"]
            state[name.replace(".q.", ".qkv.")] = torch.cat(parts)
        elif not ("cls_attn_blocks" in name and (".attn.k." in name or ".attn.v." in name)):
            state[name.replace("pos_embed.", "pos_embeder.")] = tensor
    return state


@torch.no_grad()
def test_the_authors_files_are_read(case: Case, tmp_path: Path) -> None:
    state = as_published(case.theirs)
    torch.save({"model": state, "epoch": 399}, tmp_path / "weights.pth")
    named = load(tmp_path / "weights.pth", architecture=case.ours.config)
    assert named.record.layout == "facebook"
    assert named.record.notes == ()
    assert named.config == replace(case.ours.config, layer_scale=1.0)
    assert_same_output(named, case.theirs, case.pictures(64, 48))
    # The spelling is the one timm reads, too.
    filtered = timm.models.xcit.checkpoint_filter_fn(dict(state), case.theirs)
    assert {name: tensor.shape for name, tensor in filtered.items()} == {
        name: tensor.shape for name, tensor in case.theirs.state_dict().items()
    }


@torch.no_grad()
def test_dinos_files_are_read_without_their_projection_head(tmp_path: Path) -> None:
    theirs = stirred(timm.create_model("xcit_small_12_p16_224", **{**SMALL, "num_classes": 0}))
    state = {f"backbone.{name}": tensor for name, tensor in as_published(theirs).items()}
    state |= {"head.mlp.0.weight": torch.ones(8, 32), "head.last_layer.weight_v": torch.ones(9, 8)}
    torch.save({"teacher": state, "student": state}, tmp_path / "dino.pth")
    ours = load(tmp_path / "dino.pth")
    assert any("head.last_layer.weight_v, head.mlp.0.weight" in note for note in ours.record.notes)
    assert_same_output(ours, theirs, pictures(48, 48))


def test_what_no_tensor_shows_is_guessed_and_noted(tmp_path: Path) -> None:
    for width, said in ((128, "the class token alone"), (192, "all tokens")):
        theirs = timm.create_model("xcit_nano_12_p16_224", embed_dim=width, depth=1, num_heads=4, num_classes=7)
        torch.save(theirs.state_dict(), tmp_path / "weights.pth")
        guessed = load(tmp_path / "weights.pth")
        assert any(f"taken to act on {said}" in note for note in guessed.record.notes)
        assert any("224 × 224 was assumed" in note for note in guessed.record.notes)
        assert guessed.config.class_norm_all == (width == 192)
        assert guessed.config.heads == 4


@pytest.mark.parametrize("name", ["xcit_nano_12_p16", "xcit_tiny_12_p8"])
def test_full_sizes_have_timms_tensors(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(f"{name}_224"), create_model(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    state = {name: torch.empty(tensor.shape, device="meta") for name, tensor in theirs.state_dict().items()}
    plan = LAYOUT.plan(Files(source="", tensors=state, kind="pickle"), None)
    assert plan.config == VARIANTS[name]
    assert plan.record.architecture == name


@torch.no_grad()
def test_pictures_and_labels_travel(tmp_path: Path) -> None:
    arguments = {**SMALL, "img_size": 384}
    theirs = stirred(timm.create_model("xcit_nano_12_p16_384", **arguments))
    names = [f"n{index}" for index in range(7)]
    save_for_hf(theirs, tmp_path / "theirs", model_config={"label_names": names}, model_args=arguments)
    ours = load(tmp_path / "theirs")
    assert ours.config.image_size == (384, 384)
    assert ours.record.labels == tuple(names)
    assert ours.record.preprocessing is not None
    assert (ours.record.preprocessing.size, ours.record.preprocessing.crop) == ((384, 384), (384, 384))  # crop_pct 1
    again = load(save_model(ours, tmp_path / "ours", layout="timm"))
    assert again.config == ours.config
    assert again.record.preprocessing == ours.record.preprocessing
    assert again.record.labels == ours.record.labels


def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    small = create_model("xcit_nano_12_p16", width=32, depth=1, heads=2, mlp_width=32, patch=4)
    with pytest.raises(UsageError, match="timm's XCiT has patches of 8 or 16 pixels, not of 4"):
        save_model(small, tmp_path / "refused", layout="timm")
    averaged = {**SMALL, "global_pool": "avg"}
    theirs = timm.create_model("xcit_nano_12_p16_224", **averaged)
    save_for_hf(theirs, tmp_path / "avg", model_args=averaged, safe_serialization=True)
    with pytest.raises(CheckpointError, match="asks for global_pool='avg'"):
        load(tmp_path / "avg")
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("patch_embed")}
    torch.save(state, tmp_path / "headless.pth")
    with pytest.raises(CheckpointError, match="no convolutions before it"):
        load(tmp_path / "headless.pth")


def test_a_broken_configuration_ends_in_a_sentence(case: Case, tmp_path: Path) -> None:
    save_model(case.ours, tmp_path, layout="timm")
    told = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"img_size": "large"}, {"img_size": [1, 2, 3]}, {"eta": []}, {"drop_path_rate": 7}):
        (tmp_path / "config.json").write_text(json.dumps({**told, "model_args": {**told["model_args"], **wrong}}))
        with pytest.raises(CheckpointError, match="configuration in"):
            load(tmp_path)
