"""Checkpoints of CvT: the same numbers as transformers, the authors' layout, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.base.image import read_picture
from vitral.checkpoints.cvt import microsoft, transformers
from vitral.checkpoints.files import Files
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, MismatchError, UsageError
from vitral.models.backbones.cvt import VARIANTS, CvT
from vitral.models.catalogue import create_model

SMALL = {"embed_dim": [16, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3], "mlp_ratio": [1.5, 1.5, 1.5]}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "in grey, without biases": {"num_channels": 1, "qkv_bias": [False] * 3, "depth": [2, 2, 3]},
    "without classes": {"num_labels": 0},
}


@dataclass
class Case:
    theirs: nn.Module
    ours: CvT
    folder: Path

    def pictures(self, height: int, width: int, count: int = 1) -> Tensor:
        return pictures(height, width, count)[:, : self.ours.config.channels]


def load(source: Path, **options: Any) -> CvT:
    model = load_model(source, **options)
    assert isinstance(model, CvT)
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = hf.CvtConfig(**{**SMALL, "num_labels": 7, **CASES[request.param]})
    theirs = stirred(hf.CvtForImageClassification(config))
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs.save_pretrained(folder)
    return Case(theirs, load(folder), folder)


def assert_same_output(ours: CvT, theirs: nn.Module, pixels: Tensor) -> None:
    out, came = ours(pixels), theirs(pixels, output_hidden_states=True)
    assert_same(out.pooled if out.logits is None else out.logits, came.logits)
    maps = ours.pyramid(pixels).maps
    for one, other in zip(maps, came.hidden_states, strict=True):
        assert_same(one, other)
    # transformers norms the class token alone; all of ours pass the same norm.
    assert_same(out.tokens[:, 1:], theirs.layernorm(came.hidden_states[-1].flatten(2).transpose(1, 2)))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (30, 17)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_same_numbers(case: Case, size: tuple[int, int]) -> None:
    assert_same_output(case.ours, case.theirs, case.pictures(*size, count=2))


def test_the_same_gradients(case: Case) -> None:
    pixels = case.pictures(48, 40)
    slopes = []
    for answer in (lambda x: case.ours(x).logits, lambda x: case.theirs(x).logits):
        given = pixels.clone().requires_grad_()
        found = answer(given) if case.ours.head is not None else given
        found.square().sum().backward()
        slopes.append(given.grad)
        case.ours.zero_grad()
        case.theirs.zero_grad()
    assert_same(slopes[0], slopes[1])


@torch.no_grad()
def test_what_we_write_is_read_by_transformers(case: Case, tmp_path: Path) -> None:
    save_model(case.ours, tmp_path, layout="transformers")
    theirs, report = hf.CvtForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = case.pictures(64, 48)
    assert_same(theirs.eval()(pixels).logits, case.theirs(pixels).logits, 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("written", ["vitral", "transformers"])
def test_what_we_write_is_read_by_us_bit_by_bit(case: Case, written: str, tmp_path: Path) -> None:
    again = load(save_model(case.ours, tmp_path, layout=written))
    assert again.config == case.ours.config
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in case.ours.state_dict().items())


# A few names as the published files have them (transformers' script that turned the authors' files into its own).
PUBLISHED = {
    "cvt.encoder.stages.0.embedding.convolution_embeddings.projection.weight": "stage0.patch_embed.proj.weight",
    "cvt.encoder.stages.1.embedding.convolution_embeddings.normalization.bias": "stage1.patch_embed.norm.bias",
    "cvt.encoder.stages.2.cls_token": "stage2.cls_token",
    "cvt.encoder.stages.2.layers.1.attention.attention.convolution_projection_key.convolution_projection.convolution."
    "weight": "stage2.blocks.1.attn.conv_proj_k.conv.weight",
    "cvt.encoder.stages.0.layers.0.attention.attention.convolution_projection_value.convolution_projection.normalization."
    "running_var": "stage0.blocks.0.attn.conv_proj_v.bn.running_var",
    "cvt.encoder.stages.0.layers.0.attention.attention.projection_query.weight": "stage0.blocks.0.attn.proj_q.weight",
    "cvt.encoder.stages.0.layers.0.attention.output.dense.bias": "stage0.blocks.0.attn.proj.bias",
    "cvt.encoder.stages.0.layers.0.intermediate.dense.weight": "stage0.blocks.0.mlp.fc1.weight",
    "cvt.encoder.stages.0.layers.0.output.dense.weight": "stage0.blocks.0.mlp.fc2.weight",
    "cvt.encoder.stages.0.layers.0.layernorm_before.weight": "stage0.blocks.0.norm1.weight",
    "cvt.encoder.stages.0.layers.0.layernorm_after.weight": "stage0.blocks.0.norm2.weight",
    "layernorm.weight": "norm.weight",
    "classifier.weight": "head.weight",
}


def as_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under the authors' names, by the stems of the examples above."""
    words = [
        ("cvt.encoder.stages.", "stage"),
        ("embedding.convolution_embeddings.projection", "patch_embed.proj"),
        ("embedding.convolution_embeddings.normalization", "patch_embed.norm"),
        ("layers.", "blocks."),
        ("attention.attention.", "attn."),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("convolution_projection.convolution.", "conv."),
        ("convolution_projection.normalization.", "bn."),
        ("convolution_projection_", "conv_proj_"),
        ("projection_", "proj_"),
        ("query.", "q."),
        ("key.", "k."),
        ("value.", "v."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("layernorm", "norm"),
        ("classifier", "head"),
    ]
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        spelled = name
        for theirs, authors in words:
            spelled = spelled.replace(theirs, authors)
        named[spelled] = tensor
    return named


@torch.no_grad()
def test_the_authors_files_are_read(case: Case, tmp_path: Path) -> None:
    state = as_published(case.theirs.state_dict())
    there = [name for name in PUBLISHED if name in case.theirs.state_dict()]
    assert len(there) >= len(PUBLISHED) - 2  # biases and classifiers may be missing
    assert all(torch.equal(state[PUBLISHED[name]], case.theirs.state_dict()[name]) for name in there)
    torch.save(state, tmp_path / "weights.pth")
    ours = load(tmp_path / "weights.pth", architecture=case.ours.config)  # whose nonlinearity is transformers'
    assert ours.record.layout == "microsoft"
    assert_same_output(ours, case.theirs, case.pictures(64, 48))


@torch.no_grad()
def test_the_authors_nonlinearity_is_the_sigmoid_form(case: Case, tmp_path: Path) -> None:
    """cls_cvt.py, QuickGELU: x · sigmoid(1.702 x), put into transformers' classes here."""

    class QuickGelu(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(1.702 * x)

    torch.save(as_published(case.theirs.state_dict()), tmp_path / "weights.pth")
    named = create_model("cvt_13", **{**small(case.ours), "activation": "quick_gelu"}).config
    ours = load(tmp_path / "weights.pth", architecture=named)
    pixels = case.pictures(64, 48)
    before = case.theirs(pixels).logits
    layers = [layer for stage in case.theirs.cvt.encoder.stages for layer in stage.layers]
    for layer in layers:
        layer.intermediate.activation = QuickGelu()
    try:
        assert (case.theirs(pixels).logits - before).abs().max() > 1e-3
        assert_same_output(ours, case.theirs, pixels)
    finally:
        for layer in layers:
            layer.intermediate.activation = nn.GELU()


def small(model: CvT) -> dict[str, Any]:
    config = model.config
    fields = ("widths", "depths", "heads", "mlp_ratio", "channels", "qkv_bias")
    return {field: getattr(config, field) for field in fields}


@torch.no_grad()
def test_what_we_write_in_the_authors_layout_comes_back_without_a_guess(tmp_path: Path) -> None:
    options = {"widths": (8, 16, 24), "depths": (1, 1, 1), "heads": (2, 4, 3), "mlp_ratio": 1.7, "image_size": (48, 80)}
    model = stirred(create_model("cvt_13", num_classes=5, **options))
    again = load(save_model(model, tmp_path, layout="microsoft"))
    assert again.config == model.config
    assert again.record.notes == ()
    (tmp_path / "config.json").unlink()
    bare = load(tmp_path, architecture=model.config)  # the ratio is seen from the tensors, up to what rounding leaves open
    assert replace(bare.config, mlp_ratio=1.7) == model.config
    pixels = pictures(48, 80)
    assert torch.equal(again(pixels).logits, model(pixels).logits)
    assert torch.equal(bare(pixels).logits, model(pixels).logits)
    prepared, before = again.record.preprocessing, model.record.preprocessing
    assert prepared is not None
    assert before is not None
    assert (prepared.resize, prepared.size, prepared.mean) == (before.resize, before.size, before.mean)
    with pytest.raises(UsageError, match=r"transformers' CvT computes 'gelu', not .*'quick_gelu'.* or 'microsoft'"):
        save_model(model, tmp_path / "refused", layout="transformers")
    with pytest.raises(UsageError, match="cannot state activation='gelu'"):
        save_model(create_model("cvt_13", activation="gelu", **options), tmp_path / "refused", layout="microsoft")
    model.reset_head(0)
    with pytest.raises(UsageError, match="a network without classes"):
        save_model(model, tmp_path / "refused", layout="microsoft")
    assert not (tmp_path / "refused").exists()


def test_the_full_size_has_transformers_tensors() -> None:
    with torch.device("meta"):
        theirs, ours = hf.CvtForImageClassification(hf.CvtConfig(num_labels=1000)), create_model("cvt_13", activation="gelu")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    compose = transformers.LAYOUT.compose
    assert compose is not None
    assert {name for row in compose(ours).rows for name in row.theirs} == set(theirs.state_dict())


@pytest.mark.parametrize("edge", [224, 384, {"shortest_edge": 224}, {"shortest_edge": 256}])
def test_pictures_are_prepared_as_by_the_processor_of_the_published_files(case: Case, edge: Any, tmp_path: Path) -> None:
    """ConvNextImageProcessor with crop_pct 0.875: resized and cut below 384 pixels, warped from there on."""
    processor = hf.ConvNextImageProcessor(size=edge, crop_pct=0.875, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    case.theirs.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ours = load(tmp_path)
    side = edge if isinstance(edge, int) else edge["shortest_edge"]
    assert ours.config.image_size == (side, side)
    prepared = ours.record.preprocessing
    assert prepared is not None
    picture = torch.randint(0, 256, (3, 300, 500), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    found, _ = prepared(read_picture(picture.permute(1, 2, 0).numpy()))
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)


def test_labels_travel(tmp_path: Path) -> None:
    names = {index: f"thing {index}" for index in range(3)}
    theirs = hf.CvtForImageClassification(hf.CvtConfig(**SMALL, id2label=names))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert ours.record.labels == tuple(names.values())
    save_model(ours, tmp_path / "ours", layout="transformers")
    assert hf.CvtConfig.from_pretrained(tmp_path / "ours").id2label == names


def test_heads_that_cannot_be_seen_are_asked_for(case: Case, tmp_path: Path) -> None:
    torch.save(as_published(case.theirs.state_dict()), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"heads cannot be seen from stages of \(16, 16, 32\)"):
        load(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_bare_file_of_a_published_size_is_known(name: str) -> None:
    rows = microsoft.rows(VARIANTS[name])
    with torch.device("meta"):
        state = create_model(name).state_dict()
    files = Files(source="CvT.pth", tensors={row.theirs[0]: state[row.ours] for row in rows}, kind="pickle")
    assert microsoft.LAYOUT.recognises(files)
    plan = microsoft.LAYOUT.plan(files, None)
    assert plan.config == VARIANTS[name]
    assert plan.record.architecture == name
    assert len(plan.record.notes) == 2  # the size, and the names of the classes
    prepared, side = plan.record.preprocessing, plan.config.image_size[0]
    assert prepared is not None
    assert (prepared.size, prepared.crop) == ((side * 8 // 7,) * 2, (side, side))


def test_files_that_are_no_whole_classifier_are_refused(case: Case, tmp_path: Path) -> None:
    case.theirs.cvt.save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="without the norm that its class token is read behind"):
        load(tmp_path / "encoder")
    case.theirs.save_pretrained(tmp_path / "whole")
    told = json.loads((tmp_path / "whole" / "config.json").read_text())
    wrongs = [
        ({"stride_kv": [1, 1, 1]}, CheckpointError, r"stride_kv=\[1, 1, 1\]"),
        ({"mlp_ratio": [4, 4, 2]}, CheckpointError, "the same in all stages"),
        ({"num_heads": [1, 1, 5]}, CheckpointError, "not a multiple of its heads 5"),
        ({"embed_dim": 64}, CheckpointError, "a value of an unexpected kind"),
        ({"depth": [1, 2, 4]}, MismatchError, r"stages\.2\.layers\.3"),
    ]
    for wrong, error, told_why in wrongs:
        (tmp_path / "whole" / "config.json").write_text(json.dumps({**told, **wrong}))
        with pytest.raises(error, match=told_why):
            load(tmp_path / "whole")
