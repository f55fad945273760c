"""Blocks of encoders and decoders beside transformers', and how their weights start."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.detr.modeling_detr import DetrDecoderLayer, DetrEncoderLayer

from vitral.layers.decoding import DecoderBlock, EncoderBlock, Perceptron, initialise_xavier

PEER = hf.DetrConfig(
    d_model=32, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, dropout=0.0
)
SEEN = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])[:, None, None]
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "projection": "o_proj"}


def taught(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Give both the same random weights."""
    theirs.eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    with torch.no_grad():
        for mine, other in names.items():
            parts = ATTENTION if "attention" in mine else {"": ""}
            for part, theirs_part in parts.items():
                one = ours.get_submodule(f"{mine}.{part}".rstrip("."))
                one.load_state_dict(theirs.get_submodule(f"{other}.{theirs_part}".rstrip(".")).state_dict())


def tokens(count: int) -> Tensor:
    return torch.randn(2, count, 32)


def bias() -> Tensor:
    """What is seen as what transformers adds."""
    return torch.zeros(2, 1, 1, 6).masked_fill(~SEEN, -torch.inf)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_an_encoder_block_is_transformers(masked: bool) -> None:
    ours, theirs = EncoderBlock(32, 4, 48), DetrEncoderLayer(PEER)
    names = {"attention": "self_attn", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
    taught(ours, theirs, names | {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"})
    x, positions = tokens(6), tokens(6)
    expected = theirs(x, bias() if masked else None, spatial_position_embeddings=positions)
    torch.testing.assert_close(ours(x, positions, SEEN if masked else None), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_a_decoder_block_is_transformers(masked: bool) -> None:
    ours, theirs = DecoderBlock(32, 4, 48), DetrDecoderLayer(PEER)
    names = {"attention": "self_attn", "cross_attention": "encoder_attn", "norm1": "self_attn_layer_norm"}
    names |= {"norm2": "encoder_attn_layer_norm", "norm3": "final_layer_norm"}
    taught(ours, theirs, names | {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"})
    queries, asking, memory, positions = tokens(3), tokens(3), tokens(6), tokens(6)
    expected = theirs(
        queries,
        spatial_position_embeddings=positions,
        object_queries_position_embeddings=asking,
        encoder_hidden_states=memory,
        encoder_attention_mask=bias() if masked else None,
    )
    found = ours(queries, asking, memory + positions, memory, SEEN if masked else None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_dropout_is_everywhere_and_in_training_alone() -> None:
    block = DecoderBlock(32, 4, 48, dropout=0.5)
    given = tokens(3), tokens(3), tokens(6), tokens(6)
    assert not torch.equal(block(*given), block(*given))
    block.eval()
    assert torch.equal(block(*given), block(*given))
    assert block.attention.product.dropout == block.cross_attention.product.dropout == 0.5


@torch.no_grad()
def test_a_perceptron_has_relu_between_its_layers() -> None:
    perceptron = Perceptron((4, 5, 6, 2))
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    for mine, other in zip(perceptron.layers, plain[::2], strict=True):
        mine.load_state_dict(other.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(perceptron(x), plain(x))


def test_weights_start_as_in_one_matrix_for_queries_keys_and_values() -> None:
    """PyTorch's own attention, as the authors used it, with Xavier's bounds for its one matrix."""
    peer = nn.MultiheadAttention(256, 8)
    nn.init.xavier_uniform_(peer.in_proj_weight)
    block = EncoderBlock(256, 8, 512)
    initialise_xavier(block)
    bound = peer.in_proj_weight.abs().max().item()
    for part in (block.attention.query, block.attention.key, block.attention.value):
        assert part.weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
        assert part.weight.std().item() == pytest.approx(peer.in_proj_weight.std().item(), rel=2e-2)
        assert not part.bias.any()
    assert block.attention.projection.weight.abs().max().item() == pytest.approx((6 / 512) ** 0.5, rel=1e-2)
    assert block.mlp.up.weight.abs().max().item() == pytest.approx((6 / 768) ** 0.5, rel=1e-2)
    assert block.mlp.up.bias.any()
