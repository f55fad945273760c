"""Names of classes that checkpoints assume without saying."""

from __future__ import annotations

import functools
from importlib import resources

__all__ = ["imagenet1k_labels"]


@functools.cache
def imagenet1k_labels() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1k in the order of every published classifier.

    Source: ILSVRC 2012 (Russakovsky et al. 2015), WordNet synsets in ascending order, each with its WordNet lemmas.
    """
    text = resources.files("vitral.base").joinpath("imagenet1k.txt").read_text(encoding="utf-8")
    return tuple(line.split("\t")[1] for line in text.splitlines())
