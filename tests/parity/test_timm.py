"""Checkpoints of timm: the same numbers as timm, and what we write is read by it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from timm.models import save_for_hf
from torch import nn

from tests.parity.peers import assert_same, bits, load, pictures, randomised
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UnknownNameError, UsageError
from vitral.models.backbones.vit import ViT
from vitral.models.catalogue import create_model

SMALL = {"img_size": 64, "patch_size": 16, "depth": 2, "num_classes": 7}
NARROW = {"embed_dim": 64, "num_heads": 4}

# case → (architecture of timm, its arguments beside SMALL)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {}),
    "vit small": ("vit_small_patch16_224", {}),
    "vit huge": ("vit_huge_patch14_224", NARROW),
    "vit without biases": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "vit with normed queries": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "vit alone": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "vit, oblong": ("vit_tiny_patch16_224", {"img_size": (48, 96)}),
    "mean pooled": ("vit_base_patch16_gap_224", NARROW),
    "flexivit": ("flexivit_small", NARROW),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", NARROW),
    "registers, mean pooled": ("vit_medium_patch16_reg4_gap_256", NARROW),
    "registers, attention pooled": ("vit_so150m_patch16_reg4_map_256", {"embed_dim": 64, "num_heads": 2}),
    "siglip": ("vit_base_patch16_siglip_224", NARROW),
    "siglip, mean pooled": ("vit_large_patch16_siglip_gap_512", NARROW),
    "clip": ("vit_base_patch32_clip_224", NARROW),
    "clip, quick gelu": ("vit_base_patch16_clip_quickgelu_224", NARROW),
    "dinov2": ("vit_small_patch14_dinov2", NARROW),
    "dinov2 gated": ("vit_giant_patch14_dinov2", {"embed_dim": 48, "num_heads": 4}),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", NARROW),
    "norms in the branches": ("vit_base_patch16_rpn_224", NARROW),
    "beit": ("beit_base_patch16_224", NARROW),
    "beit, shared biases": (
        "beit_base_patch16_224",
        {**NARROW, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": True},
    ),
    "beitv2": ("beitv2_base_patch16_224", NARROW),
    "eva": ("eva_large_patch14_196", NARROW),
    "test_vit": ("test_vit", {}),
    "test_vit2": ("test_vit2", {}),
    "test_vit3": ("test_vit3", {}),
    "test_vit4": ("test_vit4", {}),
}
# transformers' types state these; the others have a part that no type of theirs has.
IN_TRANSFORMERS = ("vit", "vit small", "vit huge", "vit without biases", "vit alone", "flexivit", "deit distilled")
IN_TRANSFORMERS += ("beit", "beit, shared biases", "beitv2", "test_vit", "vit, oblong")


@dataclass
class Case:
    name: str
    theirs: nn.Module
    ours: ViT
    folder: Path


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    architecture, options = CASES[request.param]
    arguments = {**SMALL, **options}
    if not architecture.startswith(("beit", "eva")):
        arguments["dynamic_img_size"] = True
    theirs = randomised(timm.create_model(architecture, **arguments))
    folder = tmp_path_factory.mktemp("checkpoint")
    save_for_hf(theirs, folder, model_args=arguments, safe_serialization=True)
    return Case(request.param, theirs, load(folder), folder)


def assert_same_output(out: Any, theirs: nn.Module, pixels: torch.Tensor) -> None:
    assert_same(out.tokens, theirs.forward_features(pixels))
    if theirs.num_classes:
        assert_same(out.logits, theirs(pixels))
    else:
        assert out.logits is None
        assert_same(out.pooled, theirs(pixels))


@torch.no_grad()
def test_the_same_numbers(case: Case) -> None:
    pixels = pictures(*case.ours.config.image_size, count=2)
    assert_same_output(case.ours(pixels), case.theirs, pixels)


@torch.no_grad()
@pytest.mark.parametrize("size", [(97, 131), (640, 480)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_same_numbers_at_other_sizes(case: Case, size: tuple[int, int]) -> None:
    if not getattr(case.theirs, "dynamic_img_size", False):
        pytest.skip("timm's BEiT and EVA take pictures of one size")
    pixels = pictures(*size)
    # timm takes multiples of the patch only; what is over is what we leave out.
    whole = pixels[:, :, : size[0] // 16 * 16, : size[1] // 16 * 16]
    assert_same_output(case.ours(pixels), case.theirs, whole)


@torch.no_grad()
def test_what_we_write_is_read_by_timm(case: Case, tmp_path: Path) -> None:
    if case.name == "norms in the branches":
        with pytest.raises(UsageError, match="timm's layout cannot state norms after the branches"):
            save_model(case.ours, tmp_path / "refused", layout="timm")
        assert not (tmp_path / "refused").exists()
        return
    save_model(case.ours, tmp_path, layout="timm")
    pixels = pictures(*case.ours.config.image_size)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert_same(theirs(pixels), case.theirs(pixels))
    assert_same(theirs.forward_features(pixels), case.theirs.forward_features(pixels))


@pytest.mark.parametrize("layout", ["vitral", "timm"])
def test_what_we_write_is_read_by_us_bit_by_bit(case: Case, layout: str, tmp_path: Path) -> None:
    if case.name == "norms in the branches" and layout == "timm":
        pytest.skip("is refused")
    again = load(save_model(case.ours, tmp_path, layout=layout))
    ours, came = bits(case.ours), bits(again)
    assert came.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(came[name], tensor), name
    pixels = pictures(*case.ours.config.image_size)
    with torch.no_grad():
        assert torch.equal(again(pixels).tokens, case.ours(pixels).tokens)
        assert_same(again(pixels).pooled, case.ours(pixels).pooled, 1e-6)


@torch.no_grad()
def test_what_we_write_is_read_by_transformers(case: Case, tmp_path: Path) -> None:
    if case.name not in IN_TRANSFORMERS:
        with pytest.raises(UsageError, match=r"transformers has no such model: the nearest type is \w+, which has no \w+"):
            save_model(case.ours, tmp_path / "refused", layout="transformers")
        assert not (tmp_path / "refused").exists()
        return
    save_model(case.ours, tmp_path, layout="transformers")
    kind = getattr(hf, json.loads((tmp_path / "config.json").read_text())["architectures"][0])
    theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not {name for name in report["missing_keys"] if "pooler.dense" not in name}
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    pixels = pictures(*case.ours.config.image_size)
    out, came = case.ours(pixels), theirs.eval()(pixels)
    assert_same(
        came.last_hidden_state if out.logits is None else came.logits, out.tokens if out.logits is None else out.logits
    )


@torch.no_grad()
@pytest.mark.parametrize("wrap", [{}, {"model": "module."}, {"state_dict": "_orig_mod."}, {"model_ema": ""}], ids=str)
def test_a_bare_state_dictionary_with_the_architecture_named(case: Case, wrap: dict[str, str], tmp_path: Path) -> None:
    state: dict[str, Any] = case.theirs.state_dict()
    for key, prefix in wrap.items():
        state = {key: {f"{prefix}{name}": tensor for name, tensor in state.items()}, "epoch": 3, "optimizer": {}}
    torch.save(state, tmp_path / "weights.pth")
    bare = load(tmp_path / "weights.pth", architecture=case.ours.config)
    pixels = pictures(*case.ours.config.image_size)
    out, expected = bare(pixels), case.ours(pixels)
    assert torch.equal(out.tokens, expected.tokens)
    assert_same(out.pooled, expected.pooled, 1e-6)


@torch.no_grad()
def test_a_guess_is_noted(tmp_path: Path) -> None:
    theirs = randomised(timm.create_model("vit_tiny_patch16_224", **SMALL))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    guessed = load(tmp_path / "weights.pth")
    assert any("3 heads, as heads of 64 channels are usual" in note for note in guessed.record.notes)
    assert_same(guessed(pictures(64, 64)).logits, theirs(pictures(64, 64)))
    named = load(tmp_path / "weights.pth", architecture="vit_ti16")
    assert named.record.notes == ()
    assert_same(named(pictures(64, 64)).logits, theirs(pictures(64, 64)))


def test_an_oblong_grid_of_square_number_is_taken_from_the_named_architecture(tmp_path: Path) -> None:
    options = {"img_size": (48, 80)}  # 3 · 5 patches and a class token: as many rows as 4 · 4 patches
    theirs = randomised(timm.create_model("vit_tiny_patch16_224", **{**SMALL, **options}))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    named = create_model("vit_ti16", image_size=(48, 80), depth=2, num_classes=7).config
    assert load(tmp_path / "weights.pth", architecture=named).config.grid == (3, 5)


def test_labels_by_number_are_read(tmp_path: Path) -> None:
    theirs = randomised(timm.create_model("vit_tiny_patch16_224", **SMALL))
    save_for_hf(theirs, tmp_path, model_config={"label_names": {i: f"n{i}" for i in range(7)}}, model_args=SMALL)
    assert load(tmp_path).record.labels == tuple(f"n{index}" for index in range(7))


def test_heads_that_cannot_be_guessed_are_asked_for(tmp_path: Path) -> None:
    theirs = randomised(timm.create_model("test_vit3", **SMALL))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"heads cannot be seen .* width 96\. Name the architecture"):
        load(tmp_path / "weights.pth")
    with pytest.raises(UnknownNameError, match=r"Unknown architecture 'vit_b_16'\. Did you mean 'vit_b16'"):
        load(tmp_path / "weights.pth", architecture="vit_b_16")


def test_an_architecture_of_another_size_is_refused(tmp_path: Path) -> None:
    theirs = randomised(timm.create_model("vit_tiny_patch16_224", **SMALL))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError):  # 12 heads of 16 channels would load, and compute something else
        load(tmp_path / "weights.pth", architecture="vit_b16")


@torch.no_grad()
def test_labels_travel(tmp_path: Path) -> None:
    theirs = randomised(timm.create_model("vit_tiny_patch16_224", **SMALL))
    names = [f"n{index}" for index in range(7)]
    told = {"label_names": names, "label_descriptions": {"n3": "third thing"}}
    save_for_hf(theirs, tmp_path / "theirs", model_config=told, model_args=SMALL)
    labels = load(tmp_path / "theirs").record.labels
    assert labels == ("n0", "n1", "n2", "third thing", "n4", "n5", "n6")
    written = save_model(load(tmp_path / "theirs"), tmp_path / "ours", layout="timm")
    read = timm.create_model(f"local-dir:{written}", pretrained=True)
    assert tuple(read.pretrained_cfg["label_names"]) == labels
