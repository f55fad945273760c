"""The npz files of vision_transformer and big_vision, against timm's reader of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.parity.peers import assert_same, bits, load, pictures
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, MismatchError

WIDTH, HEADS, DEPTH, MLP, SIDE, PATCH = 64, 4, 2, 128, 64, 16
BLOCKS = {
    "vision_transformer": ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    "big_vision": ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
}


class Arrays(dict[str, np.ndarray]):
    """An npz file in Flax's layout, filled as its layers are named."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)

    def add(self, name: str, *shape: int, mean: float = 0.0) -> None:
        self[name] = self.random.normal(mean, 0.2, shape).astype("float32")

    def norm(self, name: str) -> None:
        self.add(f"{name}/scale", WIDTH, mean=1.0)
        self.add(f"{name}/bias", WIDTH)

    def dense(self, name: str, *shape: int) -> None:
        self.add(f"{name}/kernel", *shape)
        self.add(f"{name}/bias", shape[-1])

    def attention(self, name: str) -> None:
        head = WIDTH // HEADS
        for part in ("query", "key", "value"):
            self.add(f"{name}/{part}/kernel", WIDTH, HEADS, head)
            self.add(f"{name}/{part}/bias", HEADS, head)
        self.add(f"{name}/out/kernel", HEADS, head, WIDTH)
        self.add(f"{name}/out/bias", WIDTH)

    def mlp(self, name: str) -> None:
        self.dense(f"{name}/Dense_0", WIDTH, MLP)
        self.dense(f"{name}/Dense_1", MLP, WIDTH)


def arrays(dialect: str, *, head: bool = True, pooled: bool = False) -> Arrays:
    made, patches = Arrays(), (SIDE // PATCH) ** 2
    made.dense("embedding", PATCH, PATCH, 3, WIDTH)
    if dialect == "vision_transformer":
        made.add("cls", 1, 1, WIDTH)
        made.add("Transformer/posembed_input/pos_embedding", 1, 1 + patches, WIDTH)
    else:
        made.add("pos_embedding", 1, patches, WIDTH)
    norm1, attention, norm2, mlp = BLOCKS[dialect]
    for index in range(DEPTH):
        block = f"Transformer/encoderblock_{index}"
        made.norm(f"{block}/{norm1}")
        made.norm(f"{block}/{norm2}")
        made.attention(f"{block}/{attention}")
        made.mlp(f"{block}/{mlp}")
    made.norm("Transformer/encoder_norm")
    if pooled:
        made.add("MAPHead_0/probe", 1, 1, WIDTH)
        made.norm("MAPHead_0/LayerNorm_0")
        made.attention("MAPHead_0/MultiHeadDotProductAttention_0")
        made.mlp("MAPHead_0/MlpBlock_0")
    if head:
        made.dense("head", WIDTH, 7)
    return made


def write(path: Path, made: dict[str, np.ndarray], prefix: str = "") -> Path:
    np.savez(path, **{f"{prefix}{name}": array for name, array in made.items()})
    return path


def peer(architecture: str, path: Path, num_classes: int = 7) -> nn.Module:
    theirs = timm.create_model(
        architecture,
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=MLP / WIDTH,
        num_classes=num_classes,
    )
    theirs.load_pretrained(str(path))
    return theirs.eval()


@torch.no_grad()
def test_vision_transformer(tmp_path: Path) -> None:
    path = write(tmp_path / "vit.npz", arrays("vision_transformer"))
    ours, theirs = load(path), peer("vit_tiny_patch16_224", path)
    pixels = pictures(SIDE, SIDE, count=2)
    assert_same(ours(pixels).tokens, theirs.forward_features(pixels))
    assert_same(ours(pixels).logits, theirs(pixels))
    assert ours.record.layout == "google"
    preprocessing = ours.record.preprocessing
    assert preprocessing is not None
    assert (preprocessing.resize, preprocessing.size, preprocessing.mean) == ("exact", (SIDE, SIDE), (0.5, 0.5, 0.5))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "params/", "params/img/"])
def test_big_vision_with_attention_pooling(prefix: str, tmp_path: Path) -> None:
    made = arrays("big_vision", pooled=True)
    # SigLIP's files hold the text encoder and the temperature beside the picture's encoder.
    beside = {"params/t": (), "params/b": (), "params/txt/Embed_0/embedding": (9, WIDTH)}
    extra = {name: np.zeros(shape, "float32") for name, shape in beside.items() if "img" in prefix}
    named = {f"{prefix}{name}": array for name, array in made.items()}
    ours = load(write(tmp_path / "siglip.npz", {**named, **extra}))
    # timm's SigLIP leaves the file's classifier; ours reads it.
    theirs = peer("vit_base_patch16_siglip_224", write(tmp_path / "plain.npz", made, "params/"), num_classes=0)
    pixels = pictures(SIDE, SIDE, count=2)
    assert_same(ours(pixels).tokens, theirs.forward_features(pixels))
    assert_same(ours(pixels).pooled, theirs(pixels))
    expected = theirs(pixels) @ torch.from_numpy(made["head/kernel"]) + torch.from_numpy(made["head/bias"])
    assert_same(ours(pixels).logits, expected)
    assert any("Left out" in note for note in ours.record.notes) == bool(extra)


@torch.no_grad()
def test_blocks_trained_in_one_scan_lie_in_one_array(tmp_path: Path) -> None:
    made = arrays("big_vision", pooled=True)
    apart = load(write(tmp_path / "apart.npz", made))
    first = [name for name in made if "encoderblock_0/" in name]
    joint = {name: array for name, array in made.items() if "encoderblock_" not in name}
    for name in first:
        blocks = [made[name.replace("_0/", f"_{index}/", 1)] for index in range(DEPTH)]
        joint[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(blocks)
    together = load(write(tmp_path / "joint.npz", joint))
    for name, tensor in bits(apart).items():
        assert torch.equal(bits(together)[name], tensor), name


@torch.no_grad()
def test_a_representation_layer_is_a_tanh_before_the_classifier(tmp_path: Path) -> None:
    made = arrays("vision_transformer")
    made.dense("pre_logits", WIDTH, 24)
    made.dense("head", 24, 7)
    ours = load(write(tmp_path / "vit.npz", made))
    out = ours(pictures(SIDE, SIDE))
    kernel, bias = (torch.from_numpy(made[f"pre_logits/{part}"]) for part in ("kernel", "bias"))
    expected = torch.tanh(out.tokens[:, 0] @ kernel + bias)
    assert_same(out.pooled, expected)
    assert_same(out.logits, expected @ torch.from_numpy(made["head/kernel"]) + torch.from_numpy(made["head/bias"]))


@torch.no_grad()
def test_what_we_write_is_read_by_timm_and_us(tmp_path: Path) -> None:
    path = write(tmp_path / "vit.npz", arrays("vision_transformer"))
    ours, theirs = load(path), peer("vit_tiny_patch16_224", path)
    written = save_model(ours, tmp_path / "timm", layout="timm")
    read = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    assert_same(read(pictures(SIDE, SIDE)), theirs(pictures(SIDE, SIDE)))
    for layout in ("vitral", "transformers"):
        again = load(save_model(ours, tmp_path / layout, layout=layout))
        for name, tensor in bits(ours).items():
            assert torch.equal(bits(again)[name], tensor), name


def test_what_does_not_fit_is_listed_under_the_files_names(tmp_path: Path) -> None:
    made = arrays("vision_transformer")
    del made["Transformer/encoder_norm/bias"]
    made.add("Transformer/encoder_norm/scale", WIDTH + 1)
    made.add("strange/kernel", 3)
    with pytest.raises(MismatchError) as caught:
        load(write(tmp_path / "vit.npz", made))
    assert caught.value.missing == (("Transformer/encoder_norm/bias", (WIDTH,)),)
    assert caught.value.misshaped == (("Transformer/encoder_norm/scale", (WIDTH + 1,), (WIDTH,)),)
    assert caught.value.unexpected == (("strange/kernel", (3,)),)


def test_an_embedding_alone_is_no_transformer(tmp_path: Path) -> None:
    made = Arrays()
    made.dense("embedding", PATCH, PATCH, 3, WIDTH)
    with pytest.raises(CheckpointError, match="an embedding but no attention layers"):
        load(write(tmp_path / "vit.npz", made))
