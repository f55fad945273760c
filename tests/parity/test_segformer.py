"""SegFormer and its encoder beside transformers' and, in the names of the authors' repository, beside themselves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from torch import Tensor, nn

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.files import open_files
from vitral.checkpoints.load import LAYOUTS, load_model
from vitral.checkpoints.save import save_model
from vitral.checkpoints.segformer import transformers as page
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.mit import MiT, MiTConfig
from vitral.models.catalogue import CATALOGUE, create_model
from vitral.models.segmentation.segformer import SegFormer, SegFormerConfig

SMALL: dict[str, Any] = {
    "hidden_sizes": [8, 16, 20, 16],
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [1, 2, 5, 2],
    "mlp_ratios": [4, 4, 2, 4],
    "decoder_hidden_size": 24,
    "num_labels": 7,
}
PROCESSOR = {
    "image_processor_type": "SegformerImageProcessor",
    "size": {"height": 96, "width": 64},
    "do_reduce_labels": True,
}
SIZES = [(64, 64), (97, 75), (47, 130)]


def theirs_of(kind: str, **options: Any) -> Any:
    return stirred(getattr(hf, kind)(hf.SegformerConfig(**{**SMALL, **options})))


def saved(theirs: Any, folder: Path, processor: dict[str, Any] | None = None) -> Path:
    theirs.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@torch.no_grad()
def test_a_segmenter_of_transformers_there_and_back(tmp_path: Path) -> None:
    theirs = theirs_of("SegformerForSemanticSegmentation", hidden_act="silu")
    ours = load_model(saved(theirs, tmp_path / "theirs", PROCESSOR))
    assert isinstance(ours, SegFormer)
    assert ours.config.image_size == ours.config.backbone.image_size == (96, 64)
    assert (ours.record.layout, ours.record.notes) == ("transformers", ())
    assert ours.record.preprocessing is not None
    assert ours.record.preprocessing.size == (96, 64)
    for size in SIZES:
        out = ours(pictures(*size, 2))
        assert_same(out.logits, theirs(pictures(*size, 2)).logits)
        assert out.auxiliary == ()
    save_model(ours, tmp_path / "ours", layout="transformers")
    back, report = hf.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(back.eval()(pictures(97, 75)).logits, theirs(pictures(97, 75)).logits, 1e-6)
    assert type(hf.AutoImageProcessor.from_pretrained(tmp_path / "ours")).__name__.startswith("SegformerImageProcessor")
    again = load_model(tmp_path / "ours")
    assert again.config == ours.config
    assert again.record.preprocessing == ours.record.preprocessing


@torch.no_grad()
def test_in_training_the_norm_sees_what_the_authors_does(tmp_path: Path) -> None:
    """With statistics of the batch the two layers of a map and the norm are as they are when they are kept apart."""
    theirs = theirs_of("SegformerForSemanticSegmentation", classifier_dropout_prob=0.0, drop_path_rate=0.0)
    ours = load_model(saved(theirs, tmp_path)).train()
    theirs.train()
    assert_same(ours(pictures(64, 96, 2)).logits, theirs(pictures(64, 96, 2)).logits)
    assert_same(ours.decoder.norm.running_mean, theirs.decode_head.batch_norm.running_mean)
    assert_same(ours.decoder.norm.running_var, theirs.decode_head.batch_norm.running_var)


@torch.no_grad()
@pytest.mark.parametrize("classes", [7, 0])
def test_an_encoder_of_transformers_there_and_back(classes: int, tmp_path: Path) -> None:
    theirs = theirs_of("SegformerForImageClassification" if classes else "SegformerModel")
    ours = load_model(saved(theirs, tmp_path / "theirs"))
    assert isinstance(ours, MiT)
    assert (ours.config.num_classes, ours.config.image_size) == (classes, (224, 224))

    def answer(network: nn.Module, pixels: Tensor) -> Tensor:
        out = network(pixels)
        told: Tensor = out.logits if classes else out.last_hidden_state
        return told

    for size in SIZES:
        out = ours(pictures(*size))
        assert_same(out.logits if classes else out.feature_map, answer(theirs, pictures(*size)))
    save_model(ours, tmp_path / "ours", layout="transformers")
    kind = getattr(hf, json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"][0])
    back, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(answer(back.eval(), pictures(47, 130)), answer(theirs, pictures(47, 130)), 1e-6)
    assert load_model(tmp_path / "ours").config == ours.config


@torch.no_grad()
def test_names_in_memory_are_read_as_those_in_files(tmp_path: Path) -> None:
    theirs = theirs_of("SegformerForSemanticSegmentation")
    saved(theirs, tmp_path / "saved")
    (tmp_path / "memory").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "memory" / "pytorch_model.bin")
    (tmp_path / "memory" / "config.json").write_text((tmp_path / "saved" / "config.json").read_text())
    one, other = load_model(tmp_path / "saved"), load_model(tmp_path / "memory")
    assert one.config == other.config
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize("name", ["segformer_b0", "segformer_b5", "mit_b1"])
def test_a_published_network_is_written_as_published(name: str) -> None:
    network = CATALOGUE[name].build
    compose: Any = next(layout.compose for layout in page.LAYOUTS if layout.network is network)
    with torch.device("meta"):
        model: Any = network(CATALOGUE[name].config)
        written = compose(model)
        told = written.documents["config.json"]
        theirs = getattr(hf, told["architectures"][0])(hf.SegformerConfig.from_dict(told))
    assert sum(one.numel() for one in model.parameters()) == sum(one.numel() for one in theirs.parameters())
    # As the authors' own files of a segmenter name their tensors.
    names = {one for row in written.rows for one in row.theirs}
    published = {"segformer.encoder.block.0.0.attention.self.query.weight", "segformer.encoder.layer_norm.3.bias"}
    published |= {"segformer.encoder.patch_embeddings.0.proj.weight", "segformer.encoder.block.3.1.mlp.dwconv.dwconv.bias"}
    assert published <= names
    assert ("decode_head.linear_c.0.proj.weight" in names) == ("decode_head.linear_fuse.weight" in names)
    assert ("decode_head.classifier.weight" in names) == name.startswith("segformer")


# The names of transformers' files → those of the authors' repository.
AUTHORS = [
    (r"^segformer\.", "backbone."),
    (r"^classifier\.", "head."),
    (r"encoder\.patch_embeddings\.(\d+)\.proj\.", lambda found: f"patch_embed{int(found[1]) + 1}.proj."),
    (r"encoder\.patch_embeddings\.(\d+)\.layer_norm\.", lambda found: f"patch_embed{int(found[1]) + 1}.norm."),
    (r"encoder\.block\.(\d+)\.", lambda found: f"block{int(found[1]) + 1}."),
    (r"encoder\.layer_norm\.(\d+)\.", lambda found: f"norm{int(found[1]) + 1}."),
    (r"attention\.self\.query\.", "attn.q."),
    (r"attention\.self\.sr\.", "attn.sr."),
    (r"attention\.self\.layer_norm\.", "attn.norm."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"layer_norm_(\d)\.", r"norm\1."),
    (r"mlp\.dense(\d)\.", r"mlp.fc\1."),
    (r"decode_head\.linear_c\.(\d+)\.", lambda found: f"decode_head.linear_c{int(found[1]) + 1}."),
    (r"decode_head\.linear_fuse\.", "decode_head.linear_fuse.conv."),
    (r"decode_head\.batch_norm\.", "decode_head.linear_fuse.bn."),
    (r"decode_head\.classifier\.", "decode_head.linear_pred."),
]


def as_authors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder of transformers' by the names of NVlabs/SegFormer."""
    state, found = dict(open_files(folder).tensors), {}
    for name, tensor in state.items():
        if ".self.value." in name:
            continue
        if ".self.key." in name:
            tensor = torch.cat([tensor, state[name.replace(".self.key.", ".self.value.")]])
            name = name.replace("attention.self.key.", "attn.kv.")
        for pattern, replacement in AUTHORS:
            name = re.sub(pattern, replacement, name)  # type: ignore[arg-type, call-overload]
        found[name] = tensor
    return found


@torch.no_grad()
def test_the_authors_segmenter_is_read_to_the_last_tensor(tmp_path: Path) -> None:
    theirs = theirs_of("SegformerForSemanticSegmentation")
    state = as_authors(saved(theirs, tmp_path / "theirs"))
    # What their class has and does not use.
    state |= {"decode_head.conv_seg.weight": torch.zeros(7, 128, 1, 1), "decode_head.conv_seg.bias": torch.zeros(7)}
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, tmp_path / "pvt_like.pth")
    named = SegFormerConfig(backbone=MiTConfig(widths=(8, 16, 20, 16), depths=(1, 2, 1, 1), heads=(1, 2, 5, 2)))
    ours = load_model(tmp_path / "pvt_like.pth", architecture=named)
    assert isinstance(ours, SegFormer)
    assert (ours.config.backbone.norm_eps, ours.config.backbone.conv_norm_eps) == (1e-6, 1e-5)
    assert ours.record.layout == "nvlabs"
    assert any("decode_head.conv_seg.bias" in note for note in ours.record.notes)
    for size in SIZES:
        assert_same(ours(pictures(*size)).logits, theirs(pictures(*size)).logits)  # for all that epsilons differ
    guessed = load_model(tmp_path / "pvt_like.pth")
    assert guessed.config.backbone.heads == (1, 2, 5, 8)
    assert any("(1, 2, 5, 8) heads in the stages were assumed" in note for note in guessed.record.notes)
    del state["decode_head.linear_c2.proj.bias"]
    torch.save({"state_dict": state}, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"decode_head\.linear_c2\.proj\.bias"):
        load_model(tmp_path / "less.pth")
    state |= {"decode_head.linear_c2.proj.bias": torch.zeros(24), "decode_head.more": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"decode_head\.more"):
        load_model(tmp_path / "more.pth")


@torch.no_grad()
def test_encoders_and_pyramid_vision_transformers_are_told_apart(tmp_path: Path) -> None:
    theirs = theirs_of("SegformerForImageClassification")
    state = as_authors(saved(theirs, tmp_path / "theirs"))
    state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    paths = {name: tmp_path / name for name in ("mit_b0.pth", "pvt_v2_b5.pth", "thick.pth")}
    torch.save(state, paths["mit_b0.pth"])
    torch.save(state, paths["pvt_v2_b5.pth"])
    thick = create_model("pvt_v2_b0", num_classes=3, widths=(8, 16, 20, 16), depths=(1, 1, 1, 1))
    names = {"projection": "proj", "key_value": "kv", "neighbours": "dwconv.dwconv", "up": "fc1", "down": "fc2"}
    names |= {"query": "q", "attention": "attn", "reduce": "sr"}
    renamed = {}
    for name, tensor in thick.state_dict().items():
        name = ".".join(names.get(part, part) for part in name.split("."))
        name = re.sub(r"stages\.(\d)\.blocks\.", lambda found: f"block{int(found[1]) + 1}.", name)
        name = re.sub(r"stages\.(\d)\.embedding\.", lambda found: f"patch_embed{int(found[1]) + 1}.", name)
        renamed[re.sub(r"stages\.(\d)\.norm\.", lambda found: f"norm{int(found[1]) + 1}.", name)] = tensor
    torch.save(renamed, paths["thick.pth"])
    opened = {name: open_files(path) for name, path in paths.items()}
    claims = {name: [one.name for one in LAYOUTS if one.recognises(files)] for name, files in opened.items()}
    assert claims == {"mit_b0.pth": ["nvlabs"], "pvt_v2_b5.pth": ["whai362"], "thick.pth": ["whai362"]}
    named = MiTConfig(widths=(8, 16, 20, 16), depths=(1, 2, 1, 1), heads=(1, 2, 5, 2))
    ours = load_model(paths["mit_b0.pth"], architecture=named)
    assert type(ours) is MiT
    assert ours.config.mlp_ratios == (4, 4, 2, 4)
    assert_same(ours(pictures(97, 75)).logits, theirs(pictures(97, 75)).logits)
    assert load_model(paths["mit_b0.pth"]).config.heads == (1, 2, 5, 8)
    assert load_model(paths["thick.pth"]).config.num_classes == 3


@torch.no_grad()
def test_timm_reads_an_encoder_as_a_pyramid_vision_transformer(tmp_path: Path) -> None:
    ours = stirred(create_model("mit_b0", num_classes=5, widths=(8, 16, 20, 16), heads=(1, 2, 5, 2), depths=(1, 1, 2, 1)))
    written = save_model(ours, tmp_path / "ours", layout="timm")
    back = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    assert_same(back(pictures(64, 64)), ours(pictures(64, 64)).logits)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strides": [4, 2, 2, 1]}, "only .* was ever published"),
        ({"hidden_act": "tanhh"}, "activation"),
        ({"mlp_ratios": [2.5, 2, 2, 2]}, "whole numbers belong there"),
        ({"decoder_hidden_size": 25}, r"decode_head\.linear_c\.0\.proj\.weight"),
        ({"num_attention_heads": [3, 2, 5, 2]}, "not a multiple of its heads"),
        ({"depths": "many"}, "whole numbers|unexpected kind"),
        ({"depths": [1, 2, 1, 2]}, r"encoder\.block\.3\.1"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_refused_in_a_sentence(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(theirs_of("SegformerForSemanticSegmentation"), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


@torch.no_grad()
def test_what_becomes_of_the_authors_epsilon(tmp_path: Path) -> None:
    small: dict[str, Any] = {"backbone.widths": (8, 16, 20, 16), "backbone.heads": (1, 2, 5, 2), "num_classes": 3}
    ours = stirred(create_model("segformer_b0", **small))
    save_model(ours, tmp_path, layout="transformers")
    again, theirs = load_model(tmp_path), hf.SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert ours.config.backbone.norm_eps == theirs.config.layer_norm_eps == 1e-6
    assert {module.eps for module in theirs.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}  # all the same
    assert again.config.backbone.norm_eps == 1e-5
    told, read, peer = (one(pictures(64, 96)).logits for one in (ours, again, theirs))
    assert_same(read, peer)
    assert 0 < (told - read).abs().max() < 1e-3 * told.abs().max()


def test_what_transformers_cannot_state_is_refused(tmp_path: Path) -> None:
    small: dict[str, Any] = {"backbone.widths": (8, 16, 20, 16), "backbone.heads": (1, 2, 5, 2), "num_classes": 3}
    odd = create_model("segformer_b0", **small, **{"backbone.norm_eps": 1e-3})
    with pytest.raises(UsageError, match=r"epsilons of 1e-05; this one has 0\.001 in its blocks"):
        save_model(odd, tmp_path / "odd", layout="transformers")
    plain = create_model("segformer_b0", **small)
    prepared: Any = plain.record.preprocessing
    plain.record = replace(plain.record, preprocessing=replace(prepared, crop=(64, 64)))
    with pytest.raises(UsageError, match="makes all pictures of one shape, and cuts none"):
        save_model(plain, tmp_path / "odd", layout="transformers")
    assert not (tmp_path / "odd").exists()


def test_heads_that_cannot_be_guessed_are_asked_for(tmp_path: Path) -> None:
    theirs = theirs_of("SegformerModel", hidden_sizes=[8, 16, 18, 16], num_attention_heads=[1, 2, 3, 2])
    state = as_authors(saved(theirs, tmp_path / "theirs"))
    torch.save(state, tmp_path / "mit.pth")
    with pytest.raises(CheckpointError, match=r"channels \[8, 16, 18, 16\] of the stages cannot be seen"):
        load_model(tmp_path / "mit.pth")
