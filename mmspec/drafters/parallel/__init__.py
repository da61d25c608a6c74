"""Drafting ahead: a draft model writes the next window while the target judges this one."""

from .drafter import ParallelDrafter

__all__ = ["ParallelDrafter"]
