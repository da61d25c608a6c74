"""The tokenizer and the chat template of the video target.

As in the embedded picture model the words of the templates are single tokens and everything else falls back to pieces
and bytes; here a number of two digits is one token as well, because a counter is read at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerFast

from mmspec.zoo.video.data import CLIP_TASKS, watch
from mmspec.zoo.vocabulary import ASSISTANT, BOS, EOS, IMAGE, PAD, USER, learn_tokenizer

VIDEO, VISION_START, VISION_END = "<video>", "<|vision_start|>", "<|vision_end|>"
SPECIAL = (PAD, BOS, EOS, IMAGE, VIDEO, VISION_START, VISION_END, USER, ASSISTANT)

# Words take their leading space along, punctuation too; two digits stand together, capitals and line breaks alone.
PIECES = r" ?[A-Z]?[a-z]+| ?[^\sA-Za-z0-9]+|[A-Z]|[0-9]{1,2}|\s|[^\S]"

_SEEN = f"{VISION_START}KIND{VISION_END}"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    f"{{% if item['type'] == 'image' %}}{_SEEN.replace('KIND', IMAGE)}"
    f"{{% elif item['type'] == 'video' %}}{_SEEN.replace('KIND', VIDEO)}"
    "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _corpus(examples: int) -> Iterator[str]:
    for task in CLIP_TASKS:
        for length in ("short", "long"):
            for index in range(examples):
                _, prompt, reference = watch(task, "train", index, length)
                yield prompt
                yield reference


def build_clip_tokenizer(examples: int = 400) -> PreTrainedTokenizerFast:
    """Learn the merges from the training split. The result is the same tokenizer on every machine."""
    return learn_tokenizer(_corpus(examples), PIECES, SPECIAL, image_token=IMAGE, video_token=VIDEO)
