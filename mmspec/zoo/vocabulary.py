"""The tokenizer, the chat template and the processor of the tiny model, built from scratch.

The tokenizer is a byte-level BPE: the words of the task templates are single tokens, anything else falls back to pieces
and bytes, so every text survives encoding and decoding. Digits and capitals outside words are always tokens of their
own, which keeps transcription honest: one token, one character to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from mmspec.zoo.data import TASKS, sample
from mmspec.zoo.drawing import PATCH, SIZE

VOCABULARY_SIZE = 768
BOS, EOS, PAD, IMAGE, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<image>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BOS, EOS, IMAGE, USER, ASSISTANT)

# Words take their leading space along, punctuation too; digits, capitals and line breaks stand alone.
PIECES = r" ?[A-Z]?[a-z]+| ?[^\sA-Za-z0-9]+|[A-Z]|[0-9]|\s|[^\S]"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image>{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _corpus(examples: int) -> Iterator[str]:
    for task in TASKS:
        for index in range(examples):
            _, prompt, reference = sample(task, "train", index)
            yield prompt
            yield reference


def learn_tokenizer(
    corpus: Iterable[str], pieces: str, special: tuple[str, ...], **tokens: str
) -> PreTrainedTokenizerFast:
    """Learn the merges of a byte-level BPE, whose words take the place of single tokens.

    Args:
        corpus: texts to learn from.
        pieces: regular expression of what a token may span.
        special: tokens with a meaning of their own, first of all that of padding.
        tokens: names that the tokenizer knows some of them by, such as `image_token`.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=tokens,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        padding_side="left",
    )


def build_tokenizer(examples: int = 1500) -> PreTrainedTokenizerFast:
    """Learn the merges from the training split. The result is the same tokenizer on every machine."""
    return learn_tokenizer(_corpus(examples), PIECES, SPECIAL, image_token=IMAGE)


def kept_tokenizer(
    folder: Path, build: Callable[[], PreTrainedTokenizerFast] = build_tokenizer
) -> PreTrainedTokenizerFast:
    """Return the tokenizer saved in a folder, built and saved first if there is none: a run keeps the one it began
    with."""
    if not (folder / "tokenizer.json").exists():
        build().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)  # a list belongs to a list of tokens
    return found


def build_processor(tokenizer: PreTrainedTokenizerFast | None = None) -> LlavaProcessor:
    """Return the processor that a user calls: it turns text and pictures into model inputs."""
    image_processor = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer if tokenizer is not None else build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the "default" strategy drops again
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
