# Made from 07_write_your_own_drafter.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # Write your own drafter
#
# A drafter need not be a neural network. It is whatever maps the newest token to guesses of the next ones. In this notebook
# we write one in a dozen lines, hold it to the target's text, give it trees, and make it better, without touching the library.

LENGTH = 128  # tokens of an answer at most

import torch

import mmspec
from mmspec import visualization, zoo
from mmspec.drafters import StepDrafter
from mmspec.testing import check_lossless
from mmspec.trees import Chain, DynamicTree

target = mmspec.load_target("tiny")
image = zoo.demo_image()

# ## The idea
#
# Answers are made of turns of phrase. So count, in some example answers, which token followed which. After "upper" comes "left"
# or "right", after "background" a full stop. That table of counts is the whole drafter.
#
# `StepDrafter` grows the trees; we only say what might follow. `expand_root` is asked about the newest token of each row, and
# `expand` about tokens that were drafted already. Both return logits over the vocabulary.

class Bigrams(StepDrafter):
    """Guesses by the last token alone."""

    def __init__(self, target, texts, tree=None):
        super().__init__(target, tree)
        counts = torch.full((target.vocab_size, target.vocab_size), 0.01)
        for text in texts:
            ids = torch.tensor(target.tokenizer.encode(text, add_special_tokens=False))
            counts.index_put_((ids[:-1], ids[1:]), torch.tensor(1.0), accumulate=True)
        self.table = counts.log()

    def expand_root(self, root):  # [batch] -> [batch, vocab]
        return self.table[root]

    def expand(self, block):  # [batch, new] -> [batch, new, vocab]
        return self.table[block.tokens]

# Its examples are descriptions of other pictures. (The target's own answers would be better: see
# [06](06_train_your_own_eagle.ipynb).)

texts = [zoo.sample("scenes", "train", number).reference for number in range(60)]
bigrams = Bigrams(target, texts)


def describe(drafter, tree):
    return mmspec.generate(
        target, drafter, "Describe the picture.", [image], tree=tree, max_new_tokens=LENGTH, trace=True
    )


out = describe(bigrams, Chain(4))
show(out, "outputs/07_write_your_own_drafter/07")

# ## Is it exact?
#
# A drafter cannot change the text, only the time. Unless it has a bug: a tree whose parents are wrong, say, or a hand in the
# target's cache. `check_lossless` compares with plain decoding, token by token: with one picture, two and none, alone and
# in a batch, greedy and sampled.

show(check_lossless(bigrams, max_new_tokens=16), "outputs/07_write_your_own_drafter/09")

# What a mistake looks like: this one loses track of which token is the newest, and hangs its tree below another.

class Careless(Bigrams):
    def draft(self, root):
        return super().draft(root + 1)


try:
    check_lossless(Careless(target, texts), max_new_tokens=16)
except mmspec.MMSpecError as error:
    print(error)

# ## Trees for free
#
# The drafter knows *how* sure it is, so any tree builder works with it. After "a" a bigram cannot know whether something small
# or large, blue or green follows. A tree offers several.

wide = describe(bigrams, DynamicTree(depth=4, top_k=4, total=24))
print(f"chain {out.stats.mean_acceptance_length:.2f}, tree {wide.stats.mean_acceptance_length:.2f} tokens per pass")
show(wide.trace[6], "outputs/07_write_your_own_drafter/13")

# ## A better one
#
# Two tokens say more than one. A node's parent is at hand in `block.parents`: the number of the expanded node above it, of
# which number 0 is the root. So the drafter keeps what it has expanded this round. What it assigns to `self` belongs to one
# request; the loop works on a copy.

class Trigrams(Bigrams):
    """Guesses by the last two tokens, and by the last one where the two were never seen."""

    def __init__(self, target, texts, tree=None):
        super().__init__(target, texts, tree)
        self.after_two = {}
        for text in texts:
            ids = target.tokenizer.encode(text, add_special_tokens=False)
            for first, second, third in zip(ids, ids[1:], ids[2:], strict=False):
                counts = self.after_two.setdefault((first, second), torch.zeros(target.vocab_size))
                counts[third] += 1

    def look_up(self, first, second):
        counts = self.after_two.get((first, second))
        return self.table[second] if counts is None else (counts + 0.01 * self.table[second].softmax(0)).log()

    def expand_root(self, root):
        self.expanded = [[token] for token in root.tolist()]  # per row, tokens by number
        rows = [self.look_up(history[-2], history[-1]) for history in self.context.history]
        return torch.stack(rows)

    def expand(self, block):
        rows = []
        for known, tokens, parents in zip(self.expanded, block.tokens.tolist(), block.parents.tolist(), strict=True):
            rows.append(torch.stack([self.look_up(known[p], t) for p, t in zip(parents, tokens, strict=True)]))
            known += tokens
        return torch.stack(rows)


trigrams = Trigrams(target, texts)
show(check_lossless(trigrams, max_new_tokens=12), "outputs/07_write_your_own_drafter/15")

# Against the drafters of the package, all with the same tree:

tree = DynamicTree(depth=4, top_k=4, total=24)
drafters = {"bigrams": bigrams, "trigrams": trigrams}
drafters |= {name: mmspec.load_drafter(f"tiny/{name}", target) for name in ("text_only", "eagle3")}
outs = {name: describe(drafter, tree) for name, drafter in drafters.items()}
for name, one in outs.items():
    same = one.token_ids == out.token_ids
    print(f"{name:10} {one.stats.mean_acceptance_length:.2f} tokens per pass, same text: {same}")

show(visualization.acceptance_by_position(outs), "outputs/07_write_your_own_drafter/18")

# A table that never saw the picture goes a long way where language is regular, and stops where the picture decides. What
# it lacks is what the heads on the target's hidden states have.
#
# ## From here
#
# - Name the class in a YAML file, and `mmspec generate` and `mmspec bench` know it: `docs/add_your_own.md` has complete files,
#   also for tree shapes, compressors, losses and acceptance rules.
# - A drafter with a cache of its own keeps it in step in `observe(tree, scores, verdict)`.
# - A head on the target's hidden states extends `FeatureDrafter` and can be trained by `mmspec train`.
