"""Saving: whole or not at all, into a directory that may hold other things."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.checkpoints.folders import json_of, state_of
from vitral.checkpoints import save
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.models.backbones.vit import ViT
from vitral.models.catalogue import create_model
from vitral.models.record import Record

LAYOUTS = ("vitral", "transformers", "timm")


def network(**overrides: Any) -> ViT:
    sizes = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "image_size": 32, "patch_size": 8, "num_classes": 5}
    return create_model("vit_ti16", **{**sizes, **overrides}).eval()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("failure", [OSError("No space left on device"), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_save_leaves_what_was_there(
    layout: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(network(), tmp_path, layout=layout)
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)

    def fail(state: object, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise failure

    monkeypatch.setattr(save, "save_file", fail)
    with pytest.raises(type(failure)):
        save_model(network(num_classes=9), tmp_path, layout=layout)
    assert contents(tmp_path) == before
    fresh = tmp_path / "fresh"
    with pytest.raises(type(failure)):
        save_model(network(), fresh, layout=layout)
    assert list(fresh.iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_save_replaces_its_own_files_and_leaves_others(layout: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_model(network(), tmp_path, layout=layout)
    assert save_model(network(num_classes=9), tmp_path, layout=layout) == tmp_path
    assert load_model(tmp_path).config.num_classes == 9
    documents = {"vitral": {"vitral.json"}, "timm": {"config.json"}}
    documents["transformers"] = {"config.json", "preprocessor_config.json"}
    assert set(contents(tmp_path)) == {"model.safetensors", "notes.txt", *documents[layout]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_is_saved_over_the_files_it_was_read_from(layout: str, tmp_path: Path) -> None:
    save_model(network(), tmp_path, layout=layout)
    model = load_model(tmp_path)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    save_model(model, tmp_path, layout=layout)
    for name, parameter in load_model(tmp_path).named_parameters():
        assert torch.equal(parameter, expected[name])
        assert torch.equal(model.get_parameter(name), expected[name]), "what is in memory is not touched"


@pytest.mark.parametrize(("first", "second"), [("vitral", "transformers"), ("vitral", "timm"), ("transformers", "vitral")])
def test_a_save_in_another_layout_is_what_is_read(first: str, second: str, tmp_path: Path) -> None:
    save_model(network(), tmp_path, layout=first)
    save_model(network(num_classes=9), tmp_path, layout=second)
    assert load_model(tmp_path).config.num_classes == 9
    assert not ((tmp_path / "vitral.json").exists() and (tmp_path / "config.json").exists())


@pytest.mark.parametrize("layout", ["vitral", "timm"])
def test_a_json_file_that_is_no_checkpoints_is_left(layout: str, tmp_path: Path) -> None:
    name = "config.json" if layout == "vitral" else "preprocessor_config.json"
    (tmp_path / name).write_text('{"port": 8080}')
    save_model(network(), tmp_path, layout=layout)
    assert (tmp_path / name).read_text() == '{"port": 8080}'


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_model(network(), tmp_path / "model")
    finally:
        os.umask(before)
    for path in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path.name


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"model\.pth is a file; a directory was expected"):
        save_model(network(), tmp_path / "model.pth")
    assert contents(tmp_path) == {"model.pth": b"mine"}


@pytest.mark.parametrize(("layout", "nearest"), [("transformer", "transformers"), ("google", None), ("onnx", None)])
def test_a_layout_that_is_not_written_is_refused(layout: str, nearest: str | None, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=f"Unknown layout to write '{layout}'") as caught:
        save_model(network(), tmp_path / "model", layout=layout)
    assert sorted(caught.value.known) == sorted([*LAYOUTS, "microsoft", "shi-labs", "torchvision"])
    assert nearest is None or caught.value.nearest == (nearest,)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("layout", "overrides", "message"),
    [
        ("transformers", {"registers": 2}, "nearest type is dinov2_with_registers, which has no pool='class'"),
        ("transformers", {"pool": "mean"}, "pool='mean'"),
        ("timm", {"position": "sinusoidal_2d"}, "timm's layout cannot state sinusoidal positions"),
        ("timm", {"norm_placement": "post"}, "timm's layout cannot state norms after the branches"),
        ("timm", {"representation": 8, "rotary": True}, "a representation layer before the classifier, rotary positions"),
    ],
    ids=repr,
)
def test_a_layout_that_cannot_state_the_model_writes_nothing(
    layout: str, overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        save_model(network(**overrides), tmp_path / "model", layout=layout)
    assert "Use layout='vitral'" in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_module_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"A Linear is not one of Vitral's models; build it with create_model"):
        save_model(nn.Linear(3, 3), tmp_path / "model")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_and_preprocessing_travel(layout: str, tmp_path: Path) -> None:
    model = network(image_size=64)
    preprocessing = Preprocessing(resize="shortest_edge", size=(72, 72), crop=(64, 64), interpolation="bicubic")
    model.record = Record(labels=("a", "b", "c", "d", "e"), preprocessing=preprocessing, licence="mit", source="elsewhere")
    record = load_model(save_model(model, tmp_path, layout=layout)).record
    assert record.labels == model.record.labels
    assert record.preprocessing is not None
    # Where an odd margin goes, transformers and timm each have one rule; this margin is even.
    for field in ("resize", "size", "crop", "interpolation", "mean", "std", "scale"):
        assert getattr(record.preprocessing, field) == getattr(preprocessing, field), field
    assert record.source == str(tmp_path)
    if layout != "transformers":
        assert record.licence == "mit"


def test_our_own_layout_loses_nothing(tmp_path: Path) -> None:
    model = network(drop_path=0.2, dropout=0.1, layer_scale=None, registers=1, patch_size=(8, 4))
    model.record = Record(
        architecture="vit_ti16",
        layout="timm",
        preprocessing=Preprocessing(resize="none", crop_rounding="round", interpolation="lanczos", scale=1.0),
        labels=("ä", "字", "c", "c", ""),
        problem="multi_label",
        licence="cc-by-4.0",
        notes=("one", "two"),
    )
    again = load_model(save_model(model, tmp_path))
    assert again.config == model.config
    assert again.record == Record(**{**vars(model.record), "source": str(tmp_path)})
    assert "字" in (tmp_path / "vitral.json").read_text(encoding="utf-8")
    assert json_of(tmp_path, "vitral.json")["format"] == 1


def test_half_precision_is_kept_in_the_file_and_read_in_single(tmp_path: Path) -> None:
    model = network().bfloat16()
    save_model(model, tmp_path)
    assert {tensor.dtype for tensor in state_of(tmp_path).values()} == {torch.bfloat16}
    again = load_model(tmp_path)
    for name, parameter in again.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, model.get_parameter(name).float())


@pytest.mark.parametrize("layout", ["transformers", "timm"])
def test_writing_leaves_the_model_as_it_was(layout: str, tmp_path: Path) -> None:
    options = {"registers": 2, "layer_scale": 1.0, "mask_token": False, "mlp_width": 128, "num_classes": 0}
    model = network(**options)
    config, state = model.config, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path, layout=layout)
    assert model.config == config
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_an_interrupted_exchange_puts_the_old_checkpoint_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(network(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(network(num_classes=9), tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_changed_by_hand_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = network()
    model.head = torch.nn.Linear(32, model.head.out_features + 1)
    with pytest.raises(UsageError, match=r"head\..* use model\.reset_head"):
        save_model(model, tmp_path / "new")
    model = network()
    with torch.no_grad():
        model.class_token[0, 0, 0] = float("nan")
    with pytest.raises(UsageError, match="class_token of the model holds numbers that are not finite"):
        save_model(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_loaded_model_does_not_hang_on_its_file(tmp_path: Path) -> None:
    save_model(network(), tmp_path)
    model = load_model(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
