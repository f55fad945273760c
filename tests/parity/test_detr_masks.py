"""DETR with masks beside transformers' and, in the names of the authors' repository, beside itself."""

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

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from tests.parity.test_detr import as_authors, unlike
from vitral.checkpoints.detr import transformers as page
from vitral.checkpoints.load import load_model
from vitral.checkpoints.preprocessing import detection
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError
from vitral.models.catalogue import CATALOGUE
from vitral.models.segmentation.detr_masks import MaskedDETR

SMALL: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "num_queries": 7,
    "id2label": {0: "N/A", 1: "person", 2: "cat", 3: "dog", 4: "sky"},
}
OWN: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
CASES: dict[str, dict[str, Any]] = {
    "timm's, dilated": {"use_timm_backbone": True, "backbone": "resnet18", "dilation": True},
    "transformers'": {"use_timm_backbone": False, "backbone_config": OWN},
}


class Case(NamedTuple):
    theirs: Any
    folder: Path
    by_timm: bool


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    options = dict(CASES[request.param])
    if "backbone_config" in options:
        options["backbone_config"] = hf.ResNetConfig(**OWN)
    theirs: Any = stirred(hf.DetrForSegmentation(hf.DetrConfig(**SMALL, **options)))  # type: ignore[arg-type]
    with torch.no_grad():  # what queries attend to is shared among many cells; here it matters all the same
        theirs.bbox_attention.q_proj.weight.mul_(4)
        theirs.mask_head.conv1.conv.weight[:, SMALL["d_model"] :].mul_(50)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return Case(theirs, folder, options["use_timm_backbone"])


def assert_same_answers(found: Any, expected: Any) -> None:
    assert_same(found.logits, expected.logits)
    assert_same(found.boxes, expected.pred_boxes)
    assert_same(found.masks, expected.pred_masks)


@torch.no_grad()
def test_answers_are_transformers(case: Case) -> None:
    ours = load_model(case.folder)
    assert isinstance(ours, MaskedDETR)
    assert ours.record.labels == tuple(SMALL["id2label"].values())
    pixels, mask = unlike()
    expected = case.theirs(pixels, pixel_mask=(~mask).long())
    found = ours(pixels, mask)
    assert_same_answers(found, expected)
    assert_same(found.queries, expected.last_hidden_state)
    assert (found.auxiliary, found.canvas) == ((), None)
    # Without the mask it is another answer, of the queries and of the maps that they attend to.
    assert (ours(pixels).logits - found.logits).abs().max() > 1e-3
    assert (ours(pixels).masks - found.masks).abs().max() > 1e-3
    assert_same_answers(ours(pixels), case.theirs(pixels))
    alone = pictures(61, 83, 2)
    assert_same_answers(ours(alone), case.theirs(alone))


def test_queries_a_few_at_a_time_are_all_at_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load_model(case.folder)
    pixels, mask = unlike()
    together = ours(pixels, mask).masks  # with something to learn from
    assert together.requires_grad
    with torch.no_grad():
        for many in (1, 2**15, 2**30):
            monkeypatch.setattr("vitral.models.segmentation.detr_masks._TOGETHER", many)
            assert_same(ours(pixels, mask).masks, together.detach(), 1e-5)


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
    ours.record = replace(ours.record, preprocessing=replace(detection(80, 133), resizer="torch"))
    save_model(ours, tmp_path, layout="transformers")
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["format"] == "coco_panoptic"
    again, report = hf.DetrForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels, mask = unlike()
    expected, found = (one(pixels, pixel_mask=(~mask).long()) for one in (case.theirs, again.eval()))
    assert_same(found.pred_masks, expected.pred_masks)
    back = load_model(tmp_path)
    assert back.config == replace(ours.config, image_size=(80, 133))
    assert back.record.preprocessing == ours.record.preprocessing


def test_a_published_network_is_written_as_published() -> None:
    entry = CATALOGUE["detr_r50_dc5_panoptic"]
    with torch.device("meta"):
        model = entry.build(entry.config)
        written: Any = page.LAYOUTS[1].compose(model)  # type: ignore[misc]
        theirs = hf.DetrForSegmentation(hf.DetrConfig.from_dict(written.documents["config.json"]))
    names = {one for row in written.rows for one in row.theirs}
    # As facebook/detr-resnet-50-panoptic names its tensors.
    published = {"detr.model.query_position_embeddings.weight", "detr.class_labels_classifier.weight"}
    published |= {"detr.model.backbone.conv_encoder.model.conv1.weight", "bbox_attention.k_linear.bias"}
    published |= {"mask_head.lay5.weight", "mask_head.gn5.weight", "mask_head.adapter3.bias", "mask_head.out_lay.weight"}
    assert published <= names
    sizes = [sum(tensor.numel() for tensor in one.state_dict().values()) for one in (model, theirs)]
    assert sizes[0] == sizes[1]
    assert len(names) == len(theirs.state_dict())


@torch.no_grad()
def test_the_authors_layout_is_read_as_a_segmenter(case: Case, tmp_path: Path) -> None:
    if not case.by_timm:
        pytest.skip("The authors' networks stand on torchvision's ResNet, whose names timm's has.")
    state: dict[str, Tensor] = {}
    theirs = case.theirs.state_dict()
    inner = {name.removeprefix("detr."): tensor for name, tensor in theirs.items() if name.startswith("detr.")}
    state |= {f"detr.{name}": tensor for name, tensor in as_authors(inner).items()}
    for name, tensor in theirs.items():
        if name.startswith("detr."):
            continue
        name = re.sub(r"bbox_attention\.(.)_proj", r"bbox_attention.\1_linear", name)
        name = re.sub(r"mask_head\.conv(\d)\.conv", r"mask_head.lay\1", name)
        name = re.sub(r"mask_head\.conv(\d)\.norm", r"mask_head.gn\1", name)
        name = name.replace("output_conv", "out_lay")
        for stage in range(3):
            name = name.replace(f"fpn_stages.{stage}.fpn_adapter", f"adapter{stage + 1}")
            name = name.replace(f"fpn_stages.{stage}.refine.conv", f"lay{stage + 3}")
            name = name.replace(f"fpn_stages.{stage}.refine.norm", f"gn{stage + 3}")
        state[name] = tensor
    path = tmp_path / "detr-r18-dc5-panoptic.pth"
    torch.save({"model": state}, path)
    ours = load_model(path)
    assert isinstance(ours, MaskedDETR)
    assert ours.config.backbone.dilated == 1
    assert ours.record.layout == "facebook"
    pixels, mask = unlike()
    assert_same_answers(ours(pixels, mask), case.theirs(pixels, pixel_mask=(~mask).long()))
    del state["mask_head.gn4.bias"]
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"mask_head\.gn4\.bias"):
        load_model(path)


def test_a_backbone_that_hands_on_one_map_is_refused(case: Case, tmp_path: Path) -> None:
    if case.by_timm:
        pytest.skip("timm's networks hand all maps on.")
    told = json.loads((case.folder / "config.json").read_text())
    told["backbone_config"]["out_features"] = ["stage4"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="out_features="):
        load_model(tmp_path)
