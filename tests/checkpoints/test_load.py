"""Loading: labels, classifiers, notes, and what the model is like afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vitral
from tests.checkpoints.folders import state_of, vit_folder, write_state
from vitral.checkpoints.load import LAYOUTS, load_model
from vitral.checkpoints.save import save_model
from vitral.errors import UnknownNameError
from vitral.models.catalogue import create_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return vit_folder(tmp_path / "vit")


def test_a_loaded_model_is_ready_to_predict_and_to_be_trained(folder: Path) -> None:
    model = load_model(folder)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    model.train()(torch.randn(1, 3, 32, 32)).logits.sum().backward()
    with torch.no_grad():
        model.head.bias.add_(1)
    assert not torch.equal(load_model(folder).head.bias, model.head.bias), "the file is not written to"
    assert model.record.source == str(folder)
    assert model.record.layout == "transformers"


def test_the_front_door_leads_here() -> None:
    assert vitral.load_model is load_model
    assert vitral.save_model is save_model
    libraries, authors = (
        {"vitral", "transformers", "timm", "torchvision"},
        {"google", "shi-labs", "microsoft", "facebook", "whai362", "hustvl", "fundamentalvision", "lyuwenyu"}
        | {"nvlabs", "openmmlab", "rstrudel", "beckschen", "milesial"},
    )
    assert {layout.name for layout in LAYOUTS} == libraries | authors


def test_a_path_may_begin_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model("~/vit").config.num_classes == 5
    assert load_model("~/vit/model.safetensors").config.num_classes == 5


def test_a_fresh_classifier_for_other_classes(folder: Path) -> None:
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"LABEL_0"', '"cat"').replace('"LABEL_1"', '"dog"')
    )
    trained = load_model(folder)
    assert trained.record.labels[:2] == ("cat", "dog")
    kept = load_model(folder, num_classes=5)
    assert torch.equal(kept.head.weight, trained.head.weight)
    assert kept.record.labels == trained.record.labels
    fresh = load_model(folder, num_classes=3)
    assert fresh.head.weight.shape == (3, 32)
    assert fresh.record.labels == ()
    assert fresh.config.num_classes == 3
    assert torch.equal(fresh.norm.weight, trained.norm.weight)
    assert load_model(folder, num_classes=0).head is None
    for model in (fresh, kept):
        assert not model.training
        assert model(torch.randn(1, 3, 32, 32)).logits.isfinite().all()


def test_names_of_classes_may_be_a_list(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": ["ant", "bee", "cow", "dog", "eel"]}))
    assert load_model(folder).record.labels == ("ant", "bee", "cow", "dog", "eel")


def test_a_thousand_nameless_classes_are_imagenets_and_that_is_noted(tmp_path: Path) -> None:
    sizes = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 48, "image_size": 32, "patch_size": 8}
    save_model(create_model("vit_ti16", num_classes=1000, **sizes), tmp_path / "thousand", layout="timm")
    record = load_model(tmp_path / "thousand").record
    assert len(record.labels) == 1000
    # torchvision lists the same names in the same order.
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    same = sum(theirs in ours for ours, theirs in zip(record.labels, _IMAGENET_CATEGORIES, strict=True))
    assert same > 950
    assert any("ImageNet-1k's names are given" in note for note in record.notes)
    assert load_model(tmp_path / "thousand", num_classes=10).record.labels == ()
    save_model(create_model("vit_ti16", num_classes=1000, **sizes), tmp_path / "ours")
    assert load_model(tmp_path / "ours").record.labels == (), "who saved it here could have named them"


def test_an_unknown_architecture_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown architecture 'vit_b61'\. Did you mean"):
        load_model(folder, architecture="vit_b61")


def test_the_native_layout_is_preferred_where_there_are_two(folder: Path) -> None:
    sizes = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "image_size": 32, "patch_size": 8}
    model = create_model("vit_ti16", num_classes=5, **sizes)
    theirs = (folder / "config.json").read_bytes()
    save_model(model, folder)
    (folder / "config.json").write_bytes(theirs)
    assert load_model(folder).record.layout == "vitral"


def test_safetensors_are_preferred_to_pickles(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"broken")
    assert load_model(folder).config.width == 32


def test_the_weights_are_the_files(folder: Path) -> None:
    state = state_of(folder)
    state["vit.layernorm.weight"] = torch.arange(32.0)
    write_state(folder, state)
    assert torch.equal(load_model(folder).norm.weight, torch.arange(32.0))
