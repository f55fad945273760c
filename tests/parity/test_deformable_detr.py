"""Checkpoints of Deformable DETR: the same numbers as transformers, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.detection.harness import filled_up
from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.deformable_detr import transformers
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.catalogue import create_model
from vitral.models.detection.deformable_detr import DeformableDETR

SMALL: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_queries": 9,
    "two_stage_num_proposals": 9,
    "num_labels": 5,
    "dropout": 0.0,
    "encoder_n_points": 3,
    "decoder_n_points": 2,
}
BACKBONE: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 2, 1]}
LAST, THREE = ["stage4"], ["stage2", "stage3", "stage4"]

CASES: dict[str, dict[str, Any]] = {
    "four maps": {},
    "one map, basic blocks": {"num_feature_levels": 1, "backbone": {"layer_type": "basic"}},
    "six maps, refined, strides first": {
        "num_feature_levels": 6,
        "with_box_refine": True,
        "backbone": {"downsample_in_bottleneck": True},
    },
    "two stages": {"with_box_refine": True, "two_stage": True},
}


@dataclass
class Case:
    theirs: Any
    ours: DeformableDETR
    folder: Path


def load(source: Path, **options: Any) -> DeformableDETR:
    model = load_model(source, **options)
    assert isinstance(model, DeformableDETR)
    return model


def peer(**options: Any) -> Any:
    """transformers' network, every head of a refined one with weights of its own."""
    described = {**BACKBONE, **options.pop("backbone", {})}
    described["out_features"] = LAST if options.get("num_feature_levels") == 1 else THREE
    torch.manual_seed(0)
    config = hf.DeformableDetrConfig(
        **SMALL,
        backbone_config=hf.ResNetConfig(**described),
        tie_word_embeddings=not options.get("with_box_refine"),
        **options,
    )
    theirs = stirred(hf.DeformableDetrForObjectDetection(config))
    decoder = theirs.model.decoder
    if decoder.bbox_embed is not None:
        decoder.bbox_embed.load_state_dict(theirs.bbox_embed.state_dict())
    if decoder.class_embed is not None:
        decoder.class_embed.load_state_dict(theirs.class_embed.state_dict())
    return theirs


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    theirs, folder = peer(**CASES[request.param]), tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return Case(theirs, load(folder), folder)


def assert_same_output(ours: DeformableDETR, theirs: Any, pixels: Tensor, mask: Tensor | None = None) -> None:
    came = theirs(pixels, pixel_mask=None if mask is None else (~mask).long())
    found = ours(pixels, mask)
    assert_same(found.logits, came.logits)
    assert_same(found.boxes, came.pred_boxes)
    assert_same(found.queries, came.last_hidden_state)
    assert (found.proposals is None) == (came.enc_outputs_class is None)
    if found.proposals is not None:
        assert_same(found.proposals.logits, came.enc_outputs_class[..., :1])
        assert_same(found.proposals.boxes, came.enc_outputs_coord_logits.sigmoid())


@torch.no_grad()
def test_the_same_numbers(case: Case) -> None:
    for size in ((128, 96), (97, 131)):
        assert_same_output(case.ours, case.theirs, pictures(*size, count=2))


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 160), (101, 143)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_same_numbers_where_pictures_are_filled_up(case: Case, size: tuple[int, int]) -> None:
    sizes = [(size[0], size[1] // 2 + 3), (size[0] // 3, size[1]), (37, 50), size]
    pixels, mask = filled_up([pictures(*one)[0] for one in sizes], size)
    assert_same_output(case.ours, case.theirs, pixels, mask)


@torch.no_grad()
def test_every_block_of_the_decoder_says_the_same(case: Case) -> None:
    pixels = pictures(97, 131)
    came = case.theirs(pixels)
    found = case.ours.train()(pixels)  # without dropout
    case.ours.eval()
    assert len(found.auxiliary) == SMALL["decoder_layers"] - 1
    for place, one in enumerate(found.auxiliary):
        hidden = came.intermediate_hidden_states[:, place]
        assert_same(one.logits, case.theirs.class_embed[place](hidden))
        if case.ours.config.refine:
            assert_same(one.boxes, came.intermediate_reference_points[:, place])
        else:
            change = case.theirs.bbox_embed[place](hidden)
            change[..., :2] += came.init_reference_points.logit()
            assert_same(one.boxes, change.sigmoid())


def test_the_same_gradients(case: Case) -> None:
    pixels, found = pictures(97, 131), []
    for model, boxes in ((case.ours, "boxes"), (case.theirs, "pred_boxes")):
        given = pixels.clone().requires_grad_()
        out = model(given)
        (out.logits.square().sum() + 10 * getattr(out, boxes).square().sum()).backward()
        level = model.level_positions.weight if model is case.ours else model.model.level_embed
        found.append((given.grad, level.grad))
        model.zero_grad()
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours / scale, theirs / scale, atol=2e-3, rtol=0)


@torch.no_grad()
def test_what_we_write_is_read_by_transformers(case: Case, tmp_path: Path) -> None:
    save_model(case.ours, tmp_path, layout="transformers")
    theirs, report = hf.DeformableDetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = pictures(101, 90)
    assert_same(theirs.eval()(pixels).logits, case.theirs(pixels).logits, 1e-6)
    assert_same(theirs(pixels).pred_boxes, case.theirs(pixels).pred_boxes, 1e-6)


@torch.no_grad()
def test_what_we_write_is_read_by_us_bit_by_bit(case: Case, tmp_path: Path) -> None:
    again = load(save_model(case.ours, tmp_path, layout="transformers"))
    assert again.config == case.ours.config
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in case.ours.state_dict().items())


def test_files_with_the_names_in_memory_are_read(case: Case, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in case.theirs.state_dict().items()}
    assert "model.decoder.layers.0.self_attn.o_proj.weight" in state
    assert "model.decoder.layers.0.mlp.fc1.weight" in state
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((case.folder / "config.json").read_text())
    ours, before = load(tmp_path).state_dict(), case.ours.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in before.items())


def test_the_full_sizes_have_transformers_tensors() -> None:
    told: dict[str, dict[str, Any]] = {
        "deformable_detr_r50_dc5": {"num_feature_levels": 1, "dilation": True},
        "deformable_detr_r50_two_stage": {"with_box_refine": True, "two_stage": True},
    }
    compose = transformers.LAYOUT.compose
    assert compose is not None
    for name, options in told.items():
        with torch.device("meta"):
            theirs = hf.DeformableDetrForObjectDetection(hf.DeformableDetrConfig(num_labels=91, **options))
            ours = create_model(name)
        written = compose(ours)
        shapes = {
            _in_memory(name): part.shape
            for row in written.rows
            for name, part in zip(row.theirs, row.write(ours.state_dict()[row.ours]), strict=True)
        }
        expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
        assert shapes == {name: shape for name, shape in expected.items() if not name.endswith("num_batches_tracked")}
        described = hf.DeformableDetrConfig(**written.documents["config.json"])
        assert described.backbone_config.out_indices == theirs.config.backbone_config.out_indices
        assert described.backbone_config.output_stride == (16 if "dilation" in options else None)


def _in_memory(name: str) -> str:
    name = name.replace("backbone.conv_encoder", "backbone").replace("self_attn.out_proj", "self_attn.o_proj")
    return name.replace(".fc1.", ".mlp.fc1.").replace(".fc2.", ".mlp.fc2.")


@pytest.fixture(scope="module", params=[{}, {"num_feature_levels": 1, "dilation": True}], ids=["four maps", "dilated"])
def of_timm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A network whose backbone is timm's, as all published ones are."""
    torch.manual_seed(0)
    config = hf.DeformableDetrConfig(**SMALL, backbone="resnet18", **request.param)
    theirs, folder = stirred(hf.DeformableDetrForObjectDetection(config)), tmp_path_factory.mktemp("timm")
    theirs.save_pretrained(folder)
    return Case(theirs, load(folder), folder)


@torch.no_grad()
def test_backbones_of_timm(of_timm: Case, tmp_path: Path) -> None:
    assert of_timm.ours.config.backbone.dilated == of_timm.theirs.config.dilation
    assert_same_output(of_timm.ours, of_timm.theirs, pictures(97, 131, 2))
    save_model(of_timm.ours, tmp_path, layout="transformers")
    assert load(tmp_path).config == of_timm.ours.config
    theirs, report = hf.DeformableDetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = pictures(80, 70)
    assert_same(theirs.eval()(pixels).logits, of_timm.theirs(pixels).logits, 1e-6)
    # As files of before 2025 describe it.
    told = json.loads((of_timm.folder / "config.json").read_text())
    told |= {"backbone_config": None, "backbone": "resnet18", "use_timm_backbone": True}
    (of_timm.folder / "config.json").write_text(json.dumps(told))
    assert load(of_timm.folder).config == of_timm.ours.config


@torch.no_grad()
def test_classes_told_by_one_head_for_all_blocks(tmp_path: Path) -> None:
    """As transformers writes a refined network that it began itself."""
    theirs = peer(with_box_refine=True)
    for head in theirs.class_embed:
        head.load_state_dict(theirs.class_embed[0].state_dict())
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("class_embed.1", "class_embed.2"))}
    save_file(kept, tmp_path / "model.safetensors")
    assert_same_output(load(tmp_path), theirs, pictures(90, 70))


def test_labels_and_preparation_travel(tmp_path: Path) -> None:
    theirs = peer()
    theirs.config.id2label = {index: f"thing {index}" for index in range(5)}
    theirs.save_pretrained(tmp_path / "theirs")
    processor = hf.DeformableDetrImageProcessor(size={"shortest_edge": 480, "longest_edge": 800})
    processor.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert ours.record.labels == tuple(f"thing {index}" for index in range(5))
    prepared = ours.record.preprocessing
    assert prepared is not None
    assert (prepared.resize, min(prepared.size), prepared.longest) == ("shortest_edge", 480, 800)
    save_model(ours, tmp_path / "ours", layout="transformers")
    assert hf.DeformableDetrConfig.from_pretrained(tmp_path / "ours").id2label == theirs.config.id2label
    again = hf.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert dict(again.size) == dict(processor.size)


def test_files_that_are_no_such_network_are_refused(tmp_path: Path) -> None:
    peer().save_pretrained(tmp_path)
    told, state = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"decoder_attention_heads": 2}, "encoder and decoder are alike"),
        ({"activation_function": "gelu"}, "published with 'relu'"),
        ({"position_embedding_type": "learned"}, "published with 'sine'"),
        ({"num_feature_levels": 2}, "levels is 1, or 3 and more"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18", "output_stride": 8}}, "16 and 32"),
        ({"backbone_config": {**told["backbone_config"], "hidden_act": "gelu"}}, "another activation"),
    ]
    for wrong, why in wrongs:
        (tmp_path / "config.json").write_text(json.dumps({**told, **wrong}))
        with pytest.raises(CheckpointError, match=why):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(told))
    save_file({**state, "class_embed.2.bias": torch.ones(5)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"class_embed\.2\.bias and class_embed\.0\.bias .* are one layer, and differ"):
        load(tmp_path)
    save_file({name: tensor for name, tensor in state.items() if "_embed." not in name}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no heads"):
        load(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json beside it"):
        load(tmp_path)


def test_what_transformers_does_not_have_is_not_written(tmp_path: Path) -> None:
    small = ResNetConfig(stem_width=8, stage_channels=(16, 16, 32), depths=(1, 1, 1), norm="frozen")
    options: dict[str, Any] = {"width": 64, "mlp_width": 16, "encoder_depth": 1, "decoder_depth": 1, "num_classes": 3}
    for backbone, why in (
        (small, "has no 3 stages"),
        (replace(small, dilated=1), "has no dilated stages, 3 stages"),
        (replace(small, norm="batch"), "norms that stay as they are"),
    ):
        model = create_model("deformable_detr_r50", backbone=backbone, **options)
        with pytest.raises(UsageError, match=why):
            save_model(model, tmp_path / "refused", layout="transformers")
    assert not (tmp_path / "refused").exists()


# The authors' names as their code has them (models/deformable_transformer.py, ms_deform_attn.py), and transformers'.
AUTHORS = (
    ("model.backbone.model.", "backbone.0.body."),
    ("model.input_proj.", "input_proj."),
    ("model.query_position_embeddings.", "query_embed."),
    ("model.", "transformer."),
    (".mlp.fc1.", ".linear1."),
    (".mlp.fc2.", ".linear2."),
)
NORMS = {
    "encoder": {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"},
    "decoder": {"encoder_attn_layer_norm": "norm1", "self_attn_layer_norm": "norm2", "final_layer_norm": "norm3"},
}


def as_published(theirs: Any) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    state = theirs.state_dict()
    for name, tensor in state.items():
        spelled = name
        for one, other in AUTHORS:
            spelled = spelled.replace(one, other) if one.startswith(".") or spelled.startswith(one) else spelled
        for part, norms in NORMS.items():
            for one, other in norms.items():
                spelled = spelled.replace(one, other) if f".{part}." in spelled else spelled
        spelled = spelled.replace(".encoder_attn.", ".cross_attn.")
        if "self_attn.q_proj" in spelled:
            together = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            named[spelled.replace("q_proj.", "in_proj_")] = torch.cat(together)
        elif "self_attn.k_proj" not in spelled and "self_attn.v_proj" not in spelled:
            named[spelled.replace("self_attn.o_proj", "self_attn.out_proj")] = tensor
    return named


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"dilation": True, "num_feature_levels": 1}, {"with_box_refine": True, "two_stage": True}], ids=str
)
def test_the_authors_files_are_read(options: dict[str, Any], tmp_path: Path) -> None:
    config = hf.DeformableDetrConfig(**{**SMALL, "encoder_attention_heads": 8, "decoder_attention_heads": 8}, **options,
        backbone="resnet18", tie_word_embeddings=not options.get("with_box_refine"))  # fmt: skip
    theirs: Any = stirred(hf.DeformableDetrForObjectDetection(config))
    for heads in ("bbox_embed", "class_embed"):
        if getattr(theirs.model.decoder, heads) is not None:
            getattr(theirs.model.decoder, heads).load_state_dict(getattr(theirs, heads).state_dict())
    path = tmp_path / ("r50_dc5.pth" if options.get("dilation") else "r50.pth")
    torch.save({"model": as_published(theirs), "epoch": 49}, path)
    named = (
        create_model("deformable_detr_r50", queries=9, dropout=0.0, **_sizes(64)).config
        if options.get("two_stage")
        else None
    )
    ours = load(path, architecture=named)
    assert ours.record.layout == "fundamentalvision"
    assert (ours.config.encoder_points, ours.config.decoder_points) == (3, 2)
    assert len(ours.record.notes) == (0 if named else 1)
    assert_same_output(ours, theirs, pictures(97, 131, 2))


def _sizes(width: int) -> dict[str, Any]:
    return {"width": width, "mlp_width": 24, "encoder_depth": 1, "decoder_depth": 1}
