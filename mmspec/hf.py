"""Use from inside transformers: `model.generate(**inputs, custom_generate=mmspec.hf.custom_generate(drafter))`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from .drafters import Drafter
from .errors import MMSpecError
from .generation import generate
from .trees import TreeBuilder
from .verifiers import Verifier

_INPUTS = (
    "attention_mask",
    "pixel_values",
    "image_grid_thw",
    "mm_encoder_outputs",
    "position_ids",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
)


def custom_generate(
    drafter: Drafter, *, tree: TreeBuilder | None = None, verifier: Verifier | None = None, seed: int | None = None
) -> Callable[..., Tensor]:
    """A callable for `generate(custom_generate=...)`: the same loop, with generate's own settings.

    Logits processors, stopping criteria, streamer, `max_new_tokens`, `do_sample` and the sampling parameters are those
    of the call; the drafter's target must be the model that is called.

    Args:
        drafter: made for this model.
        tree, verifier: as in `mmspec.generate`.
        seed: of the draws; by default it is drawn from torch's global generator, which `set_seed` governs.

    Returns:
        a callable whose result is what `generate` returns: `[batch, length]` ids, prompt included, padded on the right
        with the pad token. `drafter.last_output` holds the full `mmspec.Output` of the latest call.
    """

    def run(
        model, input_ids, logits_processor=None, stopping_criteria=None, generation_config=None, streamer=None, **kw
    ):
        if model is not drafter.target.model:
            raise MMSpecError("custom_generate: the drafter was made for another model than the one that is called")
        if generation_config.num_beams > 1 or generation_config.num_return_sequences > 1:
            raise MMSpecError(
                f"custom_generate decodes one sequence per row, not num_beams={generation_config.num_beams}, "
                f"num_return_sequences={generation_config.num_return_sequences}"
            )
        prompt_length = input_ids.shape[1]
        eos = generation_config.eos_token_id
        out = generate(
            drafter.target,
            drafter,
            inputs={"input_ids": input_ids, **{name: kw[name] for name in _INPUTS if kw.get(name) is not None}},
            max_new_tokens=generation_config.max_length - prompt_length,
            tree=tree,
            verifier=verifier,
            # generate has already put the temperature and all the model's other settings among the processors.
            temperature=1.0 if generation_config.do_sample else 0.0,
            model_settings=False,
            logits_processor=[_unpadded(processor) for processor in logits_processor or ()],
            stopping_criteria=_own(stopping_criteria),
            streamer=streamer,
            eos_token_id=[] if eos is None else eos,
            seed=int(torch.randint(2**31, ())) if seed is None else seed,
        )
        drafter.last_output = out
        pad = generation_config.pad_token_id
        longest = max(map(len, out.token_ids))
        rows = [ids + [pad if pad is not None else 0] * (longest - len(ids)) for ids in out.token_ids]
        return torch.cat([input_ids, torch.tensor(rows, device=input_ids.device)], dim=1)

    return run


def _unpadded(processor):
    """A repetition penalty that skips every row's padding is a plain one here: the loop's rows have none."""
    if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        return RepetitionPenaltyLogitsProcessor(processor.penalty)
    return processor


def _own(criteria) -> list:
    """The user's stopping criteria: length and end tokens are the loop's business."""
    from transformers import EosTokenCriteria, MaxLengthCriteria

    return [c for c in criteria or () if not isinstance(c, (MaxLengthCriteria, EosTokenCriteria))]
