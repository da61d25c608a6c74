"""Pick slots: the one way in which states and numbers of some slots of each row are taken out of all of them."""

from __future__ import annotations

from torch import Tensor


def pick(states: Tensor, slots: Tensor) -> Tensor:
    """Return the states at some slots of every row, in one operation.

    Args:
        states: `[batch, length, hidden]` states, or anything else with one vector per slot.
        slots: `[batch, count]` slots of each row, from 0 to `length - 1`.

    Returns:
        `[batch, count, hidden]` states.
    """
    return states.gather(1, slots[..., None].expand(-1, -1, states.shape[-1]))


def pick_numbers(numbers: Tensor, slots: Tensor) -> Tensor:
    """Return the numbers at some slots of every row, in one operation.

    Args:
        numbers: `[..., batch, length]` numbers, such as positions with axes before the batch.
        slots: `[batch, count]` slots of each row, from 0 to `length - 1`.

    Returns:
        `[..., batch, count]` numbers.
    """
    return numbers.gather(-1, slots.expand(*numbers.shape[:-1], -1))
