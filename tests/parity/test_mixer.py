"""MLP-Mixers of timm and of the authors: the same numbers as timm, and what we write is read by it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.models.mlp_mixer import _create_mixer
from torch import nn

from tests.parity.peers import assert_same, bits, pictures, randomised
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.mixer import Mixer, MixerConfig
from vitral.models.catalogue import create_model

SMALL = {"img_size": 64, "patch_size": 16, "num_blocks": 2, "embed_dim": 32, "num_classes": 7}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "b16": ("mixer_b16_224", {}),
    "s32, oblong": ("mixer_s32_224", {"patch_size": 32, "img_size": (64, 96)}),
    "grey, without classes": ("mixer_l16_224", {"in_chans": 1, "num_classes": 0}),
    "of other widths": ("mixer_b16_224", {"mlp_ratio": (0.75, 2.0), "num_blocks": 3}),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Mixer, Path]:
    architecture, options = CASES[request.param]
    arguments = {**SMALL, **options}
    theirs = randomised(_create_mixer(architecture, **arguments))  # the names fix depth and width
    folder = tmp_path_factory.mktemp("checkpoint")
    save_for_hf(theirs, folder, model_args=arguments, safe_serialization=True)
    return theirs, load_model(folder), folder


def batch(model: Mixer, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, model.config.channels, *model.config.image_size, generator=generator)


@torch.no_grad()
def test_the_same_numbers(pair: tuple[nn.Module, Mixer, Path]) -> None:
    theirs, ours, _ = pair
    pixels = batch(ours)
    out = ours(pixels)
    assert_same(out.tokens, theirs.forward_features(pixels))
    assert_same(out.logits if theirs.num_classes else out.pooled, theirs(pixels))


@torch.no_grad()
def test_what_we_write_is_read_by_timm_and_by_us(tmp_path: Path) -> None:
    """At full width and depth, which go with timm's names; all else is free."""
    options = {"image_size": (64, 96), "token_hidden": 20, "channel_hidden": 40, "channels": 1}
    ours = randomised(create_model("mixer_s32", 7, **options))
    save_model(ours, tmp_path, layout="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = batch(ours)
    assert_same(ours(pixels).tokens, theirs.forward_features(pixels))
    assert_same(ours(pixels).logits, theirs(pixels))
    again = load_model(tmp_path)
    assert again.config == ours.config
    assert again.record.preprocessing.input_size == ours.record.preprocessing.input_size == (64, 96)
    assert again.record.preprocessing.mean == ours.record.preprocessing.mean
    came = bits(again)
    assert all(torch.equal(came[name], tensor) for name, tensor in bits(ours).items())


@pytest.mark.parametrize("name", ["mixer_s32", "mixer_s16", "mixer_b32", "mixer_b16", "mixer_l32", "mixer_l16"])
def test_sizes_are_timms(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(name), timm.create_model(f"{name}_224", num_classes=1000)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert len(ours.blocks) == len(theirs.blocks)


def test_a_bare_state_dictionary(pair: tuple[nn.Module, Mixer, Path], tmp_path: Path) -> None:
    _, ours, folder = pair
    (tmp_path / "bare").mkdir()
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "bare" / "mixer.pth")
    if ours.config.image_size[0] == ours.config.image_size[1]:
        again = load_model(tmp_path / "bare" / "mixer.pth")
    else:
        with pytest.raises(CheckpointError, match="is for 6 patches: no square of them"):
            load_model(tmp_path / "bare" / "mixer.pth")
        again = load_model(tmp_path / "bare" / "mixer.pth", architecture=ours.config)
    assert again.config == ours.config


def test_prepared_as_published(pair: tuple[nn.Module, Mixer, Path]) -> None:
    """Mixers of timm see pictures in [−1, 1], of which 7/8 are cut out."""
    _, ours, _ = pair
    prepared = ours.record.preprocessing
    if ours.config.channels == 3:
        assert prepared.mean == prepared.std == (0.5, 0.5, 0.5)
    assert ours.record.licence == "apache-2.0"


@pytest.mark.parametrize("architecture", ["gmixer_12_224", "gmlp_ti16_224"])
def test_relatives_are_refused(architecture: str, tmp_path: Path) -> None:
    theirs = timm.create_model(architecture, img_size=32)
    save_for_hf(theirs, tmp_path, safe_serialization=True)
    with pytest.raises(CheckpointError, match=r"relative of MLP-Mixer with gated mixing|in no layout we know"):
        load_model(tmp_path)


def test_wrong_files_are_refused(pair: tuple[nn.Module, Mixer, Path], tmp_path: Path) -> None:
    _, _, folder = pair
    tensors, told = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())

    def read(tensors: dict[str, torch.Tensor], **model_args: Any) -> None:
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({**told, "model_args": {**told["model_args"], **model_args}}))
        load_model(tmp_path)

    with pytest.raises(CheckpointError, match=r"no blocks\.0\.mlp_channels\.fc2\.weight"):
        read({name: t for name, t in tensors.items() if name != "blocks.0.mlp_channels.fc2.weight"})
    with pytest.raises(CheckpointError, match="1 missing, 0 unexpected"):
        read({name: t for name, t in tensors.items() if name != "blocks.1.norm2.bias"})
    with pytest.raises(CheckpointError, match=r"not \(32, 16\)|0 missing, 0 unexpected, 1 misshaped"):
        read({**tensors, "blocks.1.mlp_tokens.fc1.weight": torch.zeros(3, 3)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"width": 8, "depth": 1},
            r"no Mixer of 1 blocks, 8 channels and patches of \(16, 16\), only the paper's: mixer_s32",
        ),
        ({"activation": "quick_gelu"}, "cannot state the activation quick_gelu"),
    ],
)
def test_what_timm_cannot_state_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = create_model("mixer_s16", 3, image_size=32, **options)
    with pytest.raises(UsageError, match=message):
        save_model(model, tmp_path / "refused", layout="timm")
    assert not (tmp_path / "refused").exists()


def flax_arrays(theirs: nn.Module) -> dict[str, np.ndarray]:
    """timm's weights under the names and in the order of axes of flax (vit_jax/models_mixer.py)."""
    named = {"stem/kernel": theirs.stem.proj.weight.permute(2, 3, 1, 0), "stem/bias": theirs.stem.proj.bias}

    def norm(name: str, layer: nn.LayerNorm) -> None:
        named.update({f"{name}/scale": layer.weight, f"{name}/bias": layer.bias})

    def dense(name: str, layer: nn.Linear) -> None:
        named.update({f"{name}/kernel": layer.weight.T, f"{name}/bias": layer.bias})

    for index, block in enumerate(theirs.blocks):
        norm(f"MixerBlock_{index}/LayerNorm_0", block.norm1)
        norm(f"MixerBlock_{index}/LayerNorm_1", block.norm2)
        for mixing, mlp in (("token_mixing", block.mlp_tokens), ("channel_mixing", block.mlp_channels)):
            dense(f"MixerBlock_{index}/{mixing}/Dense_0", mlp.fc1)
            dense(f"MixerBlock_{index}/{mixing}/Dense_1", mlp.fc2)
    norm("pre_head_layer_norm", theirs.norm)
    dense("head", theirs.head)
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


@torch.no_grad()
def test_the_authors_files(tmp_path: Path) -> None:
    theirs = randomised(_create_mixer("mixer_b16_224", act_layer=partial(nn.GELU, approximate="tanh"), **SMALL))
    np.savez(tmp_path / "Mixer-B_16.npz", **flax_arrays(theirs))
    ours = load_model(tmp_path / "Mixer-B_16.npz")
    assert isinstance(ours, Mixer)
    assert ours.config.image_size == (64, 64)
    assert ours.config.activation == "gelu_tanh"
    pixels = pictures(64, 64, 2)
    assert_same(ours(pixels).tokens, theirs.forward_features(pixels))
    assert_same(ours(pixels).logits, theirs(pixels))
    oblong = MixerConfig(image_size=(32, 128), width=32)
    assert load_model(tmp_path / "Mixer-B_16.npz", architecture=oblong).config.grid == (2, 8)
