"""What a training starts from: fresh weights by a seed, or a checkpoint with another head and size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitral.base.image import read_picture
from vitral.checkpoints.save import save_model
from vitral.data.pictures import PictureSet
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import create_model
from vitral.tasks.classification.loss import Objective
from vitral.training.recipe import Recipe
from vitral.training.start import Teacher, model_for, teacher_for

NARROW = {"patch_size": (4, 4), "width": 16, "depth": 2, "heads": 2, "mlp_width": 32}
FRESH = Recipe(model="vit_ti16", network=NARROW, image_size=(8, 12), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Made for 16x16, five classes, pictures cut out of a margin."""
    model: Any = create_model("vit_ti16", num_classes=5, image_size=(16, 16), **NARROW)
    prepared = Preprocessing(resize="shortest_edge", size=(20, 20), crop=(16, 16), mean=(0.2,) * 3, std=(0.7,) * 3)
    model.record = replace(model.record, labels=tuple("abcde"), preprocessing=prepared)
    save_model(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_fresh_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(5)
    one, again = model_for(FRESH, ("x", "y")), model_for(FRESH, ("x", "y"))
    other = model_for(replace(FRESH, seed=1), ("x", "y"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(one.state_dict()["head.weight"], other.state_dict()["head.weight"])
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


def test_the_record_says_how_pictures_are_prepared_and_what_the_classes_are() -> None:
    model = model_for(FRESH, ("x", "y"))
    prepared = model.record.preprocessing
    assert prepared is not None
    assert (prepared.input_size, prepared.mean, prepared.std) == ((8, 12), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model.record.labels == ("x", "y")
    assert model.config.num_classes == 2
    assert model.training


def test_what_is_judged_is_cut_as_published() -> None:
    """DeiT's: the shorter side to 256, the middle 224 of it, bicubic."""
    recipe = replace(
        FRESH, image_size=(224, 224), network={**NARROW, "patch_size": (56, 56)}, filter="bicubic", crop_share=0.875
    )
    prepared = model_for(recipe, ("x",)).record.preprocessing
    assert prepared is not None
    assert (prepared.resize, prepared.size, prepared.crop) == ("shortest_edge", (256, 256), (224, 224))
    assert prepared.interpolation == "bicubic"


def test_xavier_has_the_deviation_of_its_paper() -> None:
    recipe = replace(FRESH, network={**NARROW, "width": 64, "mlp_width": 192}, initialisation="xavier")
    weight = model_for(recipe, ("x",)).state_dict()["blocks.0.mlp.up.weight"]
    assert weight.std().item() == pytest.approx((2 / (64 + 192)) ** 0.5, rel=0.05)
    assert weight.abs().max().item() <= (6 / (64 + 192)) ** 0.5


def test_a_checkpoint_keeps_its_body_and_gets_a_head(checkpoint: Path) -> None:
    model = model_for(Recipe(model=str(checkpoint)), ("x", "y", "z"))
    published: Any = model_for(Recipe(model=str(checkpoint)), tuple("abcde"))
    assert model.config.num_classes == 3
    assert torch.equal(model.state_dict()["blocks.1.mlp.up.weight"], published.state_dict()["blocks.1.mlp.up.weight"])
    assert model.record.preprocessing == published.record.preprocessing
    assert model.record.preprocessing.mean == (0.2,) * 3  # type: ignore[union-attr]


def test_a_checkpoint_at_another_size_answers_as_it_did_at_that_size(checkpoint: Path) -> None:
    plain = model_for(Recipe(model=str(checkpoint)), ("x", "y")).eval()
    larger = model_for(Recipe(model=str(checkpoint), image_size=(24, 32)), ("x", "y")).eval()
    pixels = torch.randn(2, 3, 24, 32)
    assert torch.allclose(plain(pixels).logits, larger(pixels).logits, atol=1e-5)
    prepared = larger.record.preprocessing
    assert prepared is not None
    assert (prepared.size, prepared.crop) == ((30, 40), (24, 32))


def test_stochastic_depth_can_be_put_into_a_checkpoint(checkpoint: Path) -> None:
    model: Any = model_for(Recipe(model=str(checkpoint), drop_path=0.3), ("x", "y"))
    assert model.config.drop_path == 0.3
    assert model.blocks[1].drop_path.probability == pytest.approx(0.3)


def test_what_holds_weights_cannot(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="do not fit a network with width changed"):
        model_for(Recipe(model=str(checkpoint), network={"width": 32}), ("x", "y"))


def test_a_misspelt_network_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'vit_s16'"):
        model_for(Recipe(model="vit_s_16"), ("x",))
    with pytest.raises(UnknownNameError, match="Did you mean 'depth'"):
        model_for(replace(FRESH, network={"deptj": 2}), ("x",))


# -- teachers -----------------------------------------------------------------------------------------------------------


def test_a_teacher_sees_the_picture_as_it_was_taught_to() -> None:
    own = Preprocessing(size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    pupils = Preprocessing(size=(8, 8), mean=(0.0, 0.1, 0.9), std=(1.0, 0.7, 0.5), scale=1 / 127.5)
    model = model_for(replace(FRESH, image_size=(8, 8)), ("x", "y", "z")).eval()
    teacher = Teacher(model, own, pupils).train()
    picture = read_picture(np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    with torch.no_grad():
        expected = model(own(picture)[0][None]).logits
    assert torch.allclose(teacher(pupils(picture)[0][None]), expected, atol=1e-5)
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_of_other_classes_is_refused(checkpoint: Path, colours: PictureSet) -> None:
    recipe = replace(FRESH, teacher=str(checkpoint), objective=Objective(distillation="hard"))
    with pytest.raises(UsageError, match=r"knows 5 classes \(a, b, c, d, e…\), the pictures show 3"):
        teacher_for(recipe, model_for(recipe, colours.classes), colours)
