"""State dictionaries of the authors' repository: the same numbers, read strictly, written back bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints.folders import change, json_of, refusal, state_of
from tests.parity.compact import answer, random_state
from tests.parity.peers import assert_same, bits, pictures
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, MismatchError, UsageError
from vitral.layers.position import sinusoids_1d
from vitral.models.backbones.cct import CCT, CCTConfig
from vitral.models.catalogue import CATALOGUE, create_model

TINY = {"width": 128, "depth": 2, "mlp": 96, "classes": 7}


def saved(path: Path, **options: Any) -> Path:
    torch.save(random_state(**{**TINY, **options}), path)
    return path


KINDS: dict[str, tuple[dict[str, Any], tuple[int, int], int]] = {
    "two convolutions of 3 × 3": ({"tokens": 64}, (32, 32), 1),
    "one convolution of 3 × 3": ({"tokens": 64, "convolutions": ()}, (16, 16), 1),
    "two convolutions of 7 × 7": ({"tokens": 16, "kernel": 7}, (64, 64), 2),
    "three, of other channels": ({"tokens": 16, "convolutions": (6, 10)}, (32, 32), 1),
    "patches": ({"tokens": 64, "convolutions": (), "kernel": 4, "patches": True}, (32, 32), 1),
    "no positions": ({"tokens": 0, "position": False}, (30, 45), 1),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers(kind: str, tmp_path: Path) -> None:
    options, size, stride = KINDS[kind]
    model = load_model(saved(tmp_path / "cct.pth", **options))
    pixels = pictures(*size, count=3)
    expected = answer(random_state(**{**TINY, **options}), pixels, heads=2, stride=stride)
    assert_same(model(pixels).logits, expected.float(), 1e-5)
    assert_same(model(pixels[:1]).logits, expected[:1].float(), 1e-5)
    assert_same(model.double()(pixels.double()).logits, expected, 1e-10)
    assert model.record.layout == "shi-labs"


@torch.no_grad()
def test_an_oblong_picture_is_named_by_its_configuration(tmp_path: Path) -> None:
    path = saved(tmp_path / "cct.pth", tokens=60)
    assert "60 positions, which make no square" in refusal(path, CheckpointError)
    named = CCTConfig(width=128, heads=4, image_size=(24, 40), drop_path=0.3)
    model = load_model(path, architecture=named)
    pixels = pictures(24, 40, count=2)
    expected = answer(random_state(**TINY, tokens=60), pixels, heads=4)
    assert_same(model(pixels).logits, expected.float(), 1e-5)
    assert model.config == replace(named, depth=2, mlp_width=96, num_classes=7)


@pytest.mark.parametrize(
    "name", ["cct_2_3x2_32", "cct_4_3x3_32", "cct_6_3x1_32", "cct_7_7x2_224", "cct_14_7x2_384", "cvt_4_4_32"]
)
def test_published_networks_are_recognised_by_their_shapes(name: str, tmp_path: Path) -> None:
    config = CATALOGUE[name].config
    patches = config.tokens == "patches"
    state = random_state(
        width=config.width,
        depth=config.depth,
        mlp=config.mlp_width,
        tokens=config.grid[0] * config.grid[1],
        classes=config.num_classes,
        convolutions=config.conv_channels,
        kernel=config.kernel,
        patches=patches,
    )
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "cct.pth")
    model = load_model(tmp_path / "cct.pth")
    assert isinstance(model, CCT)
    assert model.config == config
    assert model.record.architecture == name
    assert model.record.preprocessing.input_size == config.image_size
    assert (len(model.record.labels) == 1000) == (config.num_classes == 1000)


@pytest.mark.parametrize("position", ["learned", "sinusoidal_1d", "none"])
@pytest.mark.parametrize("name", ["cct_7_3x2_32", "cvt_2_4_32"])
def test_what_is_written_is_read_again_to_the_bit(position: str, name: str, tmp_path: Path) -> None:
    model = create_model(name, depth=2, position=position).eval()
    model.record = replace(model.record, labels=tuple("abcdefghij"))
    save_model(model, tmp_path / "theirs", layout="shi-labs")
    again = load_model(tmp_path / "theirs")
    assert again.config == model.config
    assert again.record.labels == model.record.labels
    assert again.record.preprocessing.mean == model.record.preprocessing.mean
    assert again.record.preprocessing.input_size == (32, 32)
    assert bits(again).keys() == bits(model).keys()
    assert all(torch.equal(tensor, bits(again)[parameter]) for parameter, tensor in bits(model).items())
    # Their classes keep the positions, sinusoids too, in the state dictionary.
    written = state_of(tmp_path / "theirs")
    assert ("classifier.positional_emb" in written) == (position != "none")
    if position == "sinusoidal_1d":
        assert torch.equal(written["classifier.positional_emb"][0], sinusoids_1d(64, model.config.width))
        assert model.position_table is None
    shapes = random_state(
        width=model.config.width,
        depth=2,
        mlp=model.config.mlp_width,
        tokens=64,
        classes=10,
        convolutions=model.config.conv_channels,
        kernel=model.config.kernel,
        patches=name.startswith("cvt"),
        position=position != "none",
    )
    assert {key: tensor.shape for key, tensor in written.items()} == {key: tensor.shape for key, tensor in shapes.items()}
    with torch.no_grad():
        pixels = pictures(32, 32)
        assert_same(model(pixels).logits, answer(written, pixels, heads=model.config.heads).float(), 1e-5)
    assert json_of(tmp_path / "theirs")["num_heads"] == model.config.heads


def test_our_own_layout_keeps_a_compact_transformer_to_the_bit(tmp_path: Path) -> None:
    model = create_model("cct_4_3x3_32", num_classes=3, image_size=(40, 24), heads=2, dropout=0.1, depth=1).eval()
    again = load_model(save_model(model, tmp_path / "ours"))
    assert isinstance(again, CCT)
    assert again.config == model.config
    assert again.record.architecture == "cct_4_3x3_32"
    assert all(torch.equal(tensor, bits(again)[name]) for name, tensor in bits(model).items())


def test_heads_that_cannot_be_seen_are_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "cct.pth", width=96, tokens=64)
    assert "The number of attention heads cannot be seen from a state dictionary of width 96" in refusal(path)
    assert load_model(path, architecture=CCTConfig(width=96, heads=3)).config.heads == 3
    guessed = load_model(saved(tmp_path / "wide.pth", width=320, tokens=64, depth=1))
    assert guessed.config.heads == 5
    assert "5 heads were assumed; the file does not say." in guessed.record.notes


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "cct.pth", tokens=64)
    message = refusal(path, CheckpointError, architecture="vit_ti16")
    assert message == "The files hold a CCTConfig; the architecture named is a ViTConfig."
    message = refusal(path, CheckpointError, architecture="cct_7_7x2_224")
    assert "The file's tokenizer has 2 convolutions of 3 × 3, those of the named architecture are 2 of 7 × 7" in message
    assert "128 channels, those of the named architecture 256" in refusal(path, CheckpointError, architecture="cct_7_3x2_32")
    assert load_model(path, architecture="cct_2_3x2_32").config.mlp_width == 96


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshaped"])
def test_tensors_that_do_not_fit_are_refused(change: str, tmp_path: Path) -> None:
    state = random_state(**TINY, tokens=64)
    norm = state.pop("classifier.blocks.1.norm1.bias") if change == "missing" else state["classifier.blocks.1.norm1.bias"]
    if change == "unexpected":
        state["classifier.blocks.1.norm3.bias"] = norm
    if change == "misshaped":
        state["classifier.blocks.1.norm1.bias"] = norm[1:]
    torch.save(state, tmp_path / "cct.pth")
    message = refusal(tmp_path / "cct.pth", MismatchError)
    counts = {kind: int(kind == change) for kind in ("missing", "unexpected", "misshaped")}
    assert "({missing} missing, {unexpected} unexpected, {misshaped} misshaped)".format(**counts) in message


def test_a_network_that_reads_a_class_token_is_refused(tmp_path: Path) -> None:
    state = random_state(**TINY, tokens=65)
    state["classifier.class_emb"] = torch.zeros(1, 1, 128)
    torch.save(state, tmp_path / "vit_lite.pth")
    assert "reads a class token, as ViT-Lite does" in refusal(tmp_path / "vit_lite.pth", CheckpointError)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_classes": 0}, "cannot state a network without classes"),
        ({"image_size": (32, 48)}, r"cannot state pictures of \(32, 48\), which are no squares"),
        ({"conv_channels": (48, 96)}, r"cannot state convolutions of \(48, 96\) channels"),
    ],
    ids=str,
)
def test_what_their_classes_have_no_argument_for_is_not_written(
    overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        save_model(create_model("cct_2_3x2_32", **overrides), tmp_path / "model", layout="shi-labs")
    with pytest.raises(UsageError, match=r"A CCT has no form in the layout of timm\. Use layout='vitral'"):
        save_model(create_model("cct_2_3x2_32"), tmp_path / "model", layout="timm")
    assert not (tmp_path / "model").exists()


def test_whatever_tensor_is_spoilt_the_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    state, path = random_state(width=64, depth=1, mlp=32, tokens=64, classes=3, convolutions=(8,)), tmp_path / "cct.pth"
    torch.save(state, path)
    assert load_model(path).config.heads == 1
    for name, tensor in state.items():
        for spoilt in (None, tensor.flatten()[:-1], torch.tensor(1.0)):
            changed = {**state, name: spoilt}
            if spoilt is None:
                del changed[name]
            torch.save(changed, path)
            if spoilt is None and name == "classifier.positional_emb":
                assert load_model(path).config.position == "none"
            else:
                refusal(path, CheckpointError)


@pytest.mark.parametrize(
    "values",
    [
        {"num_heads": 5},
        {"num_heads": "two"},
        {"stride": 0},
        {"img_size": None},
        {"img_size": 10**9},
        {"label_names": 7},
        {"pretrained_cfg": {"mean": "grey"}},
    ],
    ids=str,
)
def test_a_config_beside_it_that_cannot_be_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    save_model(create_model("cct_2_3x2_32"), tmp_path, layout="shi-labs")
    change(tmp_path, **values)
    refusal(tmp_path)
