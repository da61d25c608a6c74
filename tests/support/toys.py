"""Small stand-ins for tests of the loop: a drafter with a script, and tokenizers over the tiny models' vocabulary."""

from __future__ import annotations

import torch
from models import PAD, VOCAB
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from mmspec.drafters import Drafter
from mmspec.models import hooks
from mmspec.models.states import LAST
from mmspec.tree import DraftTree

END = 1


class Scripted(Drafter):
    """Knows the text that the target is going to write, and drafts it.

    Args:
        target: the model to draft for.
        texts: per row, the whole continuation.
        right: how many tokens of each draft are right; the ones after them are wrong.
        length: tokens per draft.
        siblings: wrong siblings put before every right node, so that the path runs through later children.
        fail: an exception to raise, and the name of the method and of the call in which to raise it.
    """

    feature_layers = (1, LAST)

    def __init__(self, target, texts, right=99, length=3, siblings=0, fail=None):
        super().__init__(target)
        self.texts, self.right, self.length, self.siblings, self.fail = texts, right, length, siblings, fail

    def start(self, context):
        self.context, self.calls = context, {"draft": 0, "observe": 0}
        self._maybe_fail("start")

    def draft(self, root):
        self._maybe_fail("draft")
        vocab = self.target.vocab_size
        rows = []
        for row, (history, text) in enumerate(zip(self.context.history, self.texts, strict=True)):
            assert root[row] == history[-1] or not self.context.active[row]
            done = len(history) - self.context.request.lengths[row]
            future = (text[done:] + [0] * self.length)[: self.length]
            drafted = [t if i < self.right else (t + 1) % vocab for i, t in enumerate(future)]
            tokens, parents, parent = [history[-1]], [-1], 0
            for token in drafted:
                for wrong in range(self.siblings):
                    tokens.append((token + 1 + wrong) % vocab)
                    parents.append(parent)
                tokens.append(token)
                parents.append(parent)
                parent = len(tokens) - 1
            rows.append((tokens, parents))
        tokens, parents = (torch.tensor(column) for column in zip(*rows, strict=True))
        return DraftTree(tokens, parents, self.length)

    def observe(self, tree, scores, verdict):
        self._maybe_fail("observe")
        assert set(scores.features) == set(self.feature_layers)

    def _maybe_fail(self, method):
        self.calls[method] = self.calls.get(method, 0) + 1
        if self.fail is not None and self.fail[1:] == (method, self.calls[method]):
            raise self.fail[0]


def cut(text: list[int], limit: int, ends=()) -> list[int]:
    """What one-by-one decoding would have kept of a text."""
    for index, token in enumerate(text[:limit]):
        if token in ends:
            return text[: index + 1]
    return text[:limit]


def byte_tokenizer(**options) -> PreTrainedTokenizerFast:
    """Byte-level, as GPT-2's and Qwen's: 61 tokens, many of them a part of a character."""
    to_byte = {byte: char for char, byte in _byte_characters().items()}
    pieces = [*"abcdefghijklmnopqrst.,'!?\n ", " the", " a", "ing", " .", " ,", "n't", "ab", "cd", " n't"]
    tokens = ["<pad>", "</s>", *("".join(to_byte[b] for b in piece.encode()) for piece in pieces)]
    for character in "é€😀漢ß":
        tokens += [to_byte[b] for b in character.encode() if to_byte[b] not in tokens]
    tokens += [f"<extra{i}>" for i in range(VOCAB - len(tokens))]
    vocab = {token: i for i, token in enumerate(tokens)}
    assert len(vocab) == VOCAB and tokens[PAD] == "<pad>" and tokens[END] == "</s>"
    tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer, **options)


def piece_tokenizer(**options) -> PreTrainedTokenizerFast:
    """Sentence pieces with byte fallback, as Llama-2's: the first piece loses its leading space."""
    tokens = ["<pad>", "</s>", "▁", "▁the", "▁a", "ing", *"abcdefghijklmnopqrst"]
    tokens += [f"<0x{byte:02X}>" for byte in dict.fromkeys("é€😀".encode())]
    tokens += [f"<extra{i}>" for i in range(VOCAB - len(tokens))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(tokenizer, **options)


def _fast(tokenizer: Tokenizer, **options) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", **options)


def _byte_characters() -> dict[str, int]:
    """The printable characters that byte-level tokenizers write bytes as."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


class PrefixRule(LogitsProcessor):
    """Depends on the prefix: bars the newest token, and favours the token one above the second newest."""

    def __call__(self, input_ids, scores):
        scores = scores.scatter(1, input_ids[:, -1:], float("-inf"))
        return scores.scatter_add(1, (input_ids[:, -2:-1] + 1) % scores.shape[1], torch.full((len(scores), 1), 4.0))


def hooks_of(*modules: torch.nn.Module) -> int:
    """Hooks left on modules and their children, and whoever listens through the quiet ones of `mmspec.models.hooks`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    each = [
        hook for top in modules for module in top.modules() for kind in kinds for hook in vars(module)[kind].values()
    ]
    return sum(hook not in hooks.QUIET for hook in each) + len(hooks.LISTENING.get())
