"""Cross-attention: one sequence asks, another one answers.

Vaswani et al. 2017, "Attention Is All You Need", section 3.2.3 ("encoder-decoder attention"). Decoders are made of it:
object queries ask a picture (Carion et al. 2020, DETR), words ask it, points ask it.

    asking (n d) ──► query ────────┐
                                   ▼
    memory (m e) ──► key ──► softmax(QKᵀ/√k + bias) V ──► projection ──► (n d)
    values (m e) ──► value ────────┘

With n tokens asking, m asked and d channels: 2nmd multiplications for the products and 2nd² + 2md² for the projections,
linear in either length.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.attention import ScaledDotProduct
from vitral.layers.linear import Linear

__all__ = ["CrossAttention"]


class CrossAttention(nn.Module):
    """Tokens attending to those of another sequence.

    Args:
        width: channels d of a token that asks.
        heads: number of heads h.
        memory_width: channels e of a token that is asked; None for as many.
        inner: channels of queries, keys and values, all heads together; None for as many as `width`. (Segment Anything asks
            in half the width: Kirillov et al. 2023, appendix A.)
        bias: whether the projections have a bias.
        dropout: probability of dropping an attention weight in training.

    Raises:
        UsageError: the channels cannot be shared among the heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        memory_width: int | None = None,
        inner: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner, memory_width = inner or width, memory_width or width
        if inner % heads:
            raise UsageError(f"{inner} channels of queries cannot be shared among {heads} heads; take a multiple.")
        self.heads = heads
        self.query = Linear(width, inner, bias=bias)
        self.key = Linear(memory_width, inner, bias=bias)
        self.value = Linear(memory_width, inner, bias=bias)
        self.product = ScaledDotProduct((inner // heads) ** -0.5, dropout)
        self.projection = Linear(inner, width, bias=bias)

    def forward(
        self,
        asking: Float[Tensor, "b n d"],
        memory: Float[Tensor, "b m e"],
        values: Float[Tensor, "b m e"] | None = None,
        bias: Float[Tensor, "#b #h #n m"] | Bool[Tensor, "#b #h #n m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Ask.

        Args:
            asking: the tokens that ask.
            memory: the tokens that are asked, by which they are found.
            values: what they tell, where it is something else: DETR adds positions to what tokens are found by, and not
                to what they tell. None for `memory` itself.
            bias: see `ScaledDotProduct`. A mask of padding that is True where memory holds something is handed over as
                `mask[:, None, None, :]`.
        """
        queries = self._split(self.query(asking))
        keys = self._split(self.key(memory))
        told = self._split(self.value(memory if values is None else values))
        mixed: Tensor = self.product(queries, keys, told, bias)
        return self.projection(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Float[Tensor, "b n e"]) -> Float[Tensor, "b h n k"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
