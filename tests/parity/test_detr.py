"""DETR beside transformers' and, in the names of the authors' repository, beside itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.models.detection.harness import filled_up
from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.detr import facebook
from vitral.checkpoints.detr import transformers as page
from vitral.checkpoints.load import load_model
from vitral.checkpoints.preprocessing import detection
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.catalogue import CATALOGUE
from vitral.models.detection.detr import DETR, DETRConfig

SMALL: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 7,
    "id2label": {0: "N/A", 1: "person", 2: "cat", 3: "dog", 4: "N/A"},
}
OWN = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "out_features": ["stage2"]}


class Case(NamedTuple):
    theirs: Any
    folder: Path
    dilated: int


CASES: dict[str, dict[str, Any]] = {
    "timm's": {"use_timm_backbone": True, "backbone": "resnet18"},
    "timm's, dilated": {"use_timm_backbone": True, "backbone": "resnet18", "dilation": True},
    "transformers'": {"use_timm_backbone": False, "backbone_config": OWN},
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    options = dict(CASES[request.param])
    if "backbone_config" in options:
        options["backbone_config"] = hf.ResNetConfig(**OWN)
    theirs: Any = stirred(hf.DetrForObjectDetection(hf.DetrConfig(**SMALL, **options)))  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return Case(theirs, folder, int("dilation" in options))


def unlike(size: tuple[int, int] = (75, 130)) -> tuple[Tensor, Tensor]:
    """Three pictures of different, odd sizes, filled up."""
    sizes = [(75, 99), (61, 130), (40, 33)]
    return filled_up([pictures(*one)[0] for one in sizes], size)


@torch.no_grad()
def test_answers_are_transformers(case: Case) -> None:
    ours = load_model(case.folder)
    assert isinstance(ours, DETR)
    assert ours.config.backbone.dilated == case.dilated
    assert ours.record.labels == tuple(SMALL["id2label"].values())
    pixels, mask = unlike()
    expected = case.theirs(pixels, pixel_mask=(~mask).long(), output_hidden_states=True)
    found = ours(pixels, mask)
    assert found.scoring == "softmax"
    assert_same(found.logits, expected.logits)
    assert_same(found.boxes, expected.pred_boxes)
    assert_same(found.queries, expected.last_hidden_state)
    # Each picture as if the others were not there is another answer: the mask matters.
    assert (ours(pixels).logits - found.logits).abs().max() > 1e-2
    ours.train()
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    auxiliary = ours(pixels, mask).auxiliary
    assert len(auxiliary) == 2
    for one, hidden in zip(auxiliary, expected.decoder_hidden_states[1:-1], strict=True):
        queries = case.theirs.model.decoder.layernorm(hidden)
        assert_same(one.logits, case.theirs.class_labels_classifier(queries))
        assert_same(one.boxes, case.theirs.bbox_predictor(queries).sigmoid())


@torch.no_grad()
def test_without_a_mask_too(case: Case) -> None:
    ours, pixels = load_model(case.folder), pictures(61, 83, 2)
    expected, found = case.theirs(pixels), ours(pixels)
    assert_same(found.logits, expected.logits)
    assert_same(found.boxes, expected.pred_boxes)


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
    again = hf.AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    pixels, mask = unlike()
    expected, found = (one(pixels, pixel_mask=(~mask).long()) for one in (case.theirs, again))
    assert_same(found.logits, expected.logits)
    assert again.config.id2label == SMALL["id2label"]
    assert type(hf.AutoImageProcessor.from_pretrained(tmp_path)).__name__.startswith("DetrImageProcessor")
    back = load_model(tmp_path)
    assert back.config == replace(ours.config, image_size=(80, 133))
    assert back.record.preprocessing == ours.record.preprocessing
    assert back.record.labels == ours.record.labels


@pytest.mark.parametrize("name", ["detr_r50_dc5"])
def test_a_published_network_is_written_as_published(name: str) -> None:
    with torch.device("meta"):
        model = CATALOGUE[name].build(CATALOGUE[name].config)
        written = page.LAYOUTS[0].compose(model)  # type: ignore[misc]
        told = written.documents["config.json"]
        theirs = hf.DetrForObjectDetection(hf.DetrConfig.from_dict(told))
    assert (told["backbone"], told["dilation"]) == (f"resnet{name[6:].partition('_')[0]}", name.endswith("dc5"))
    names = {one: tuple(model.state_dict()[row.ours].shape) for row in written.rows for one in row.theirs}
    spelled = {published(one): tuple(tensor.shape) for one, tensor in theirs.state_dict().items()}
    names = {one: (*shape, 1, 1) if one == "model.input_projection.weight" else shape for one, shape in names.items()}
    assert names == spelled


def published(name: str) -> str:
    """The installed version's name in memory → that in facebook/detr-resnet-50's file."""
    name = name.replace("backbone.model.", "backbone.conv_encoder.model.").replace(".o_proj.", ".out_proj.")
    return re.sub(r"\.mlp\.(fc\d)", r".\1", name)


# The installed version's names in memory → those of the authors' repository.
AUTHORS = [
    (r"^model\.backbone\.model\.", "backbone.0.body."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
    (r"\.layernorm\.", ".norm."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.mlp\.fc(\d)\.", r".linear\1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
]


def as_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in AUTHORS:
            name = re.sub(pattern, replacement, name)
        last = "norm3" if ".decoder." in name else "norm2"
        name = name.replace("final_layer_norm", last)
        if third := re.fullmatch(r"(.+)\.([qkv])_proj\.(weight|bias)", name):  # one matrix makes all three
            fused = f"{third[1]}.in_proj_{third[3]}"
            found.setdefault(fused, torch.empty(3 * tensor.shape[0], *tensor.shape[1:]))
            found[fused].chunk(3)["qkv".index(third[2])].copy_(tensor)
        else:
            found[name] = tensor
    return found


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_authors_layout_is_read(case: Case, prefix: str, tmp_path: Path) -> None:
    if hasattr(case.theirs.config.backbone_config, "depths"):
        pytest.skip("The authors' networks stand on torchvision's ResNet, whose names timm's has.")
    state = {prefix + name: tensor for name, tensor in as_authors(case.theirs.state_dict()).items()}
    path = tmp_path / ("detr-r18-dc5.pth" if case.dilated else "detr-r18.pth")
    torch.save({"model": state}, path)
    guessed = load_model(path).config
    assert guessed.heads == 8  # of 4 channels each, as cannot be seen
    ours = load_model(path, architecture=replace(guessed, heads=4))
    assert ours.config.backbone.dilated == case.dilated
    assert ours.record.layout == "facebook"
    assert ours.record.preprocessing == detection(800, 1333)
    pixels, mask = unlike()
    expected, found = case.theirs(pixels, pixel_mask=(~mask).long()), ours(pixels, mask)
    assert_same(found.logits, expected.logits)
    assert_same(found.boxes, expected.pred_boxes)


def test_the_authors_classes_are_cocos_numbers() -> None:
    names = facebook.coco_numbers(91)
    assert (names[0], names[1], names[17], names[26], names[90]) == ("N/A", "person", "cat", "N/A", "toothbrush")
    assert sum(name != "N/A" for name in names) == 80
    assert facebook.coco_numbers(80) == ()
    panoptic = facebook.coco_numbers(250)
    assert panoptic[:91] == names
    assert (panoptic[92], panoptic[94], panoptic[149], panoptic[200], panoptic[249]) == (
        "banner",
        "N/A",
        "road",
        "rug-merged",
        "N/A",
    )
    assert (len(panoptic), sum(name != "N/A" for name in panoptic)) == (250, 133)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"activation_function": "gelu"}, "activation_function='gelu'; DETR was published with 'relu'"),
        ({"position_embedding_type": "learned"}, "position_embedding_type='learned'"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads=2"),
        ({"encoder_layers": 3}, r"encoder\.layers\.2"),
        ({"d_model": "wide"}, "a value of an unexpected kind"),
        ({"backbone_config": {"model_type": "swin"}}, "a DETR on a 'swin'"),
        ({"backbone_config": {**OWN, "model_type": "resnet", "out_features": ["stage1"]}}, "out_features="),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "tf_efficientnet"}}, "on timm's 'tf_efficientnet'"),
    ],
)
def test_files_of_another_network_are_refused(wrong: dict[str, Any], told: str, tmp_path: Path) -> None:
    theirs = hf.DetrForObjectDetection(
        hf.DetrConfig(**SMALL, use_timm_backbone=False, backbone_config=hf.ResNetConfig(**OWN))  # type: ignore[arg-type]
    )
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **wrong}))
    with pytest.raises(CheckpointError, match=told):
        load_model(tmp_path)


def test_what_transformers_cannot_state_is_refused(tmp_path: Path) -> None:
    base = DETRConfig(
        backbone=ResNetConfig(stem_width=8, stage_channels=(16, 32), depths=(1, 1), norm="frozen"),
        width=32,
        heads=4,
        mlp_width=48,
        encoder_depth=1,
        decoder_depth=1,
    )
    for changed, told in (
        ({"norm": "batch"}, "that learn"),
        ({"dilated": 1}, "neither timm nor"),
        ({"groups": 2}, "neither timm"),
    ):
        with pytest.raises(UsageError, match=told):
            save_model(DETR(replace(base, backbone=replace(base.backbone, **changed))), tmp_path, layout="transformers")
    with pytest.raises(UsageError, match="has no form in the layout of timm"):
        save_model(DETR(base), tmp_path, layout="timm")
