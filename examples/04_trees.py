# Made from 04_trees.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # Trees
#
# A drafter says how likely each next token is. A *tree builder* decides what to make of that: one long chain, many short
# branches, or whatever the drafter's confidence suggests. The text never depends on it. The number of passes does.

import mmspec
from mmspec import visualization, zoo
from mmspec.trees import Chain, ConfidenceTree, DynamicTree, SageTree, StaticTree

target = mmspec.load_target("tiny")
drafter = mmspec.load_drafter("tiny/eagle", target)
scene = zoo.sample("scenes", "test", 3)


def describe(tree):
    return mmspec.generate(target, drafter, scene.prompt, [scene.image], tree=tree, max_new_tokens=96, trace=True)

# ## The chain
#
# One guess after the other. Cheap, and lost at the first wrong token, as in this round: after "orange" the drafter expected
# another shape.

chain = describe(Chain(5))
show(chain.trace[8], "outputs/04_trees/04")

# ## The static tree
#
# The same shape in every round: here the four best guesses for the next token, the two best after the best of them, and a
# chain below. A wrong first guess no longer ends the round if a later one was right. But most nodes lie where no one goes.

static = describe(StaticTree(["0", "1", "2", "3", "00", "01", "10", "000", "0000"]))
show(static.trace[17], "outputs/04_trees/06")

# ## The dynamic tree
#
# EAGLE-2 puts the nodes where the drafter believes in them: of all candidates the most probable *paths* are kept. The edges
# are as thick as the drafter is sure.

dynamic = describe(DynamicTree(depth=5, top_k=4, total=12))
show(dynamic.trace[13], "outputs/04_trees/08")

# ## The confidence tree
#
# Spec-LLaVA's idea: one child where the drafter is certain, several where it hesitates. A certain drafter gets a chain, and
# the nodes that this saves need not be verified at all.

confident = describe(ConfidenceTree(certainty=0.8, branches=4, depth=5, total=16))
show(confident.trace[7], "outputs/04_trees/10")

# ## Side by side
#
# Same drafter, same text. `nodes` is what the target has to check per pass, `levels` how often the drafter has to run.

answers = {"chain": chain, "static": static, "dynamic": dynamic, "confidence": confident}
for name, out in answers.items():
    stats = out.stats
    nodes = stats.num_draft_tokens / stats.num_spec_steps
    print(
        f"{name:11} {stats.mean_acceptance_length:5.2f} tokens per pass   {nodes:5.1f} nodes   "
        f"{stats.mean_levels:4.1f} levels   same text: {out.token_ids == chain.token_ids}"
    )

show(visualization.acceptance_by_position(answers), "outputs/04_trees/13")

# ## SAGE: a shape that follows the text
#
# SAGE looks at the entropy of the drafter's distribution in one round and shapes the next tree by it: deep and narrow where
# the drafter knows what comes, shallow and wide where it does not.
#
# To see that we need an easy and a hard text. `tiny/hivis` never sees the picture itself, only the target's hidden states
# at the words. That is enough to describe a scene. It is not enough to read out a page.

hidden = mmspec.load_drafter("tiny/hivis", target)
page = zoo.sample("documents", "test", 3)
sage = {
    name: mmspec.generate(target, hidden, sample.prompt, [sample.image], tree=SageTree(), max_new_tokens=96, trace=True)
    for name, sample in {"easy: a scene": scene, "hard: a page": page}.items()
}

# A round in the middle of the easy text:

show(sage["easy: a scene"].trace[5], "outputs/04_trees/17")

# And one of the hard text:

show(sage["hard: a page"].trace[8], "outputs/04_trees/19")

# Over the whole answers, round by round:

plot = visualization.figure(7.5, 3)
for axes, what in zip(plot.subplots(1, 2), ("depth", "drafted"), strict=True):
    for name, out in sage.items():
        axes.plot([getattr(one, what) for one in out.trace], "o-", markersize=3, label=name)
    axes.set(xlabel="round", ylim=(0, None))
    axes.set_title({"depth": "levels", "drafted": "drafted nodes"}[what], loc="left", fontsize=11)
axes.legend(frameon=False, fontsize=8)
show(plot, "outputs/04_trees/21")

for name, out in sage.items():
    stats = out.stats
    print(
        f"{name:14} {stats.mean_acceptance_length:5.2f} tokens per pass   {stats.mean_levels:4.1f} levels   "
        f"{stats.num_draft_tokens / stats.num_spec_steps:5.1f} nodes"
    )

# ## Where guessing is hard
#
# Plain decoding shows how open the target's own choice was at every token: its entropy, zero where it is sure. The dots are
# the places where the chain's guesses ended.

plain = mmspec.generate(target, None, scene.prompt, [scene.image], max_new_tokens=96, trace=True)
entropy = [one.entropy for one in plain.trace]  # of the choice of token 2, 3, ...
written, ends = 1, []
for one in chain.trace:
    written += one.accepted + 1
    if one.accepted < one.drafted and written <= len(entropy):
        ends.append(written)

plot = visualization.figure(7.5, 2.6)
axes = plot.subplots()
axes.bar(range(2, len(entropy) + 2), entropy, width=1.0, color="#E69F00", label="entropy of the target")
axes.plot(ends, [entropy[end - 2] for end in ends], "o", color="#0072B2", label="the chain's guesses end here")
axes.set(xlabel="token of the answer", ylabel="nats")
axes.legend(frameon=False, fontsize=8)
show(plot, "outputs/04_trees/24")

# Most of the tall bars are beginnings of sentences, where several words would do. The target takes the likeliest, and the
# drafter foresees that. Guesses end where the target is sure and the drafter is not: where the picture decides which shape,
# which place. A tree helps there, by offering two.
#
# ## Which one is fastest?
#
# That depends on what a pass costs on your machine. `tree=auto` measures it and chooses: see
# `mmspec.speed.AutoTree` and `docs/speed.md`.
