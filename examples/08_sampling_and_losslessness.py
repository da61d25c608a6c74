# Made from 08_sampling_and_losslessness.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # Sampling and losslessness
#
# With greedy decoding "the text stays the same" is easily checked: compare the tokens. When the target *samples*, there is no
# one text. What has to stay the same is the **distribution**: every text must be as likely as without a drafter. Can that be
# so, if a drafter puts words into the target's mouth? This notebook counts.

ROWS = 64  # answers of one seed, in a batch
SEEDS = 8

from collections import Counter

import torch

import mmspec
from mmspec import visualization, zoo
from mmspec.inputs import prepare
from mmspec.trees import Chain
from mmspec.verifiers import Greedy, PointMassSampling, RejectionSampling, follow

target = mmspec.load_target("tiny")
drafter = mmspec.load_drafter("tiny/text_only", target)
image = zoo.demo_image()

# ## An open choice
#
# Where has this target a choice? Its first sentence is nearly fixed; how the second one begins is not. Temperature 1,
# a few seeds:

for seed in range(4):
    out = mmspec.generate(target, None, "Describe the picture.", [image], max_new_tokens=22, temperature=1.0, seed=seed)
    print(seed, out.text[0])

# ## Same seed, same text
#
# The default rule, `PointMassSampling`, ties every draw to a seed and a position: the target draws its token as it would
# have without a drafter, and a guess counts if it *is* that token. So the very same sample comes out, only sooner.

options = {"max_new_tokens": 60, "temperature": 1.0, "seed": 3}
alone = mmspec.generate(target, None, "Describe the picture.", [image], **options)
helped = mmspec.generate(target, drafter, "Describe the picture.", [image], **options)
print(alone.token_ids == helped.token_ids, f"{helped.stats.mean_acceptance_length:.2f} tokens per pass")

# ## The classic rule
#
# Speculative sampling as it was published draws the guess from the drafter's distribution q, keeps it with probability
# min(1, p / q), and where it refuses draws from what is left of p. It gives *another* sample of the same distribution. To see
# that, one has to count: hundreds of answers, and how each begins its second sentence. The rows of a batch are independent
# samples.

batch = prepare(target, ["Describe the picture."] * ROWS, [[image]] * ROWS)


def count(drafter=None, verifier=None, first_seed=0):
    """How often the second sentence begins with each word."""
    words = Counter()
    for seed in range(first_seed, first_seed + SEEDS):
        out = mmspec.generate(
            target,
            drafter,
            inputs=batch,
            tree=Chain(3) if drafter else None,
            verifier=verifier,
            max_new_tokens=20,
            temperature=1.0,
            seed=seed,
        )
        for text in out.text:
            words[(text.partition(". ")[2].split() or ["(later)"])[0]] += 1
    return words


counts = {
    "plain": count(first_seed=0),
    "plain, other seeds": count(first_seed=100),
    "PointMassSampling": count(drafter, PointMassSampling(), first_seed=200),
    "RejectionSampling": count(drafter, RejectionSampling(), first_seed=300),
}

# ## A rule that is wrong
#
# For comparison, a tempting shortcut: keep the guess if the target finds it *reasonable*, here whenever it gives it at least
# 20 %. More guesses are kept. What does it do to the text?

class Lenient(PointMassSampling):
    """Keeps a guess that the target gives at least 20 %, whatever the target drew."""

    lossless = False

    def verify(self, tree, scores):
        noise = self.noise.peek(tree.max_depth + 1)
        logits = self.processed(tree, scores)
        choices = (logits + noise).argmax(-1)
        guesses = tree.tokens[:, 1:]  # of a chain: the guess after each node but the last
        p = logits[:, :-1].softmax(-1).gather(-1, guesses[..., None])[..., 0]
        choices[:, :-1] = torch.where(p >= 0.2, guesses, choices[:, :-1])
        verdict = follow(tree, choices)
        self.noise.consume(verdict.length.tolist())
        return verdict


counts["Lenient (wrong)"] = count(drafter, Lenient(), first_seed=400)

# ## The histogram

total = ROWS * SEEDS
words = [word for word, _ in sum(counts.values(), Counter()).most_common(5)]
plot = visualization.figure(7.5, 3.2)
axes = plot.subplots()
colours = ["#000000", "#888888", "#009E73", "#0072B2", "#D55E00"]
for number, (name, found) in enumerate(counts.items()):
    shares = [found[word] / total for word in words]
    noise = [(share * (1 - share) / total) ** 0.5 for share in shares]  # one standard error
    places = [index + 0.16 * (number - 2) for index in range(len(words))]
    axes.bar(places, shares, width=0.15, yerr=noise, color=colours[number], label=name)
axes.set_xticks(range(len(words)), words)
axes.set_ylabel(f"share of {total} answers")
axes.set_title("how the second sentence begins", loc="left", fontsize=11)
axes.legend(frameon=False, fontsize=8)
show(plot, "outputs/08_sampling_and_losslessness/13")

# As a number: the *total variation distance* from plain sampling, half the sum of all differences of shares. The second row
# says how large it is by chance alone, between two runs of plain sampling.

def distance(one, other):
    return sum(abs(one[word] - other[word]) for word in one | other) / 2 / total


for name, found in counts.items():
    print(f"{name:20} {distance(found, counts['plain']):.3f}")

# The two rules that claim to be lossless are about as far from plain sampling as plain sampling is from itself. The shortcut made
# the likeliest word likelier still: it changed the model.
#
# A verifier says in `lossless` what it claims, and the library's tests hold it to that. Rules are also refused where they do
# not apply:

try:
    mmspec.generate(target, drafter, "Describe the picture.", [image], verifier=Greedy(), temperature=1.0)
except mmspec.MMSpecError as error:
    print(error)

# Why is the shortcut not caught by looking at texts? Because each of them is a sensible text. Distributions have to be counted,
# or proved: `docs/add_your_own.md` says what `check_lossless` can see and what it cannot.
