"""Chance that is a function of whole numbers: what a sample is, and nothing that happened before it.

What is drawn for (seed, epoch, index, repeat) depends neither on the batch size nor on how many processes read, nor on where
a run was interrupted.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from vitral.errors import UsageError

__all__ = ["generator_of", "seed_of"]


class _Digest(ISeedSequence):
    """256 hashed bits in the place where numpy expects the seed of a PCG64: its state and its increment."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return np.frombuffer(self.digest, np.dtype(dtype).newbyteorder("<"), n_words).astype(dtype)


def generator_of(*key: int) -> np.random.Generator:
    """The generator that belongs to whole numbers such as (seed, epoch, index, repeat).

    The key is hashed (BLAKE2b, RFC 7693, 256 bits), and the hash is the whole state of a PCG64 (O'Neill 2014). Any two keys,
    also of different lengths, give streams that have nothing to do with each other; equal keys give the same stream on
    every machine.

    Args:
        *key: whole numbers from 0 to 2**64 - 1, at least one.

    Raises:
        UsageError: no number, one that is not whole, or one out of range.
    """
    try:
        packed = struct.pack(f"<{len(key)}Q", *key)
    except struct.error as error:
        raise UsageError(f"A generator's key must be whole numbers from 0 to 2**64 - 1; {key!r} came.") from error
    if not key:
        raise UsageError("A generator's key must be at least one whole number, such as the seed.")
    seed: Any = _Digest(hashlib.blake2b(packed, digest_size=32).digest())
    return np.random.Generator(np.random.PCG64(seed))


def seed_of(*key: int) -> int:
    """A seed for a generator of another library that belongs to whole numbers, in [0, 2**63); see `generator_of`."""
    return int(generator_of(*key).integers(2**63))
