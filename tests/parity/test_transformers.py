"""Checkpoints of transformers: the same numbers as transformers, and what we write is read by it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.parity.peers import assert_same, bits, load, pictures, randomised
from vitral.checkpoints.save import save_model
from vitral.errors import UsageError
from vitral.models.backbones.vit import ViT

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 128,
    "patch_size": 32,
    "intermediate_size": 48,
}
PER_BLOCK = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True}

# name → (model type's stem, class, options of the configuration)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViT", "ViTForImageClassification", {"num_labels": 7}),
    "vit with a pooler": ("ViT", "ViTModel", {"pooler_output_size": 24}),
    "vit, oblong": ("ViT", "ViTForImageClassification", {"image_size": (96, 160), "patch_size": (32, 16)}),
    "vit quick gelu without biases": ("ViT", "ViTForImageClassification", {"hidden_act": "quick_gelu", "qkv_bias": False}),
    "deit": ("DeiT", "DeiTForImageClassification", {"num_labels": 7}),
    "deit with its teacher": ("DeiT", "DeiTForImageClassificationWithTeacher", {"num_labels": 7}),
    "deit with a pooler": ("DeiT", "DeiTModel", {}),
    "beit, biases per block": ("Beit", "BeitForImageClassification", {"num_labels": 7, **PER_BLOCK}),
    "beit, shared biases": ("Beit", "BeitForImageClassification", {**SHARED, "layer_scale_init_value": 0.3}),
    "beit, absolute positions": (
        "Beit",
        "BeitForImageClassification",
        {"use_absolute_position_embeddings": True, "use_mask_token": True},
    ),
    "beit, class token pooled": ("Beit", "BeitForImageClassification", {**PER_BLOCK, "use_mean_pooling": False}),
    "beit without layer scale": ("Beit", "BeitModel", {**PER_BLOCK, "layer_scale_init_value": 0.0}),
    "data2vec-vision": ("Data2VecVision", "Data2VecVisionForImageClassification", {"num_labels": 7, **PER_BLOCK}),
    "dinov2": ("Dinov2", "Dinov2ForImageClassification", {"num_labels": 7}),
    "dinov2 alone": ("Dinov2", "Dinov2Model", {}),
    "dinov2 gated": ("Dinov2", "Dinov2ForImageClassification", {"num_labels": 7, "use_swiglu_ffn": True}),
    "dinov2 gated alone": ("Dinov2", "Dinov2Model", {"use_swiglu_ffn": True, "use_mask_token": False}),
    "dinov2 with registers": ("Dinov2WithRegisters", "Dinov2WithRegistersForImageClassification", {"num_labels": 7}),
    "dinov2 with registers alone": ("Dinov2WithRegisters", "Dinov2WithRegistersModel", {"num_register_tokens": 3}),
    "dinov3": ("DINOv3ViT", "DINOv3ViTModel", {"num_register_tokens": 4}),
    "dinov3 gated": (
        "DINOv3ViT",
        "DINOv3ViTModel",
        {"num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 50.0},
    ),
    "vit-msn": ("ViTMSN", "ViTMSNForImageClassification", {"num_labels": 7}),
    "vit-msn alone": ("ViTMSN", "ViTMSNModel", {}),
}
# Written as another type that computes the same: their own is a copy of it under another name.
WRITTEN_AS = {
    "data2vec-vision": "BeitForImageClassification",
    "vit-msn": "ViTForImageClassification",
    "vit-msn alone": "ViTModel",
}
# A last norm and a mean beside the class token, biases between patches, rotations: timm has no argument for them.
NOT_IN_TIMM = ("dinov2", "dinov2 gated", "dinov2 with registers", "dinov3", "dinov3 gated", "vit with a pooler")
NOT_IN_TIMM += ("deit with a pooler", "deit", "vit, oblong")


@dataclass
class Case:
    name: str
    kind: str
    theirs: nn.Module
    ours: ViT
    folder: Path

    @property
    def any_size(self) -> dict[str, bool]:
        """The option that some types need, and others do not know, to take other sizes than their own."""
        return {} if "Dinov2" in self.kind or "DINOv3" in self.kind else {"interpolate_pos_encoding": True}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    stem, kind, options = CASES[request.param]
    sizes = {key: value for key, value in SIZES.items() if "Dinov2" not in stem or key != "intermediate_size"}
    theirs = randomised(getattr(hf, kind)(getattr(hf, f"{stem}Config")(**{**sizes, **options})))
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs.save_pretrained(folder)
    return Case(request.param, kind, theirs, load(folder), folder)


def assert_same_output(out: Any, expected: Any) -> None:
    if getattr(expected, "logits", None) is not None:
        assert_same(out.logits, expected.logits)
    else:
        assert_same(out.tokens, expected.last_hidden_state)
        if getattr(expected, "pooler_output", None) is not None:
            assert_same(out.pooled, expected.pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("size", [None, (97, 131), (640, 480)], ids=["native", "97x131", "640x480"])
def test_the_same_numbers(case: Case, size: tuple[int, int] | None) -> None:
    if size and case.name == "vit, oblong":
        pytest.skip("transformers carries only square tables to other sizes")
    pixels = pictures(*(size or case.ours.config.image_size))
    options = case.any_size if size else {}
    expected = case.theirs(pixels, **options, output_hidden_states=True)
    out = case.ours(pixels)
    assert_same_output(out, expected)
    # Tokens before the last norm are the last hidden states; a model with a head shows no others.
    if out.logits is not None and not case.ours.config.final_norm:
        assert_same(out.tokens, expected.hidden_states[-1])


@torch.no_grad()
def test_what_we_write_is_read_by_transformers(case: Case, tmp_path: Path) -> None:
    save_model(case.ours, tmp_path, layout="transformers")
    kind = WRITTEN_AS.get(case.name, case.kind)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [kind]
    read, report = getattr(hf, kind).from_pretrained(tmp_path, output_loading_info=True)
    # A ViTModel has a pooler whether its file does or not.
    missing = {name for name in report["missing_keys"] if case.name != "vit-msn alone" or "pooler" not in name}
    assert not missing
    for complaint in ("unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[complaint], complaint
    pixels = pictures(*case.ours.config.image_size)
    expected, came = case.theirs(pixels), read.eval()(pixels)
    if hasattr(expected, "logits"):
        assert_same(came.logits, expected.logits)
    else:
        assert_same(came.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("layout", ["vitral", "transformers"])
def test_what_we_write_is_read_by_us_bit_by_bit(case: Case, layout: str, tmp_path: Path) -> None:
    again = load(save_model(case.ours, tmp_path, layout=layout))
    ours, came = bits(case.ours), bits(again)
    assert came.keys() >= ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(came[name], tensor), name
    if layout == "vitral":
        assert again.config == case.ours.config
        assert again.record.labels == case.ours.record.labels
        assert again.record.preprocessing == case.ours.record.preprocessing


@torch.no_grad()
def test_what_we_write_is_read_by_timm(case: Case, tmp_path: Path) -> None:
    if case.name in NOT_IN_TIMM:
        with pytest.raises(UsageError, match=r"timm's layout cannot state .* Use layout='vitral' or 'transformers'\."):
            save_model(case.ours, tmp_path / "refused", layout="timm")
        assert not (tmp_path / "refused").exists()
        return
    save_model(case.ours, tmp_path, layout="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels, again = pictures(128, 128), load(tmp_path)
    out = case.ours(pixels)
    assert_same(theirs.forward_features(pixels), out.tokens)
    assert_same(again(pixels).tokens, out.tokens)
    if out.logits is not None:
        assert_same(theirs(pixels), out.logits)
        assert_same(again(pixels).logits, out.logits)


@torch.no_grad()
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_names_in_memory_are_read_like_names_on_disk(case: Case, file: str, tmp_path: Path) -> None:
    shutil.copy(case.folder / "config.json", tmp_path)
    state = case.theirs.state_dict()
    if file.endswith("bin"):
        torch.save(state, tmp_path / file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / file)
    again = load(tmp_path)
    for name, tensor in bits(case.ours).items():
        assert torch.equal(bits(again)[name], tensor), name


def saved(folder: Path, model: nn.Module, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return randomised(hf.ViTForImageClassification(hf.ViTConfig(**SIZES, num_labels=7)))


@torch.no_grad()
def test_sharded_files(vit: nn.Module, tmp_path: Path) -> None:
    saved(tmp_path, vit, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(load(tmp_path)(pictures(128, 128)).logits, vit(pictures(128, 128)).logits)


@torch.no_grad()
def test_sharded_pickles(vit: nn.Module, tmp_path: Path) -> None:
    state = vit.state_dict()
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        torch.save({name: state[name] for name in part}, tmp_path / f"pytorch_model-{number}.bin")
    weight_map = {name: f"pytorch_model-{index % 2}.bin" for index, name in enumerate(names)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(vit.config.to_json_string())
    assert_same(load(tmp_path)(pictures(128, 128)).logits, vit(pictures(128, 128)).logits)


@torch.no_grad()
def test_half_precision_files_are_read_in_single_precision(vit: nn.Module, tmp_path: Path) -> None:
    saved(tmp_path, vit)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = load(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    theirs = hf.ViTForImageClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same(ours(pictures(128, 128)).logits, theirs(pictures(128, 128)).logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_the_encoder_of_a_masked_autoencoder(kind: str, tmp_path: Path) -> None:
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = hf.ViTMAEConfig(**SIZES, **decoder, decoder_intermediate_size=24, mask_ratio=0.0)
    theirs = randomised(getattr(hf, kind)(config))
    ours = load(saved(tmp_path, theirs))
    encoder: Any = theirs.vit if kind == "ViTMAEForPreTraining" else theirs
    in_order: Tensor = torch.arange(16.0)[None]  # the patches are sorted by this noise before they are encoded
    assert_same(ours(pictures(128, 128)).tokens, encoder(pictures(128, 128), noise=in_order).last_hidden_state)
    note = " ".join(ours.record.notes)
    assert ("Left out on purpose" in note and "decoder." in note) == (kind == "ViTMAEForPreTraining")


@torch.no_grad()
def test_the_classifiers_of_a_distilled_network_are_told_apart(tmp_path: Path) -> None:
    theirs = randomised(hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**SIZES, num_labels=7)))
    expected, out = theirs(pictures(128, 128)), load(saved(tmp_path, theirs))(pictures(128, 128))
    assert_same(out.heads[0], expected.cls_logits)
    assert_same(out.heads[1], expected.distillation_logits)
    assert (out.heads[0] - out.heads[1]).abs().max() > 0.1


@torch.no_grad()
def test_masked_patches_are_transformers(tmp_path: Path) -> None:
    theirs = randomised(hf.Dinov2Model(hf.Dinov2Config(**{**SIZES, "intermediate_size": None})))
    ours = load(saved(tmp_path, theirs))
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [1, 7, 8]] = True
    expected = theirs(pictures(128, 128), bool_masked_pos=mask)
    assert_same(ours(pictures(128, 128), mask).tokens, expected.last_hidden_state)


def test_labels_and_the_kind_of_problem_travel(vit: nn.Module, tmp_path: Path) -> None:
    names = {index: f"thing {index}" for index in range(7)}
    vit.config.id2label, vit.config.problem_type = names, "multi_label_classification"
    try:
        ours = load(saved(tmp_path / "first", vit))
    finally:
        vit.config.id2label, vit.config.problem_type = {i: f"LABEL_{i}" for i in range(7)}, None
    assert ours.record.labels == tuple(names.values())
    assert ours.record.problem == "multi_label"
    read = hf.AutoConfig.from_pretrained(save_model(ours, tmp_path / "second", layout="transformers"))
    assert read.id2label == names
    assert read.problem_type == "multi_label_classification"


def test_classes_without_a_name_are_called_what_transformers_calls_them(vit: nn.Module, tmp_path: Path) -> None:
    record = load(saved(tmp_path, vit)).record
    assert [record.label(index) for index in range(7)] == list(vit.config.id2label.values())
