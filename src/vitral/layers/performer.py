"""Linear attention by random features: FAVOR+, the attention of Performers.

Choromanski et al. 2021, "Rethinking Attention with Performers", https://arxiv.org/abs/2009.14794. For a Gaussian vector w

    exp(q·k) = E[ exp(w·q − |q|²/2) · exp(w·k − |k|²/2) ]      (lemma 1)

so with m such vectors exp(q·k) is about φ(q)·φ(k), and the sum over keys can be done once, before any query is known:

    queries ──► φ (n m) ──────────────────────────┐
                                                  ▼
    keys ─────► φ (n m) ──► φ(K)ᵀ V  (m k) ──► φ(Q) (φ(K)ᵀ V) / φ(Q) (φ(K)ᵀ 1)
    values ──────────────────┘

The map (n n) is never there. With n tokens, d channels and m features per head: 4nmd multiplications (2 for the features of
queries and keys, 2 for the products) and 4nd² for the projections, against 2n²d + 4nd² of softmax attention: less once there
are more tokens than twice the features.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.numbers import whole_number
from vitral.errors import UsageError
from vitral.layers.linear import Linear
from vitral.layers.position import Grid

__all__ = ["PerformerAttention", "orthogonal_features", "positive_features"]

# Keeps the quotient finite where no feature of a query meets one of a key; as in the authors' code.
_LEAST = 1e-6


def orthogonal_features(count: int, head_width: int, seed: int) -> Float[np.ndarray, "m k"]:
    """Gaussian vectors that are orthogonal to each other, `head_width` of them at a time (section 2.4).

    Every vector for itself is distributed as if it were drawn alone; together they cover directions more evenly, which
    lowers the error of the estimate.

    Args:
        count: number m of vectors.
        head_width: channels k of a head.
        seed: the same vectors for the same seed.
    """
    chance = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-count // head_width)):
        directions, triangle = np.linalg.qr(chance.standard_normal((head_width, head_width)))
        blocks.append((directions * np.sign(np.diag(triangle))).T)  # with these signs every rotation is as likely
    lengths = np.linalg.norm(chance.standard_normal((count, head_width)), axis=1, keepdims=True)
    return (np.concatenate(blocks)[:count] * lengths).astype(np.float32)


def positive_features(
    x: Float[Tensor, "b h n k"], features: Float[Tensor, "m k"], *, together: bool
) -> Float[Tensor, "b h n m"]:
    """φ(x) = exp(w·x − |x|²/2) for every feature w, but for a factor that attention's quotient forgets.

    The factor keeps the exponents from overflowing.

    Args:
        x: queries or keys, scaled.
        features: the vectors w.
        together: whether the factor is one for all tokens of a head, as for keys, which are summed; else each token has
            its own, as for queries.
    """
    exponents = x @ features.T - x.square().sum(-1, keepdim=True) / 2
    highest = exponents.amax((-2, -1) if together else -1, keepdim=True)
    return (exponents - highest.detach()).exp() + _LEAST


class PerformerAttention(nn.Module):
    """Self-attention whose time and memory grow with the tokens, not with their square.

    The random features are drawn once, from a seed, and are stored with the weights: a network trained with some features
    answers with the same ones. There is no attention map to look at.

    Args:
        width: channels d of a token.
        heads: number of heads h.
        features: random features m per head; the more, the closer to softmax attention: the error falls as 1/√m, from a
            height that grows exponentially with the length of queries and keys (the paper's theorem 2).
        seed: of the features.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        dropout: probability of dropping outputs in training.

    Raises:
        UsageError: no features at all, or channels that cannot be shared among the heads.
    """

    features: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        features: int = 128,
        *,
        seed: int = 0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"width {width} is not a multiple of heads {heads}.")
        self.heads, self.scale = heads, (width // heads) ** -0.25  # on queries and on keys: √k in all
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        drawn = orthogonal_features(whole_number("features", features), width // heads, whole_number("seed", seed, least=0))
        self.register_buffer("features", torch.as_tensor(drawn))
        self.projection = Linear(width, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def redraw(self, seed: int) -> None:
        """Draw other features, as the paper advises to do now and then in training (section 4.2).

        Args:
            seed: the same features for the same seed.
        """
        count, head_width = self.features.shape
        drawn = orthogonal_features(count, head_width, whole_number("seed", seed, least=0))
        self.features.copy_(torch.as_tensor(drawn))

    def forward(self, tokens: Float[Tensor, "b n d"], grid: Grid | None = None) -> Float[Tensor, "b n d"]:
        """Attend.

        Args:
            tokens: in any order.
            grid: rows and columns of the tokens, which are not asked for here.
        """
        batch, count, _ = tokens.shape
        queries, keys, values = self.qkv(tokens).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.mixed(queries, keys, values)
        return self.dropout(self.projection(mixed.transpose(1, 2).reshape(batch, count, -1)))

    def mixed(
        self, queries: Float[Tensor, "b h n k"], keys: Float[Tensor, "b h m k"], values: Float[Tensor, "b h m v"]
    ) -> Float[Tensor, "b h n v"]:
        """About softmax(QKᵀ/√k) V (equations 4 and 5), exponentials and sums in single precision at least."""
        precise = torch.promote_types(queries.dtype, torch.float32)
        device = queries.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            vectors = self.features.to(precise)
            asking = positive_features(queries.to(precise) * self.scale, vectors, together=False)
            asked = positive_features(keys.to(precise) * self.scale, vectors, together=True)
            told = asked.transpose(-2, -1) @ values.to(precise)
            mixed = (asking @ told) / (asking @ asked.sum(-2).unsqueeze(-1))
        return mixed.to(values.dtype)
