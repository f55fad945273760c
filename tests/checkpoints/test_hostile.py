"""Files that are broken, or made to do harm: each is refused in a sentence, soon, and nothing of it runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.folders import change, json_of, refusal, state_of, vit_folder, write_state
from vitral.checkpoints.load import LAYOUTS, load_model
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, HubError, MismatchError, UnknownNameError, UsageError, VitralError
from vitral.models.catalogue import create_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return vit_folder(tmp_path / "vit")


class Late(BaseException):
    """Not an Exception, so that no `except` on the way takes it for an error of the file."""


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Interrupt what takes longer, before it fills the memory."""

    def give_up(*_: object) -> None:
        raise Late(f"not answered within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- weights -------------------------------------------------------------------------------------------------------


def header(content: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


BROKEN = {
    "empty": b"",
    "text": b"this is no checkpoint, it is a sentence",
    "a page of HTML": b"<!DOCTYPE html><html>404</html>" * 9,
    "a header longer than memory": struct.pack("<Q", 2**60) + b"{}",
    "a header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "a tensor beyond the end": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "overlapping tensors": header(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"\0" * 4
    ),
    "a shape that does not fit its bytes": header(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "a shape whose size overflows": header(
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "an unknown dtype": header({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "no tensors": header({}),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz", ".bin"])
def test_broken_files_are_refused(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(BROKEN[name])
    with within(10):
        message = refusal(path, CheckpointError)
    assert path.name in message


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_truncated_files_are_refused(folder: Path, keep: float, tmp_path: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(len(whole) * keep)])
    assert "not a readable safetensors file" in refusal(folder, CheckpointError)
    torch.save({"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}, tmp_path / "vit.pth")
    whole = (tmp_path / "vit.pth").read_bytes()
    (tmp_path / "vit.pth").write_bytes(whole[: int(len(whole) * keep)])
    assert "cannot be read as plain weights" in refusal(tmp_path / "vit.pth", CheckpointError)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_floating_point_numbers_are_refused(folder: Path, dtype: torch.dtype) -> None:
    state = state_of(folder)
    state["classifier.bias"] = torch.ones(5, dtype=dtype)
    write_state(folder, state)
    assert f"classifier.bias in {folder} holds {dtype}" in refusal(folder, CheckpointError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    state = state_of(folder)
    state["vit.layernorm.weight"][7] = value
    write_state(folder, state)
    assert "layernorm.weight" in refusal(folder, CheckpointError)
    assert "not finite" in refusal(folder, CheckpointError)


def test_large_finite_weights_whose_sum_overflows_are_read(folder: Path) -> None:
    state = state_of(folder)
    state["classifier.bias"] = torch.full((5,), 3e38)
    write_state(folder, state)
    assert (load_model(folder).head.bias == 3e38).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64", "F8_E4M3", "F8_E5M2"])
def test_floating_point_numbers_of_every_width_are_read(folder: Path, dtype: str) -> None:
    kinds = {"F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
    kinds |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
    state = state_of(folder)
    state["classifier.bias"] = torch.tensor([1.0, 2, 0.5, -4, 0]).to(kinds[dtype])
    write_state(folder, state)
    assert load_model(folder).head.bias.tolist() == [1, 2, 0.5, -4, 0]


def test_what_does_not_fit_is_listed_in_one_table(folder: Path) -> None:
    state = state_of(folder)
    del state["vit.layernorm.bias"]
    state["classifier.weight"] = torch.zeros(5, 33)
    state["vit.embeddings.cls_token"] = torch.zeros(32)
    state["an.intruder"] = torch.zeros(2, 3)
    write_state(folder, state)
    with pytest.raises(MismatchError) as caught:
        load_model(folder)
    assert caught.value.missing == (("layernorm.bias", (32,)),)
    assert caught.value.unexpected == (("an.intruder", (2, 3)),)
    assert set(caught.value.misshaped) == {
        ("classifier.weight", (5, 33), (5, 32)),
        ("embeddings.cls_token", (32,), (1, 1, 32)),
    }
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"The tensors of {folder} do not fit the model (1 missing, 1 unexpected, 2 misshaped).")
    rows = {tuple(line.split(maxsplit=2)[:2]) for line in lines[2:]}
    assert {("missing", "layernorm.bias"), ("unexpected", "an.intruder"), ("misshaped", "classifier.weight")} <= rows


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_that_hold_no_plain_numbers_are_refused(folder: Path, kind: str) -> None:
    state = state_of(folder)
    weight = state["classifier.weight"]
    state["classifier.weight"] = weight.to_sparse() if kind == "sparse" else weight.to("meta")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    refusal(folder, CheckpointError)


# ---- pickles -------------------------------------------------------------------------------------------------------


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["alone", "beside the weights"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(place: str, zipped: bool, tmp_path: Path) -> None:
    trace, path = tmp_path / "it ran", tmp_path / "pytorch_model.bin"
    weights = {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}
    content: Any = Malice(trace) if place == "alone" else {"model": weights, "args": Malice(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for source in (path, tmp_path):
        message = refusal(source, CheckpointError)
        assert "A pickle that needs code of its own is refused" in message
        assert "ask its publisher for safetensors" in message
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the pickle is malicious indeed"


def test_an_npz_with_a_pickle_inside_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    np.savez(tmp_path / "vit.npz", **{"embedding/kernel": np.array([Malice(trace)], dtype=object)})
    assert "plain arrays" in refusal(tmp_path / "vit.npz", CheckpointError)
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], "weights", 3, {"epoch": 3}, {}, None, torch.zeros(3)], ids=repr)
def test_a_pickle_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert "weights.pth" in refusal(tmp_path / "weights.pth", CheckpointError)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"model": state, "best": torch.tensor(0.5)},
        lambda state: {"ema": {"module": state, "updates": torch.tensor(7)}},
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {"ema": {}, "state_dict": state},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    ],
)
def test_what_training_scripts_wrap_weights_in(wrapped: Any, tmp_path: Path) -> None:
    model = create_model("vit_ti16", image_size=(32, 32), width=64, depth=1, heads=1, mlp_width=64, num_classes=3)
    save_model(model, tmp_path / "plain", layout="timm")
    state = load_file(tmp_path / "plain/model.safetensors")
    torch.save(wrapped(state), tmp_path / "vit.pth")
    read: Any = load_model(tmp_path / "vit.pth")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read.state_dict().items())


def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "weights.pth")
    with within(2):
        refusal(tmp_path / "weights.pth", CheckpointError)


# ---- places --------------------------------------------------------------------------------------------------------


def test_places_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refusal(tmp_path / "empty", CheckpointError)
    assert "looked for model.safetensors" in message
    assert "other weight files: none" in message
    message = refusal(tmp_path / "nowhere" / "at" / "all", CheckpointError)
    assert "no folder and no file" in message
    (tmp_path / "notes.txt").write_text("notes")
    assert "notes.txt is not a kind of weights file we know" in refusal(tmp_path / "notes.txt", CheckpointError)
    (tmp_path / "model.safetensors").mkdir()
    refusal(tmp_path, CheckpointError)
    refusal(tmp_path / "model.safetensors", CheckpointError)


def test_of_two_files_none_is_guessed(tmp_path: Path) -> None:
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    message = refusal(tmp_path, CheckpointError)
    assert "other weight files: a.pth, b.safetensors" in message
    assert "Give the path of the file itself." in message


def test_a_single_file_of_any_name_is_taken(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "my best.safetensors")
    assert load_model(folder).config.width == 32


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "{",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": "absent.safetensors"}}',
    ],
)
def test_a_malformed_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "index.json" in refusal(tmp_path, CheckpointError)


def test_an_index_cannot_name_files_elsewhere(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    for path in ("../outside.safetensors", str(outside)):
        index = {"weight_map": dict.fromkeys(("vit.layernorm.weight", "vit.layernorm.bias"), path)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "names files that are not there: outside.safetensors" in refusal(folder, CheckpointError)


# ---- configurations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["[]", "3", "{", "", "nul", '{"model_type": "vit"', "\ufeff{}"])
def test_a_config_that_is_no_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder, CheckpointError)


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"model_type": "v\xff\xfe"}')
    assert "config.json is not readable JSON" in refusal(folder, CheckpointError)


def test_json_nested_too_deeply_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)
    refusal(folder, CheckpointError)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "swoosh", "Unknown activation .*'swoosh'"),
        ("hidden_act", ["gelu"], "unexpected kind"),
        ("hidden_size", -32, "width must be from 1 to [0-9]+; -32 came"),
        ("hidden_size", True, "has True where a whole number belongs"),
        ("hidden_size", 0, "width must be from 1 to [0-9]+; 0 came"),
        ("hidden_size", "wide", "unexpected kind .*wide"),
        ("hidden_size", [32], "unexpected kind"),
        ("hidden_size", 1e400, "unexpected kind"),
        ("num_attention_heads", 5, "width 32 is not a multiple of heads 5"),
        ("num_attention_heads", 0, "heads must be from 1 to"),
        ("num_attention_heads", {}, "unexpected kind"),
        ("num_hidden_layers", -1, "depth must be from 1 to"),
        ("num_hidden_layers", "two", "unexpected kind"),
        ("intermediate_size", -48, "mlp_width must be from 1 to"),
        ("image_size", 0, "image_size must be from 1 to"),
        ("image_size", "big", "unexpected kind"),
        ("image_size", [32, 32, 32], "image_size|unexpected kind"),
        ("patch_size", 0, "unexpected kind|patch"),
        ("patch_size", [8], "unexpected kind|patch"),
        ("num_channels", 0, "channels must be from 1 to"),
        ("layer_norm_eps", "small", "unexpected kind"),
        ("layer_norm_eps", [1e-6], "unexpected kind"),
        ("id2label", {"a": "x", "b": "y", "c": "z", "d": "u", "e": "v"}, "id2label .* a key that is no number"),
        ("id2label", 5, "unexpected kind"),
    ],
    ids=repr,
)
def test_a_config_that_asks_for_the_impossible_is_refused(folder: Path, field: str, value: Any, message: str) -> None:
    change(folder, **{field: value})
    with within(10), pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("layer_norm_eps", float("nan")), ("layer_norm_eps", -1.0), ("hidden_size", 32.7)],
    ids=repr,
)
def test_numbers_of_the_wrong_kind_or_range_are_refused(folder: Path, field: str, value: Any) -> None:
    change(folder, **{field: value})
    refusal(folder, CheckpointError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 2**20),
        ("intermediate_size", 2**30),
        ("image_size", 2**20),
        ("num_channels", 2**20),
        ("num_hidden_layers", 50),
        ("hidden_size", 2**40),
        ("image_size", 2**62),
        ("num_hidden_layers", 10**9),
    ],
    ids=repr,
)
def test_a_config_that_asks_for_the_enormous_is_refused_soon(folder: Path, field: str, value: int) -> None:
    change(folder, **{field: value})
    with within(2):
        refusal(folder, CheckpointError)


@pytest.mark.parametrize("name", ["blocks.999999999.norm1.weight", "encoder.layers.encoder_layer_999999999.ln_1.weight"])
def test_a_tensors_name_cannot_ask_for_the_enormous(name: str, tmp_path: Path) -> None:
    state = {name: torch.zeros(64), "conv_proj.weight": torch.zeros(64, 3, 8, 8)}
    state |= {"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)} if name.startswith("blocks") else {}
    state |= {"encoder.pos_embedding": torch.zeros(1, 17, 64)} if name.startswith("encoder") else {}
    save_file(state, tmp_path / "vit.safetensors")
    with within(2):
        refusal(tmp_path / "vit.safetensors", CheckpointError)


@pytest.mark.parametrize("kind", ["resnext", "vitt", "", None, 3])
def test_an_unknown_model_type_is_refused(folder: Path, kind: Any) -> None:
    change(folder, model_type=kind)
    message = refusal(folder, CheckpointError)
    layouts = dict.fromkeys(layout.name for layout in LAYOUTS)
    assert f"in no layout we know ({', '.join(layouts)})" in message
    assert len(layouts) < len(LAYOUTS)  # each is named once
    assert repr(kind) in message


def test_a_model_type_that_is_no_name_is_refused(folder: Path) -> None:
    change(folder, model_type=["vit"])
    refusal(folder, CheckpointError)


def test_transformers_names_without_a_config_are_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json beside it. Put the config.json" in refusal(folder, CheckpointError)


def test_a_config_of_another_type_than_its_tensors_is_refused(folder: Path) -> None:
    change(folder, model_type="dinov2")
    message = refusal(folder, MismatchError)
    assert "missing" in message
    assert "unexpected" in message


@pytest.mark.parametrize(
    "content",
    [
        {"model_args": {"num_heads": 0}},
        {"model_args": {"num_heads": "three"}},
        {"model_args": {"num_heads": 7}},
        {"model_args": [1]},
        {"model_args": {"img_size": "large"}},
        {"model_args": {"act_layer": "swoosh"}},
        {"model_args": {"act_layer": {}}},
        {"model_args": {"global_pool": "best"}},
        {"model_args": {"scale_attn_norm": True}},
        {"global_pool": 7},
        {"pretrained_cfg": [1]},
        {"pretrained_cfg": {"crop_pct": -1, "input_size": [3, 32, 32]}},
        {"pretrained_cfg": {"crop_pct": "most", "input_size": [3, 32, 32]}},
        {"pretrained_cfg": {"crop_pct": 1e-320, "input_size": [3, 32, 32]}},
        {"pretrained_cfg": {"crop_mode": "fold", "input_size": [3, 32, 32]}},
        {"pretrained_cfg": {"interpolation": "guess", "input_size": [3, 32, 32]}},
        {"pretrained_cfg": {"mean": [0.5, 0.5], "input_size": [3, 32, 32]}},
        {"pretrained_cfg": {"std": [0, 0, 0], "input_size": [3, 32, 32]}},
        {"pretrained_cfg": {"std": ["a", "b", "c"], "input_size": [3, 32, 32]}},
        {"pretrained_cfg": {"input_size": [3]}},
        {"label_names": ["a", "b", "c", "d", "e"], "label_descriptions": ["x"]},
    ],
    ids=repr,
)
def test_a_config_of_timm_that_asks_for_the_impossible_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    model = create_model("vit_ti16", width=64, depth=1, heads=2, mlp_width=64, image_size=32, num_classes=5)
    save_model(model, tmp_path, layout="timm")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", **content}))
    refusal(tmp_path, CheckpointError)


@pytest.mark.parametrize(
    "content",
    [
        {"size": "large"},
        {"size": {"width": 3}},
        {"size": -3},
        {"size": [1, 2, 3]},
        {"size": {"height": "a", "width": 3}},
        {"resample": 17},
        {"resample": "best"},
        {"resample": []},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": "grey"},
        {"image_std": [0.0, 0.0, 0.0]},
        {"image_std": {}},
        {"rescale_factor": "much"},
        {"rescale_factor": -1},
        {"do_center_crop": True, "crop_size": 0},
    ],
    ids=repr,
)
def test_a_preprocessor_that_asks_for_the_impossible_is_refused(folder: Path, content: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    refusal(folder, CheckpointError)


# ---- our own layout ------------------------------------------------------------------------------------------------


@pytest.fixture
def native(tmp_path: Path) -> Path:
    model = create_model("vit_ti16", width=32, depth=1, heads=2, mlp_width=48, image_size=32, num_classes=5)
    return save_model(model, tmp_path / "native")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("config", "widht"), 3, r"Unknown entry of config in vitral.json 'widht'\. Did you mean 'width'"),
        (("record", "label"), [], "Unknown entry of record in vitral.json 'label'.*'labels'"),
        (("network",), "vitt", "Unknown network in vitral.json 'vitt'.*'vit'"),
        (("network",), [], "unexpected kind"),
        (("format",), 2, "vitral.json is of format 2; this version of Vitral reads 1. Update Vitral."),
        (("format",), None, "of format None"),
        (("config",), [], "config in vitral.json should be an object"),
        (("config",), None, "config in vitral.json should be an object"),
        (("record",), None, "unexpected kind"),
        (("config", "width"), "32", "config.width in vitral.json is '32'; expected int"),
        (("config", "width"), 32.0, "config.width in vitral.json is 32.0; expected int"),
        (("config", "width"), True, "config.width in vitral.json is True; expected int"),
        (("config", "class_token"), 1, "config.class_token in vitral.json is 1; expected bool"),
        (("config", "norm_eps"), "small", "config.norm_eps in vitral.json is 'small'; expected float"),
        (("config", "image_size"), [32], "config.image_size in vitral.json is"),
        (("config", "image_size"), [32, "32"], "config.image_size in vitral.json is '32'; expected int"),
        (("config", "pool"), "clas", "Unknown value of config.pool in vitral.json 'clas'.*'class'"),
        (("config", "pool"), [], "Unknown value of config.pool"),
        (("config", "heads"), 5, "width 32 is not a multiple of heads 5"),
        (("record", "labels"), [1, 2], "record.labels in vitral.json is 1; expected str"),
        (("record", "preprocessing"), {"crop": "all"}, "record.preprocessing.crop in vitral.json"),
        (("record", "preprocessing"), {"std": [0.0, 0.0, 0.0]}, "std"),
    ],
    ids=repr,
)
def test_a_vitral_json_with_a_wrong_entry_is_refused(native: Path, path: tuple[str, ...], value: Any, message: str) -> None:
    content = json_of(native, "vitral.json")
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (native / "vitral.json").write_text(json.dumps(content))
    with pytest.raises(VitralError, match=message):
        load_model(native)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 10**9),
        ("width", 2**40),
        ("width", 2**20),
        ("registers", 10**6),
    ],
    ids=repr,
)
def test_a_vitral_json_that_asks_for_the_enormous_is_refused_soon(native: Path, field: str, value: int) -> None:
    content = json_of(native, "vitral.json")
    content["config"][field] = value
    (native / "vitral.json").write_text(json.dumps(content))
    with within(2):
        refusal(native)


# ---- the Hub -------------------------------------------------------------------------------------------------------

OFFLINE = """
import time
from vitral.checkpoints.load import LAYOUTS, load_model
from vitral.errors import HubError
started = time.perf_counter()
try:
    load_model("nobody/has-this-one")
except HubError as error:
    print(f"{time.perf_counter() - started:.1f}", error)
"""


def test_offline_an_uncached_repository_is_refused_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    seconds, message = ran.stdout.split(" ", 1)
    assert float(seconds) < 5
    assert message.startswith(
        "There is no folder nobody/has-this-one here; as a name on the Hub, it is not in this machine's"
    )
    assert "HF_HUB_OFFLINE" in message


def test_a_hub_id_that_escapes_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("../../etc/passwd", "a/b/c", "https://example.org/model", "~nobody/x y"):
        assert "not the form of a Hub id" in refusal(name, CheckpointError)


@pytest.mark.parametrize("name", ["./modle", "../modle"])
def test_a_misspelt_relative_path_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(name, CheckpointError)


def test_errors_are_the_builtin_ones_too(folder: Path) -> None:
    assert issubclass(HubError, OSError)
    for kind in (CheckpointError, MismatchError, UnknownNameError, UsageError):
        assert issubclass(kind, ValueError)
    with pytest.raises(UsageError, match="num_classes must be 0 or more; -2 came"):
        load_model(folder, num_classes=-2)


@pytest.mark.parametrize("within", ["", "step-00000012"])
def test_what_a_training_leaves_is_answered_with_the_model_in_it(within: str, tmp_path: Path) -> None:
    """A run's folder holds no weights itself, and its checkpoints hold an optimiser beside them."""
    for folder in ("best", "step-00000012"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    (tmp_path / "run" / "recipe.json").write_text("{}")
    (tmp_path / "run" / "step-00000012" / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"of a training.*use .*best\."):
        load_model(tmp_path / "run" / within)
