"""YOLOS beside transformers', and in the names of the authors' repository."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.models.detection.harness import filled_up
from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.files import Files
from vitral.checkpoints.load import load_model
from vitral.checkpoints.preprocessing import detection
from vitral.checkpoints.save import save_model
from vitral.checkpoints.yolos import hustvl
from vitral.errors import CheckpointError, UsageError
from vitral.models.catalogue import CATALOGUE
from vitral.models.detection.yolos import VARIANTS, YOLOS, YOLOSConfig

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": [48, 80],
    "num_detection_tokens": 6,
    "id2label": {0: "N/A", 1: "person", 2: "cat", 3: "dog"},
}


class Case(NamedTuple):
    theirs: Any
    folder: Path


@pytest.fixture(scope="module", params=[True, False], ids=["positions throughout", "positions once"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = hf.YolosConfig(**SMALL, use_mid_position_embeddings=request.param, qkv_bias=request.param)
    theirs: Any = stirred(hf.YolosForObjectDetection(config))  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return Case(theirs, folder)


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 80), (64, 64), (75, 130), (33, 47)], ids=str)
def test_answers_are_transformers(case: Case, size: tuple[int, int]) -> None:
    ours, pixels = load_model(case.folder), pictures(*size, 2)
    assert isinstance(ours, YOLOS)
    assert ours.record.labels == tuple(SMALL["id2label"].values())
    expected, found = case.theirs(pixels), ours(pixels)
    assert_same(found.logits, expected.logits)
    assert_same(found.boxes, expected.pred_boxes)
    assert_same(found.queries, expected.last_hidden_state[:, -6:])


@torch.no_grad()
def test_a_picture_that_was_filled_up_is_answered_as_transformers_answers_it_alone(case: Case) -> None:
    ours, sizes = load_model(case.folder), [(75, 99), (61, 130), (40, 33), (61, 130)]
    alone = [pictures(*size)[0] + place for place, size in enumerate(sizes)]
    pixels, mask = filled_up(alone, (80, 131))
    found = ours(pixels, mask)
    for place, picture in enumerate(alone):
        expected = case.theirs(picture[None])
        assert_same(found.logits[place], expected.logits[0])
        assert_same(found.boxes[place], expected.pred_boxes[0])


@torch.no_grad()
def test_names_in_memory_are_read_as_those_in_files(case: Case, tmp_path: Path) -> None:
    torch.save(case.theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((case.folder / "config.json").read_text())
    one, other = load_model(case.folder), load_model(tmp_path)
    assert one.config == other.config
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@torch.no_grad()
def test_what_we_write_is_read_by_transformers_and_by_us(case: Case, tmp_path: Path) -> None:
    ours = load_model(case.folder)
    ours.record = replace(ours.record, preprocessing=replace(detection(80, 133, multiple=16), resizer="torch"))
    save_model(ours, tmp_path, layout="transformers")
    again, pixels = hf.AutoModelForObjectDetection.from_pretrained(tmp_path).eval(), pictures(75, 130)
    assert_same(again(pixels).logits, case.theirs(pixels).logits)
    assert again.config.id2label == SMALL["id2label"]
    assert type(hf.AutoImageProcessor.from_pretrained(tmp_path)).__name__.startswith("YolosImageProcessor")
    back = load_model(tmp_path)
    assert back.config == ours.config
    assert back.record.preprocessing == ours.record.preprocessing
    assert back.record.labels == ours.record.labels


# transformers' names → those of the authors' repository.
AUTHORS = [
    (r"^vit\.", "backbone."),
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.detection_tokens", "det_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"encoder\.interpolation\.mid_position_embeddings", "mid_pos_embed"),
    (r"encoder\.layer", "blocks"),
    (r"attention\.attention\.query", "attn.qkv"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layernorm", "norm"),
    (r"class_labels_classifier", "class_embed"),
    (r"bbox_predictor", "bbox_embed"),
]


def as_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        whole = tensor
        if ".attention.query." in name:  # one matrix makes queries, keys and values
            whole = torch.cat([state[name.replace("query", part)] for part in ("query", "key", "value")])
        elif ".attention.key." in name or ".attention.value." in name:
            continue
        for pattern, replacement in AUTHORS:
            name = re.sub(pattern, replacement, name)
        found[name] = whole
    return found


@torch.no_grad()
def test_the_authors_layout_is_read(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "yolos.pth"
    torch.save({"model": as_authors(case.theirs.state_dict()), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="How many heads share 32 channels cannot be seen"):
        load_model(path)
    named = YOLOSConfig(image_size=(48, 80), width=32, depth=3, heads=4, mlp_width=48)
    ours, pixels = load_model(path, architecture=named), pictures(75, 130, 2)
    assert ours.config == replace(load_model(case.folder).config, norm_eps=1e-6)
    assert ours.record.layout == "hustvl"
    assert_same(ours(pixels).logits, case.theirs(pixels).logits)
    assert_same(ours(pixels).boxes, case.theirs(pixels).pred_boxes)
    with pytest.raises(CheckpointError, match="How 15 patches lie in rows and columns cannot be seen"):
        load_model(path, architecture=replace(named, image_size=(64, 64)))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_published_network_has_transformers_tensors_and_is_known_by_them(name: str) -> None:
    config = CATALOGUE[name].config
    sizes: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "image_size": config.image_size,
        "use_mid_position_embeddings": config.middle_positions,
    }
    with torch.device("meta"):
        theirs = hf.YolosForObjectDetection(hf.YolosConfig(**sizes, num_labels=91))
        ours = YOLOS(config)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    files = Files(source=f"{name}.pth", tensors=as_authors(theirs.state_dict()), kind="pickle")
    assert hustvl.LAYOUT.recognises(files)
    plan = hustvl.LAYOUT.plan(files, None)
    assert plan.config == config
    assert plan.record.architecture == name
    assert plan.record.labels[17] == "cat"
    prepared = plan.record.preprocessing
    assert prepared is not None
    assert (prepared.size[0], prepared.longest) == ((512, 853) if name == "yolos_ti" else (800, 1333))


def test_oblong_patches_and_files_without_heads_are_refused(case: Case, tmp_path: Path) -> None:
    oblong = YOLOSConfig(image_size=(48, 80), patch_size=(16, 8), width=32, depth=3, heads=4, mlp_width=48)
    with pytest.raises(UsageError, match=r"square patches, not \(16, 8\)"):
        save_model(YOLOS(oblong), tmp_path / "oblong", layout="transformers")
    case.theirs.vit.save_pretrained(tmp_path / "body")
    with pytest.raises(CheckpointError, match="without the layers that read classes and boxes"):
        load_model(tmp_path / "body")
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "num_detection_tokens": 7}))
    (tmp_path / "other" / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="detection_tokens"):
        load_model(tmp_path / "other")
