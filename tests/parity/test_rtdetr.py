"""RT-DETR and RT-DETRv2 against transformers: the same boxes, the same training, there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrV2Config, RTDetrV2ForObjectDetection

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.base.boxes import Objects
from vitral.base.image import read_picture
from vitral.checkpoints.files import Files
from vitral.checkpoints.load import load_model
from vitral.checkpoints.rtdetr import lyuwenyu
from vitral.checkpoints.rtdetr.transformers import LAYOUT, architecture_of, rows
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import VARIANTS, ResNet
from vitral.models.catalogue import CATALOGUE
from vitral.models.detection.rtdetr import RTDETR

BASIC = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1]}
DEEP = {"layer_type": "bottleneck", "embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}
SMALL: dict[str, Any] = {
    "encoder_hidden_dim": 32,
    "d_model": 32,
    "decoder_in_channels": [32] * 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "num_queries": 12,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_labels": 5,
    "num_denoising": 10,
}
WIDER = {"encoder_hidden_dim": 48, "decoder_in_channels": [48] * 3, "decoder_layers": 3, "decoder_attention_heads": 2}
KINDS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "basic, half as wide inside": (1, BASIC, {"hidden_expansion": 0.5}),
    "bottleneck, norms that learn, no noise": (1, DEEP, {"freeze_backbone_batch_norms": False, "num_denoising": 0}),
    "an encoder of another width": (1, BASIC, WIDER),
    "v2": (2, BASIC, {"decoder_n_points": 3, "decoder_offset_scale": 0.4}),
    "v2, discrete": (2, DEEP, {"decoder_method": "discrete"}),
}


def peer(kind: str, seed: int = 0) -> Any:
    """transformers' network with weights and statistics that all matter, and no two cells alike."""
    version, backbone, options = KINDS[kind]
    config, build = [(RTDetrConfig, RTDetrForObjectDetection), (RTDetrV2Config, RTDetrV2ForObjectDetection)][version - 1]
    told = {**SMALL, "encoder_in_channels": backbone["hidden_sizes"][1:], **options}
    inner = transformers.RTDetrResNetConfig(out_indices=[2, 3, 4], **backbone)
    network = build(config(backbone_config=inner, attn_implementation="eager", **told))
    generator = torch.Generator().manual_seed(seed)
    stirred(network, seed)
    with torch.no_grad():
        for name, buffer in network.named_buffers():  # of frozen norms
            if name.endswith(("normalization.weight", "normalization.bias")):
                buffer.normal_(0.5, 0.3, generator=generator)
    return network


def publish(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    theirs = peer(kind)
    ours = load_model(publish(theirs, tmp_path / "theirs"))
    assert isinstance(ours, RTDETR)
    pixels = pictures(64, 96, 2)
    expected, out = theirs.model(pixels), ours(pixels)
    assert_same(out.logits, expected.intermediate_logits[:, -1])
    assert_same(out.boxes, expected.intermediate_reference_points[:, -1])
    assert_same(out.queries, expected.last_hidden_state)
    assert_same(out.proposals.logits, expected.enc_topk_logits)
    assert_same(out.proposals.boxes, expected.enc_topk_bboxes)
    assert out.logits.std() > 0.1
    assert out.boxes.std(1).min() > 1e-3  # each number of a box tells something
    assert ours.record.layout == "transformers"
    assert ours.record.architecture == ("rtdetr", "rtdetrv2")[KINDS[kind][0] - 1]
    save_model(ours, tmp_path / "back", layout="transformers")
    back, told = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    again = load_model(tmp_path / "back")
    assert again.config == ours.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


@torch.no_grad()
def test_what_transformers_writes_itself_is_what_we_write(tmp_path: Path) -> None:
    theirs = peer("v2")
    save_model(load_model(publish(theirs, tmp_path / "theirs")), tmp_path / "ours", layout="transformers")
    written, expected = (load_file(tmp_path / part / "model.safetensors") for part in ("ours", "theirs"))
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["basic, half as wide inside", "v2"])
def test_heads_are_found_wherever_a_file_has_them(kind: str, tmp_path: Path) -> None:
    """Files on the Hub name the decoder's heads once before the model, once in it, or twice."""
    theirs = peer(kind)
    publish(theirs, tmp_path)
    state, config = load_file(tmp_path / "model.safetensors"), theirs.config.to_dict()
    heads = {
        name: tensor for name, tensor in state.items() if name.startswith(("model.decoder.class", "model.decoder.bbox"))
    }
    assert len(heads) == 2 * (2 + 6)
    copies = {name.removeprefix("model.decoder."): tensor.clone() for name, tensor in heads.items()}
    rest = {name: tensor for name, tensor in state.items() if name not in heads}
    expected = {name for name in state if not name.endswith("n_points_scale")}
    # So they are within transformers 5, whose networks' own names are read as well.
    inner = {name: tensor for name, tensor in theirs.state_dict().items() if name in heads or name not in copies}
    for named in (state, {**rest, **copies}, {**state, **copies}, inner):
        files = Files(source="folder", tensors=named, kind="safetensors", config=config)
        assert LAYOUT.recognises(files)
        plan = LAYOUT.plan(files, None)
        assert set(plan.tensors) == expected
        assert {told for row in plan.rows for told in row.theirs} == expected
        assert all(torch.equal(plan.tensors[name], state[name]) for name in expected)


def test_in_training_all_layers_and_the_noise_are_theirs(tmp_path: Path) -> None:
    theirs = peer("basic, half as wide inside")
    ours = load_model(publish(theirs, tmp_path / "theirs"))
    targets = objects(3)
    labels = [{"class_labels": one.labels, "boxes": one.boxes} for one in targets]
    pixels = pictures(64, 64, 3)
    theirs.train()
    torch.manual_seed(3)
    expected = theirs.model(pixels, labels=labels)
    torch.manual_seed(3)
    out = ours.train()(pixels, targets=targets)
    told = expected.denoising_meta_values
    noisy = told["dn_num_split"][0]
    layers = [*out.auxiliary, out]
    for place, one in enumerate(layers):
        assert_same(one.logits, expected.intermediate_logits[:, place, noisy:])
        assert_same(one.boxes, expected.intermediate_reference_points[:, place, noisy:])
        assert_same(out.denoising.layers[place].logits, expected.intermediate_logits[:, place, :noisy])
        assert_same(out.denoising.layers[place].boxes, expected.intermediate_reference_points[:, place, :noisy])
    assert out.denoising.groups == told["dn_num_group"]
    for near, expected_near in zip(out.denoising.rows, told["dn_positive_idx"], strict=True):
        assert torch.equal(near, expected_near)


def objects(count: int) -> tuple[Objects, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        Objects(torch.randint(5, (many,), generator=generator), 0.2 + 0.3 * torch.rand(many, 4, generator=generator))
        for many in (2, 0, 3)[:count]
    )


@pytest.mark.parametrize(("name", "version"), [("r18", 1), ("r50", 1), ("r101", 2)])
def test_published_configurations_are_those_of_the_catalogue(name: str, version: int) -> None:
    """As config.json on the Hub states them; a network is built from ours by transformers with the same tensors."""
    catalogued = f"rtdetr{'v2' * (version == 2)}_{name}"
    with torch.device("meta"):
        ours = CATALOGUE[catalogued].build(CATALOGUE[catalogued].config)
    ours.record = replace(ours.record, architecture=catalogued)
    assert architecture_of(ours.config, version) == catalogued
    described = LAYOUT.compose(ours).documents["config.json"]
    assert described["model_type"] == ("rt_detr", "rt_detr_v2")[version - 1]
    config = (RTDetrConfig, RTDetrV2Config)[version - 1](**{k: v for k, v in described.items() if k != "model_type"})
    with torch.device("meta"):
        theirs = (RTDetrForObjectDetection, RTDetrV2ForObjectDetection)[version - 1](config)
    assert sum(one.numel() for one in theirs.parameters()) == sum(one.numel() for one in ours.parameters())
    assert len({name for row in rows(ours.config) for name in row.theirs}) == len(ours.state_dict())


@torch.no_grad()
def test_blocks_that_only_training_uses_are_not_written(tmp_path: Path) -> None:
    ours = load_model(publish(peer("an encoder of another width"), tmp_path / "theirs"))
    ours.config = replace(ours.config, evaluated_depth=1)
    pixels = pictures(64, 64)
    save_model(ours, tmp_path / "back", layout="transformers")
    back = RTDetrForObjectDetection.from_pretrained(tmp_path / "back").eval()
    assert len(back.model.decoder.layers) == 1
    assert_same(ours(pixels).boxes, back(pixels).pred_boxes)


def test_pictures_are_prepared_as_published(tmp_path: Path) -> None:
    folder = publish(peer("basic, half as wide inside"), tmp_path / "theirs")
    processor = transformers.RTDetrImageProcessor(size={"height": 96, "width": 64})
    processor.save_pretrained(folder)
    ours = load_model(folder)
    prepared = ours.record.preprocessing
    assert (prepared.resize, prepared.size, prepared.crop, prepared.interpolation) == ("exact", (96, 64), None, "bilinear")
    assert (prepared.mean, prepared.std, prepared.scale) == ((0.0,) * 3, (1.0,) * 3, 1 / 255)
    assert ours.config.image_size == (96, 64)
    levels = torch.randint(0, 256, (120, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    expected = processor(levels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert_same(prepared(read_picture(levels))[0][None], expected, 1e-6)
    save_model(ours, tmp_path / "back", layout="transformers")
    back = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back")
    assert isinstance(back, transformers.RTDetrImageProcessor)
    again = back(levels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert torch.equal(again, expected)


def in_the_authors_names(state: dict[str, Tensor], second: bool) -> dict[str, Tensor]:
    """As rtdetr_pytorch and rtdetrv2_pytorch name the tensors, word for word the table of transformers' own conversion."""
    sequential = {"0": "conv", "1": "norm"}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        words = name.removeprefix("model.").split(".")
        last = words[-1]
        layer = {"convolution": "conv", "normalization": "norm"}.get(words[-2], words[-2])
        if words[:3] == ["backbone", "model", "embedder"]:
            told = f"backbone.conv1.conv1_{int(words[4]) + 1}.{layer}.{last}"
        elif words[0] == "backbone":
            block = f"backbone.res_layers.{words[4]}.blocks.{words[6]}"
            if words[7] == "layer":
                told = f"{block}.branch2{'abc'[int(words[8])]}.{layer}.{last}"
            else:
                told = f"{block}.short.{'conv.' * (words[8] == '1')}{layer}.{last}"
        elif words[0] == "encoder_input_proj":
            told = f"encoder.input_proj.{words[1]}.{sequential[words[2]] if second else words[2]}.{last}"
        elif words[0] == "decoder_input_proj":
            told = f"decoder.input_proj.{words[1]}.{sequential[words[2]]}.{last}"
        elif words[0] == "enc_output":
            told = f"decoder.enc_output.{('proj', 'norm')[int(words[1])] if second else words[1]}.{last}"
        elif words[0] in ("enc_score_head", "enc_bbox_head", "denoising_class_embed") or words[1] == "query_pos_head":
            told = ".".join(["decoder", *[word for word in words if word != "decoder"]])
        elif words[1] in ("class_embed", "bbox_embed"):
            told = ".".join(
                ["decoder", {"class_embed": "dec_score_head", "bbox_embed": "dec_bbox_head"}[words[1]], *words[2:]]
            )
        else:
            told = ".".join(words if words[0] == "encoder" else ["decoder", *words])
            norms = {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm2", "final_layer_norm": "norm3"}
            if words[0] == "encoder":
                norms["final_layer_norm"] = "norm2"
            renamed = {**norms, "encoder_attn": "cross_attn", "fc1": "linear1", "fc2": "linear2"}
            told = ".".join(renamed.get(word, word) for word in told.split(".")).replace(
                "n_points_scale", "num_points_scale"
            )
        found[told] = tensor
    for name in [name for name in found if ".q_proj." in name]:
        parts = [found.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        found[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    found["decoder.anchors"] = torch.zeros(1, 84, 4)
    found["decoder.valid_mask"] = torch.ones(1, 84, 1, dtype=torch.bool)
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", ["basic, half as wide inside", "v2, discrete"])
def test_the_authors_own_files(kind: str, tmp_path: Path) -> None:
    theirs = peer(kind)
    published = publish(theirs, tmp_path / "theirs")
    named = load_model(published).config
    state = in_the_authors_names(load_file(published / "model.safetensors"), KINDS[kind][0] == 2)
    torch.save({"model": state}, tmp_path / "authors.pth")
    ours = load_model(tmp_path / "authors.pth", architecture=replace(named, decoder_depth=5, num_classes=7, queries=12))
    assert ours.config == named
    pixels = pictures(64, 64)
    assert_same(ours(pixels).boxes, theirs(pixels).pred_boxes)
    assert ours.record.layout == "lyuwenyu"
    assert ours.record.architecture == ("rtdetr", "rtdetrv2")[KINDS[kind][0] - 1]


@pytest.mark.parametrize("name", ["rtdetr_r18", "rtdetrv2_r101"])
def test_the_authors_published_networks_are_known_by_their_shapes(name: str) -> None:
    with torch.device("meta"):
        model = CATALOGUE[name].build(CATALOGUE[name].config)
    model.record = replace(model.record, architecture=name)
    described, second = LAYOUT.compose(model), "v2" in name
    tensors = model.state_dict()
    state = {
        told: part for row in described.rows for told, part in zip(row.theirs, row.write(tensors[row.ours]), strict=True)
    }
    state = {told: torch.zeros(()).expand(part.shape) for told, part in in_the_authors_names(state, second).items()}
    plan = lyuwenyu.LAYOUT.plan(Files(source="authors.pth", tensors=state, kind="pickle"), None)
    assert plan.record.architecture == name
    assert replace(plan.config, backbone=model.config.backbone) == model.config
    assert plan.record.labels[:2] == ("person", "bicycle")
    assert len(plan.record.labels) == 80
    assert set(plan.tensors) >= {told for row in plan.rows for told in row.theirs}


@torch.no_grad()
@pytest.mark.parametrize(("name", "block"), [("resnet18d", "basic"), ("resnet50d", "bottleneck")])
def test_resnet_d_is_timms(name: str, block: Any) -> None:
    channels = (8, 12, 16, 24) if block == "basic" else (4, 8, 8, 12)
    theirs = stirred(timm.create_model(name, num_classes=7, layers=[1, 2, 1, 1], channels=channels, stem_width=4))
    wide = tuple(one * (1 if block == "basic" else 4) for one in channels)
    config = replace(VARIANTS[name], stem_width=8, stage_channels=wide, depths=(1, 2, 1, 1), num_classes=7)
    ours, state = ResNet(config).eval(), theirs.state_dict()
    parts = {"first": "1", "second": "2", "third": "3"}

    def told(key: str) -> str:
        words = key.split(".")
        kind = "conv" if words[-2] == "conv" else "bn"
        if words[0] == "stem":
            place = {"0": ("conv1.0", "conv1.1"), "1": ("conv1.3", "conv1.4"), "2": ("conv1.6", "bn1")}[words[1]]
            return f"{place[kind == 'bn']}.{words[-1]}"
        if words[0] == "head":
            return f"fc.{words[-1]}"
        block = f"layer{int(words[1]) + 1}.{words[2]}"
        if words[3] == "shortcut":
            return f"{block}.downsample.{1 + (kind == 'bn')}.{words[-1]}"
        return f"{block}.{kind}{parts[words[3]]}.{words[-1]}"

    ours.load_state_dict({key: state[told(key)] for key in ours.state_dict()})
    assert len(ours.state_dict()) == len(state)
    for size in ((64, 64), (75, 98)):
        pixels = pictures(*size)
        assert_same(ours(pixels).logits, theirs(pixels))
        for one, other in zip(ours.pyramid(pixels).maps, theirs.forward_intermediates(pixels)[1][1:], strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("name", ["resnet34d", "resnet101d"])
def test_resnet_d_has_timms_parameters(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), ResNet(VARIANTS[name])
    assert sum(one.numel() for one in ours.parameters()) == sum(one.numel() for one in theirs.parameters())


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"learn_initial_query": True}, "learn_initial_query=True"),
        ({"encode_proj_layers": [1, 2]}, r"encode_proj_layers=\[1, 2\]"),
        ({"use_timm_backbone": True, "backbone": "resnet50d"}, "'resnet50d' of another library"),
        ({"num_feature_levels": 4}, "num_feature_levels=4"),
        ({"decoder_method": "discreet"}, "discreet"),
        ({"encoder_activation_function": "geluu"}, "geluu"),
    ],
)
def test_networks_that_are_none_of_ours_are_refused(told: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = publish(peer("v2"), tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **told}))
    with pytest.raises((CheckpointError, UsageError), match=message):
        load_model(folder)


def test_a_configuration_must_say_which_of_both_it_is(tmp_path: Path) -> None:
    folder = publish(peer("v2"), tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "model_type"}))
    with pytest.raises(CheckpointError, match="does not say its model_type: rt_detr or rt_detr_v2"):
        load_model(folder)


def test_what_transformers_cannot_state_is_not_written(tmp_path: Path) -> None:
    ours = load_model(publish(peer("basic, half as wide inside"), tmp_path / "theirs"))
    uneven = RTDETR(replace(ours.config, points=(1, 2, 3)))
    with pytest.raises(UsageError, match="differs from map to map"):
        save_model(uneven, tmp_path / "back", layout="transformers")
    assert not (tmp_path / "back").exists()
