"""Leave the pictures out of a prompt whose states and embeddings keep their partners."""

from __future__ import annotations

import torch

from ..models.slots import pick, pick_numbers
from .prompt import DraftPrompt


def text_alone(prompt: DraftPrompt, ends: torch.Tensor, keep_first: bool) -> DraftPrompt:
    """Return a prompt without the slots that hold an entry of a picture, where slot t pairs the state of entry t with
    the embedding of entry t + 1 (Sparrow's text-only attention, arXiv 2602.15318).

    Every slot of text is what it was: the first word behind a picture is still paired with the state of the picture's
    last token, and stands where it stood. That is the difference from `Hide`, which leaves pictures out before anything
    is paired. To attend to this prompt is to attend to the whole one with its visual slots masked, at the cost of the
    text.

    Args:
        prompt: the prompt with all of its entries.
        ends: `[batch]` number of entries of the prompt itself, without padding and answers.
        keep_first: True where the first entry has no slot of its own: it stays then, whatever it is.
    """
    visual, count = prompt.visual, prompt.visual.shape[1]
    columns = torch.arange(count, device=visual.device)
    gone = visual & (columns < ends[:, None])
    if keep_first:
        gone = gone & (columns > 0)
    left = (~gone).sum(1)
    index = gone.to(torch.uint8).sort(dim=1, stable=True).indices[:, : int(left.max())]
    # The state beside the next entry that is left is that of the entry before it, which may be a picture's.
    following = torch.cat([index[:, 1:], torch.full_like(index[:, :1], count)], dim=1)
    following = following.masked_fill(columns[: index.shape[1]] + 1 >= left[:, None], count)
    before, removed = following - 1, gone.sum(1)
    return DraftPrompt(
        pick(prompt.embeds, index),
        pick(prompt.states, before),
        pick_numbers(prompt.positions, index),
        visual.gather(1, index),
        prompt.removed + removed,
        prompt.position_offset + removed,
        None if prompt.origin is None else prompt.origin.gather(1, index),
        None if prompt.summary is None else pick(prompt.summary, before),
        pick_numbers(prompt.positions, before),
    )
