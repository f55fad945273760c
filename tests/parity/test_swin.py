"""Checkpoints of Swin Transformers: the same numbers as transformers, timm and torchvision, and what we write they read."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers as hf
from timm.models import save_for_hf
from torch import Tensor, nn

from tests.parity.peers import assert_same, bits, pictures
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.swin import Swin
from vitral.models.catalogue import create_model

STAGES = {"depths": (2, 2, 2), "num_heads": (2, 2, 4)}
NARROW = {"embed_dim": 8, "num_classes": 7, **STAGES}

# case → (architecture of timm, its arguments beside NARROW); the second of two sizes is taken by the network of the first.
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "first": ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4}),
    "first, filled up": ("swin_tiny_patch4_window7_224", {"img_size": (60, 76), "window_size": 4, "qkv_bias": False}),
    "first, oblong windows": ("swin_tiny_patch4_window7_224", {"img_size": (32, 96), "window_size": 6}),
    "first, shifted always": ("swin_tiny_patch4_window7_224", {"img_size": 48, "window_size": 5, "always_partition": True}),
    "first, alone": ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "num_classes": 0}),
    "s3": ("swin_s3_tiny_224", {"img_size": 64, "window_size": (4, 8, 2)}),
    "second": ("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 4}),
    "second, fine-tuned": (
        "swinv2_base_window12to16_192to256",
        {"img_size": (64, 96), "window_size": 8, "pretrained_window_sizes": (6, 6, 3)},
    ),
    "second, filled up": ("swinv2_tiny_window8_256", {"img_size": (60, 76), "window_size": 4, "qkv_bias": False}),
}


def stirred(network: nn.Module) -> nn.Module:
    """Weights under which every part matters and no logit of attention comes near the −100 that keep tokens apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            mean, deviation = (0.0, 0.2) if parameter.ndim in (2, 4) else (0.5, 0.3)
            parameter.normal_(mean, deviation, generator=generator)
    return network.eval()


def load(source: Path, **options: Any) -> Swin:
    model = load_model(source, **options)
    assert isinstance(model, Swin)
    return model


@dataclass
class Case:
    name: str
    theirs: nn.Module
    ours: Swin


@pytest.fixture(scope="module", params=TIMM)
def in_timm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    architecture, options = TIMM[request.param]
    arguments = {**NARROW, **options, "dynamic_img_size": True}
    theirs = stirred(timm.create_model(architecture, **arguments))
    folder = tmp_path_factory.mktemp("timm")
    told = {name: value for name, value in arguments.items() if name != "num_classes"}
    save_for_hf(theirs, folder, model_args=told)
    return Case(request.param, theirs, load(folder))


def assert_as_timm(ours: Swin, theirs: nn.Module, pixels: Tensor) -> None:
    out = ours(pixels)
    assert_same(out.tokens, theirs.forward_features(pixels).flatten(1, 2))
    assert_same(out.logits if theirs.num_classes else out.pooled, theirs(pixels))


@torch.no_grad()
@pytest.mark.parametrize("size", [None, (72, 44), (100, 124)], ids=str)
def test_the_same_numbers_as_timm(in_timm: Case, size: tuple[int, int] | None) -> None:
    assert_as_timm(in_timm.ours, in_timm.theirs, pictures(*size or in_timm.ours.config.image_size, count=2))


@torch.no_grad()
def test_the_same_maps_as_timm(in_timm: Case) -> None:
    pixels = pictures(*in_timm.ours.config.image_size)
    theirs = in_timm.theirs.forward_intermediates(pixels, intermediates_only=True)
    for ours, one in zip(in_timm.ours.pyramid(pixels).maps, theirs, strict=True):
        assert_same(ours, one)


@torch.no_grad()
def test_what_we_write_is_read_by_timm(in_timm: Case, tmp_path: Path) -> None:
    save_model(in_timm.ours, tmp_path, layout="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = pictures(*in_timm.ours.config.image_size)
    assert_same(theirs(pixels), in_timm.theirs(pixels), 1e-6)
    again = load(tmp_path)
    assert {name: t.tolist() for name, t in bits(again).items()} == {n: t.tolist() for n, t in bits(in_timm.ours).items()}
    assert again.config == in_timm.ours.config


@torch.no_grad()
def test_bare_files_of_timm(in_timm: Case, tmp_path: Path) -> None:
    torch.save({"state_dict": in_timm.theirs.state_dict()}, tmp_path / "weights.pth")
    config = in_timm.ours.config
    if config.version == 2:
        with pytest.raises(CheckpointError, match="shows its windows and the size of its pictures"):
            load(tmp_path / "weights.pth")
    if in_timm.name == "first, shifted always":
        return  # nothing in the file or in a configuration's windows says so
    named = load(tmp_path / "weights.pth", architecture=config)
    pixels = pictures(*config.image_size)
    assert torch.equal(named(pixels).tokens, in_timm.ours(pixels).tokens)
    if in_timm.name == "first":
        assert torch.equal(load(tmp_path / "weights.pth")(pixels).tokens, in_timm.ours(pixels).tokens)


# case → (model type of transformers, its fields beside those of every case)
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "first": ("swin", {}),
    "first, oblong": ("swin", {"image_size": [64, 96]}),
    "first, with positions": ("swin", {"use_absolute_embeddings": True, "hidden_act": "gelu_new"}),
    "first, alone": ("swin", {"num_labels": 0, "qkv_bias": False}),
    "second": ("swinv2", {}),
    "second, fine-tuned": ("swinv2", {"window_size": 8, "pretrained_window_sizes": [6, 6, 3]}),
    "second, filled up": ("swinv2", {"image_size": [60, 76], "window_size": 6, "hidden_act": "relu"}),
    "second, alone": ("swinv2", {"num_labels": 0, "qkv_bias": False}),
}


@pytest.fixture(scope="module", params=TRANSFORMERS)
def in_transformers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model_type, fields = TRANSFORMERS[request.param]
    fields = {"image_size": 64, "embed_dim": 8, "window_size": 4, "num_labels": 7, **STAGES, **fields}
    fields.setdefault("pretrained_window_sizes", [0, 0, 0])
    stem = {"swin": "Swin", "swinv2": "Swinv2"}[model_type]
    kind = "ForImageClassification" if fields["num_labels"] else "Model"
    if model_type == "swin":
        del fields["pretrained_window_sizes"]
    theirs = stirred(getattr(hf, f"{stem}{kind}")(getattr(hf, f"{stem}Config")(**fields)))
    folder = tmp_path_factory.mktemp("transformers")
    theirs.save_pretrained(folder)
    return Case(request.param, theirs, load(folder))


def assert_as_transformers(ours: Swin, theirs: nn.Module, pixels: Tensor) -> None:
    out, moved = ours(pixels), ours.config.position == "learned" and tuple(pixels.shape[2:]) != ours.config.image_size
    theirs = copy.deepcopy(theirs)  # a block that once met a small map no longer shifts on a larger one
    said = theirs(pixels, output_hidden_states=True, interpolate_pos_encoding=moved)
    if out.logits is None:
        assert_same(out.tokens, said.last_hidden_state)
        assert_same(out.pooled, said.pooler_output)
    else:
        assert_same(out.logits, said.logits)
    stages = said.hidden_states[-1] if out.logits is None else None
    if stages is not None:
        assert_same(ours.pyramid(pixels, [-1]).maps[0].flatten(2).transpose(1, 2), stages)


@torch.no_grad()
@pytest.mark.parametrize("size", [None, (90, 131), (160, 97)], ids=str)
def test_the_same_numbers_as_transformers(in_transformers: Case, size: tuple[int, int] | None) -> None:
    if in_transformers.ours.config.position == "learned" and size is not None:
        size = (96, 160)  # transformers carries positions to whole patches only
    pixels = pictures(*size or in_transformers.ours.config.image_size, count=2)
    assert_as_transformers(in_transformers.ours, in_transformers.theirs, pixels)


@torch.no_grad()
def test_what_we_write_is_read_by_transformers(in_transformers: Case, tmp_path: Path) -> None:
    save_model(in_transformers.ours, tmp_path, layout="transformers")
    kind = getattr(hf, json.loads((tmp_path / "config.json").read_text())["architectures"][0])
    theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert_as_transformers(in_transformers.ours, theirs.eval(), pictures(*in_transformers.ours.config.image_size))
    again = load(tmp_path)
    assert again.config == in_transformers.ours.config
    assert {name: t.tolist() for name, t in bits(again).items()} == {
        name: t.tolist() for name, t in bits(in_transformers.ours).items()
    }


@torch.no_grad()
def test_names_in_memory_are_read_too(in_transformers: Case, tmp_path: Path) -> None:
    in_transformers.theirs.config.save_pretrained(tmp_path)
    torch.save(in_transformers.theirs.state_dict(), tmp_path / "pytorch_model.bin")
    pixels = pictures(*in_transformers.ours.config.image_size)
    assert torch.equal(load(tmp_path)(pixels).tokens, in_transformers.ours(pixels).tokens)


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_the_same_numbers_as_torchvision(version: int, tmp_path: Path) -> None:
    page = torchvision.models.swin_transformer
    second = {"block": page.SwinTransformerBlockV2, "downsample_layer": page.PatchMergingV2} if version == 2 else {}
    theirs = stirred(page.SwinTransformer([4, 4], 8, [2, 2, 2], [2, 2, 4], [4, 4], num_classes=7, **second))
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    ours = load(tmp_path / "swin.pth")
    assert ours.config.image_size == (64, 64)
    for size in ((64, 64), (61, 43), (99, 130)):
        pixels = pictures(*size)
        assert_same(ours(pixels).logits, theirs(pixels))
        features = theirs.norm(theirs.features(pixels)).flatten(1, 2)
        assert_same(ours(pixels).tokens, features)


def as_the_authors(network: nn.Module) -> dict[str, Tensor]:
    """timm's tensors under the names of the authors' files, with the buffers that these hold."""
    state = {}
    for name, tensor in network.state_dict().items():
        moved = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        state[moved.replace("head.fc.", "head.")] = tensor
    state |= {name: buffer for name, buffer in network.named_buffers() if "k_bias" not in name and buffer is not None}
    return state


@pytest.mark.parametrize("name", ["first", "second", "second, fine-tuned"])
@torch.no_grad()
def test_the_authors_files(name: str, tmp_path: Path) -> None:
    architecture, options = TIMM[name]
    theirs = stirred(timm.create_model(architecture, **{**NARROW, **options, "img_size": 64}))
    torch.save({"model": as_the_authors(theirs), "epoch": 299, "lr_scheduler": {}}, tmp_path / "swin.pth")
    ours = load(tmp_path / "swin.pth")
    assert ours.record.layout == "microsoft"
    assert ours.config.image_size == (64, 64)
    assert_as_timm(ours, theirs, pictures(64, 64))
    # Without the masks and a name, the last stage is one window.
    state = {key: tensor for key, tensor in as_the_authors(theirs).items() if "attn_mask" not in key}
    torch.save({"model": state}, tmp_path / "swin.pth")
    assert load(tmp_path / "swin.pth").config.image_size == (64, 64)
    # A file of version 2 without its buffers shows no windows.
    if "second" in name:
        torch.save({k: t for k, t in state.items() if "relative_coords_table" not in k}, tmp_path / "swin.pth")
        with pytest.raises(CheckpointError, match="sides of the windows cannot be seen"):
            load(tmp_path / "swin.pth")
        assert_as_timm(load(tmp_path / "swin.pth", architecture=ours.config), theirs, pictures(64, 64))


def test_published_names_are_found(tmp_path: Path) -> None:
    theirs = timm.create_model("swinv2_base_window12to16_192to256", embed_dim=8, num_heads=(1, 2, 4, 8), depths=(1, 1, 2, 1))
    save_for_hf(theirs, tmp_path, model_args={})
    config = load(tmp_path).config
    known = create_model("swinv2_b_w12to16_256", widths=(8, 16, 32, 64), heads=(1, 2, 4, 8), depths=(1, 1, 2, 1)).config
    assert (config.image_size, config.windows, config.pretrained_windows) == (
        known.image_size,
        known.windows,
        known.pretrained_windows,
    )
    assert config.shifts == ((8, 8), (8, 8), (0, 0), (0, 0))


SMALL: dict[str, Any] = {"image_size": (64, 64), "widths": (8, 16), "depths": (2, 2), "heads": (2, 2), "num_classes": 3}


@pytest.mark.parametrize(
    ("layout", "changed", "reason"),
    [
        ("timm", {"windows": ((4, 4), (16, 16))}, "windows of"),
        ("timm", {"windows": ((5, 5), (4, 4))}, "filled up before they are shifted"),
        ("timm", {"position": "learned", "windows": ((4, 4),) * 2}, "absolute positions"),
        ("timm", {"widths": (8, 12), "windows": ((4, 4),) * 2}, "widths of"),
        ("transformers", {"windows": ((4, 4), (8, 8))}, "windows of"),
        ("transformers", {"windows": ((4, 2), (4, 2))}, "windows of"),
        ("transformers", {"windows": ((5, 5),) * 2, "shift_first": True}, "shifted before they are filled up"),
        ("transformers", {"version": 2, "windows": ((4, 4),) * 2, "position": "learned"}, "positions of version 2"),
        ("torchvision", {"windows": ((4, 4),) * 2}, "torchvision"),
    ],
)
def test_what_a_layout_cannot_state_is_refused(layout: str, changed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = create_model("swin_ti", **{**SMALL, **changed})
    with pytest.raises(UsageError, match=reason):
        save_model(model, tmp_path / "refused", layout=layout)
    assert not (tmp_path / "refused").exists()


def test_a_model_of_ours_goes_to_every_peer(tmp_path: Path) -> None:
    for name, version in (("swin_ti", 1), ("swinv2_ti_w8_256", 2)):
        model = stirred(create_model(name, **SMALL, windows=((4, 4), (4, 4))))
        pixels = pictures(64, 64)
        with torch.no_grad():
            for layout in ("timm", "transformers"):
                save_model(model, tmp_path / f"{layout}{version}", layout=layout)
            theirs = timm.create_model(f"local-dir:{tmp_path / f'timm{version}'}", pretrained=True).eval()
            assert_same(theirs(pixels), model(pixels).logits)
            theirs = hf.AutoModelForImageClassification.from_pretrained(tmp_path / f"transformers{version}").eval()
            assert_same(theirs(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_act": "swoosh"}, "Unknown activation"),
        ({"layer_norm_eps": 1e-6}, "only 1e-5 was ever published"),
        ({"window_size": 4.5}, "where a whole number belongs"),
        ({"use_absolute_embeddings": True, "image_size": 60}, "absolute positions"),
        ({"num_heads": [3, 2, 4]}, "not a multiple of its heads"),
        ({"depths": "two"}, "config.json"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_hostile_config_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    fields = {"image_size": 64, "embed_dim": 8, "window_size": 4, "num_labels": 7, **STAGES}
    hf.SwinForImageClassification(hf.SwinConfig(**fields)).save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | changed))
    with pytest.raises((CheckpointError, UsageError), match=message):
        load(tmp_path)


def test_torn_files_are_refused(tmp_path: Path) -> None:
    theirs = timm.create_model("swin_tiny_patch4_window7_224", **NARROW, img_size=64, window_size=4)
    for gone, message in (
        ("layers.1.blocks", r"stages \[0, 2\]"),
        ("layers.2.blocks.0.mlp.fc1.weight", "no layers.2.blocks.0.mlp.fc1.weight"),
        ("layers.1.blocks.1.attn.qkv.weight", "layers.1.blocks.1.attn.qkv.weight"),
    ):
        torch.save({k: t for k, t in theirs.state_dict().items() if not k.startswith(gone)}, tmp_path / "torn.pth")
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "torn.pth")
