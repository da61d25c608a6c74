"""Make seeds of words: the one way in which a purpose, a row or an answer gets random numbers of its own."""

from __future__ import annotations

import hashlib

import torch


def seed_from(words: str) -> int:
    """Return a seed that depends on the words alone, from 0 to 2**64 - 1, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


def random_stream(device: torch.device, seed: int, purpose: str) -> torch.Generator:
    """Return a random generator for one purpose within a request. Streams of different purposes or seeds share no
    draws. With plain seeds such as `seed + row`, the noise of one stream would be that of another, and draws that must
    be independent would be equal."""
    return torch.Generator(device).manual_seed(seed_from(f"{seed} {purpose}"))
