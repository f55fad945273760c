"""The catalogue: every name builds, has the published number of parameters, and is found by those who misspell it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

from vitral.errors import UnknownNameError, UsageError
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.catalogue import CATALOGUE, FAMILIES, create_model, enough_memory, list_models
from vitral.models.record import Record


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(build: Any, *args: Any, **options: Any) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build(*args, **options)


@pytest.mark.parametrize("name", list_models())
def test_every_entry_builds(name: str) -> None:
    model = on_meta(create_model, name)
    assert isinstance(model, CATALOGUE[name].build)
    assert model.config == CATALOGUE[name].config
    assert model.record.architecture == name
    assert model.record.labels == ()
    prepared = model.record.preprocessing
    if prepared.resize == "shortest_edge":  # detectors
        assert (prepared.size[0], prepared.longest) == tuple(sorted(model.config.image_size))
    else:
        assert prepared.input_size == model.config.image_size
    assert model.training
    assert any(isinstance(model.config, family.config) for family in FAMILIES.values())


# ViT: Dosovitskiy et al. 2021 with the classifier of ImageNet-1k; DeiT: Touvron et al. 2021, table 1.
COUNTS = {
    "vit_b16": 86_567_656,
    "vit_l16": 304_326_632,
    "vit_h14": 632_045_800,
    "deit_ti16": 5_717_416,
    "deit_s16": 22_050_664,
    "deit_b16": 86_567_656,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_sizes_are_the_published_ones(name: str, count: int) -> None:
    assert parameters(on_meta(create_model, name)) == count


TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_ti16": ("vit_tiny_patch16_224", {}),
    "vit_s32": ("vit_small_patch32_224", {}),
    "vit_b8": ("vit_base_patch8_224", {}),
    "vit_b32": ("vit_base_patch32_224", {}),
    "vit_l14": ("vit_large_patch14_224", {}),
    "vit_l32": ("vit_large_patch32_224", {"num_classes": 1000}),
    "vit_h14": ("vit_huge_patch14_224", {"num_classes": 1000}),
    "vit_g14": ("vit_giant_patch14_224", {}),
    "vit_gigantic14": ("vit_gigantic_patch14_224", {}),
    "deit_ti16_distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit_s16_distilled": ("deit_small_distilled_patch16_224", {}),
    "deit_b16_distilled": ("deit_base_distilled_patch16_224", {}),
    "beit_b16": ("beit_base_patch16_224", {}),
    "beit_l16": ("beit_large_patch16_224", {}),
    "mae_b16": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "mae_h14": ("vit_huge_patch14_224", {"global_pool": "avg", "num_classes": 1000}),
    "dino_s8": ("vit_small_patch8_224", {"num_classes": 0}),
    "dino_b16": ("vit_base_patch16_224", {"num_classes": 0}),
    "clip_b16": ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 0}),
    "clip_b32": ("vit_base_patch32_clip_quickgelu_224", {"num_classes": 0}),
    "clip_l14": ("vit_large_patch14_clip_quickgelu_224", {"num_classes": 0}),
    "siglip_b16": ("vit_base_patch16_siglip_256", {"num_classes": 0}),
    "siglip_l16": ("vit_large_patch16_siglip_256", {"num_classes": 0}),
}


@pytest.mark.parametrize(("name", "theirs", "options"), [(ours, *theirs) for ours, theirs in TIMM.items()])
def test_sizes_are_timms(name: str, theirs: str, options: dict[str, Any]) -> None:
    ours, peer = on_meta(create_model, name), on_meta(timm.create_model, theirs, **options)
    assert parameters(ours) == parameters(peer)
    assert ours.config.heads == peer.blocks[0].attn.num_heads
    assert ours.config.norm_eps == peer.blocks[0].norm1.eps
    assert ours.config.grid == peer.patch_embed.grid_size


def dinov2(width: int, heads: int, depth: int, **options: Any) -> nn.Module:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": depth}
    kind = "Dinov2WithRegisters" if "num_register_tokens" in options else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(**sizes, image_size=518, patch_size=14, **options)
    return getattr(transformers, f"{kind}Model")(config)


@pytest.mark.parametrize(
    ("letter", "width", "heads", "depth"),
    [("s", 384, 6, 12), ("b", 768, 12, 12), ("l", 1024, 16, 24), ("g", 1536, 24, 40)],
)
def test_dinov2_is_transformers(letter: str, width: int, heads: int, depth: int) -> None:
    gated = {"use_swiglu_ffn": letter == "g"}
    plain = on_meta(dinov2, width, heads, depth, **gated)
    assert parameters(on_meta(create_model, f"dinov2_{letter}14")) == parameters(plain)
    registers = on_meta(dinov2, width, heads, depth, num_register_tokens=4, **gated)
    assert parameters(on_meta(create_model, f"dinov2_{letter}14_registers")) == parameters(registers)


@pytest.mark.parametrize(("letter", "width", "heads", "depth"), [("s", 384, 6, 12), ("b", 768, 12, 12), ("l", 1024, 16, 24)])
def test_dinov3_is_transformers(letter: str, width: int, heads: int, depth: int) -> None:
    config = transformers.DINOv3ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=depth,
        intermediate_size=4 * width,
        num_register_tokens=4,
    )
    peer = on_meta(transformers.DINOv3ViTModel, config)
    # Queries and values have a bias, keys none; transformers' default is the published checkpoints'.
    assert parameters(on_meta(create_model, f"dinov3_{letter}16")) == parameters(peer)


def test_list_models_by_pattern_and_by_part() -> None:
    names = list_models()
    assert names == sorted(CATALOGUE)
    assert list_models("vit_b*") == ["vit_b14", "vit_b16", "vit_b32", "vit_b8"]
    assert list_models("registers") == [name for name in names if "registers" in name]
    assert list_models("deit_[st]*_distilled") == ["deit_s16_distilled", "deit_ti16_distilled"]
    assert list_models("resmlp") == []


@pytest.mark.parametrize(
    ("name", "nearest"), [("vit_b_16", "vit_b16"), ("vit-b16", "vit_b16"), ("dinov2_s14_register", "dinov2_s14_registers")]
)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown model .*Did you mean") as caught:
        create_model(name)
    assert nearest in caught.value.nearest


def test_a_name_like_no_other_is_answered_with_examples() -> None:
    with pytest.raises(UnknownNameError, match=rf"There are {len(CATALOGUE)} to choose from, for example alexnet"):
        create_model("qqqq")


def test_an_unknown_field_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown field of ViTConfig 'imagesize'\. Did you mean 'image_size'"):
        create_model("vit_b16", imagesize=384)


def test_overrides_change_the_network() -> None:
    model = on_meta(create_model, "vit_ti16", 7, image_size=384, patch_size=(16, 32), drop_path=0.1)
    assert model.config.image_size == (384, 384)
    assert model.config.patch_size == (16, 32)
    assert model.config.grid == (24, 12)
    assert model.head.out_features == 7
    assert on_meta(create_model, "vit_ti16", 0).head is None
    with pytest.raises(UsageError, match="num_classes must be from 0 to"):
        create_model("vit_ti16", num_classes=-1)
    with pytest.raises(UsageError, match="width 192 is not a multiple of heads 5"):
        create_model("vit_ti16", heads=5)


def test_a_value_may_be_a_text_that_spells_it() -> None:
    config = on_meta(create_model, "vit_ti16", depth="3", image_size="32,48", class_token="yes", drop_path="1e-1").config
    assert config == replace(CATALOGUE["vit_ti16"].config, depth=3, image_size=(32, 48), drop_path=0.1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": "ten"}, "num_classes takes a whole number; 'ten' came"),
        ({"image_size": "abc"}, "image_size takes two whole numbers between commas; 'abc' came"),
        ({"image_size": 1.5}, "image_size takes two whole numbers between commas; 1.5 came"),
        ({"class_token": "perhaps"}, "class_token takes yes or no; 'perhaps' came"),
        ({"pool": 3}, "Unknown value of pool 3"),
    ],
)
def test_a_value_of_another_type_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("vit_ti16", **fields)


@pytest.mark.usefixtures("unchecked")
def test_a_configuration_holds_what_its_annotations_say() -> None:
    with pytest.raises(UsageError, match="depth of a ViTConfig must be a whole number; '3' came"):
        ViTConfig(depth="3")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="class_token of a ViTConfig must be yes or no; 'no' came"):
        ViTConfig(class_token="no")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"image_size of a ViTConfig must be two whole numbers; \(8,\) came"):
        ViTConfig(image_size=(8,))  # type: ignore[arg-type]


def test_weights_beyond_all_memory_are_told_in_gibibytes() -> None:
    """Of 6250 × 6250 patches, each with a position of 192 numbers of four bytes, and the network without its table."""
    config = replace(CATALOGUE["vit_ti16"].config, image_size=(100_000, 100_000))
    told = r"pictures of 100000 by 100000 pixels need 28\.0 GiB of memory"
    with pytest.raises(UsageError, match=told), enough_memory(ViT, config):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 30000000768 bytes.")
    with pytest.raises(RuntimeError, match="something else"), enough_memory(ViT, config):
        raise RuntimeError("something else")


def test_the_catalogue_is_not_changed_by_a_network_made_from_it() -> None:
    before = CATALOGUE["vit_ti16"].config
    create_model("vit_ti16", num_classes=3).reset_head(2)
    assert CATALOGUE["vit_ti16"].config == before == ViTConfig(width=192, heads=3, mlp_width=768)


def test_a_record_names_classes_both_ways() -> None:
    record = Record(labels=("cat", "dog", "cat"))
    assert record.label(1) == "dog"
    assert record.index("dog") == 1
    assert Record().label(7) == "LABEL_7"
    with pytest.raises(UsageError, match="'cat' names the classes 0, 2"):
        record.index("cat")
    with pytest.raises(UnknownNameError, match="Unknown class 'cow'"):
        record.index("cow")


def test_a_class_answers_to_each_of_its_names() -> None:
    record = Record(labels=("tabby, tabby cat", "Persian cat", "bow tie, bow-tie, bowtie", "crane", "crane, wader"))
    assert [record.index(name) for name in ("tabby", "TABBY CAT", "persian cat", "bow-tie", "wader")] == [0, 0, 1, 2, 4]
    assert record.index("crane") == 3  # the whole label comes first
    assert Record(labels=("a",)).label(1) == "LABEL_1"
    assert Record(labels=("a",)).index("LABEL_1") == 1
    with pytest.raises(UnknownNameError, match="Did you mean 'tabby'"):
        record.index("tabbi")
    with pytest.raises(UsageError, match="'a' names the classes 0, 1"):
        Record(labels=("a, b", "c, A")).index("a")
