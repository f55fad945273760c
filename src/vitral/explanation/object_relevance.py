"""What of a picture speaks for one query, by what attention carries where the query's score rises with it.

Chefer et al. 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers"
(ICCV), sections 3.1 and 3.2: the rules for encoder and decoder, as the authors apply them to DETR. i are the cells of the
picture, q the queries; R^{ii} and R^{qq} begin as the identity, R^{qi} as zero, and with Ā = mean over heads of (∇A ⊙ A)⁺
(equation 5)

    encoder, self-attention:   R^{ii} ← R^{ii} + Ā R^{ii}                                             (equation 6)
    decoder, self-attention:   R^{qq} ← R^{qq} + Ā R^{qq},   R^{qi} ← R^{qi} + Ā R^{qi}               (equations 6 and 7)
    decoder, cross-attention:  R^{qi} ← R^{qi} + (R̄^{qq})ᵀ Ā R̄^{ii}                                   (equation 10)

where R̄ has the rows of R without the identity divided by their sums, and the identity added again (equations 8 and 9). The
rule for what came back from the other side (equation 11) adds nothing, as the picture never asks the queries: R^{iq} is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["carried", "relevance_of_queries", "relevance_of_token"]


def carried(weights: Float[Tensor, "*w h n m"], gradient: Float[Tensor, "*w h n m"]) -> Float[Tensor, "*w n m"]:
    """What a map carries where the score rises with it, the mean of all heads (equation 5), in single precision."""
    return (gradient.float() * weights.detach().float()).clamp(min=0).mean(-3)


def relevance_of_queries(
    encoder: Sequence[Float[Tensor, "m m"]],
    decoder: Sequence[tuple[Float[Tensor, "q q"], Float[Tensor, "q m"]]],
    *,
    picture_first: bool = False,
) -> Float[Tensor, "q m"]:
    """R^{qi}: how relevant every cell is to what became of every query.

    Args:
        encoder: what each self-attention among the cells carries, the first layer first.
        decoder: what each self-attention among the queries, and the cross-attention of the same block, carry.
        picture_first: whether the queries of a block ask the picture before they ask each other.
    """
    first = decoder[0][1]
    queries = torch.eye(first.shape[0], dtype=first.dtype, device=first.device)
    found, normed = torch.zeros_like(first), None
    if encoder:  # else the cells are what they were, and the identity changes nothing
        cells = torch.eye(first.shape[1], dtype=first.dtype, device=first.device)
        for attention in encoder:
            cells = cells + attention @ cells
        normed = _normed(cells)
    for among, across in decoder:
        told = across if normed is None else across @ normed
        if picture_first:
            found = found + _normed(queries).T @ told
        queries, found = queries + among @ queries, found + among @ found
        if not picture_first:
            found = found + _normed(queries).T @ told
    return found


def relevance_of_token(attentions: Sequence[Float[Tensor, "n n"]], token: int) -> Float[Tensor, " n"]:
    """The row of one token in the relevance of a plain encoder: R ← R + Ā R over all layers (equation 6).

    From the last layer to the first only that row is needed: r ← r + r Ā.
    """
    row = torch.zeros_like(attentions[0][0])
    row[token] = 1.0
    for attention in reversed(attentions):
        row = row + row @ attention
    return row


def _normed(relevance: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Equations 8 and 9. A row that took nothing from anywhere stays as it is, where the division would be 0/0."""
    same = torch.eye(len(relevance), dtype=relevance.dtype, device=relevance.device)
    taken = relevance - same
    sums = taken.sum(1, keepdim=True)
    return torch.where(sums > 0, taken / sums.where(sums > 0, 1.0), 0.0) + same
