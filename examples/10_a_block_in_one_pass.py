# Made from 10_a_block_in_one_pass.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # A block in one pass
#
# EAGLE guesses a token, reads it, and guesses the next one: a pass for every level. DFlash and its kin guess a whole *block* in one
# pass. The price: no place of the block knows what stands in the places before it. Here we look at what such a pass says, at what can
# be made of it, and at two ways to put right what it cannot know.
#
# The embedded model copies charts and pages so surely that any drafter is right about them. Its hardest task is to answer questions, so
# we ask four.

QUESTIONS = 4

import mmspec
from mmspec import visualization, zoo
from mmspec.trees import BestFirstTree, Chain, ConfidenceChain

target = mmspec.load_target("tiny")
drafters = {name: mmspec.load_drafter(f"tiny/{name}", target) for name in ("dflash", "dspark", "eagle3")}
questions = [zoo.sample("questions", "test", number) for number in range(7 - QUESTIONS, 7)]
asked = [one.prompt for one in questions], [[one.image] for one in questions]


def answer(name, tree):
    """The answers to all questions, in one batch."""
    return mmspec.generate(target, drafters[name], *asked, tree=tree, trace=True)


def per_pass(out):
    """Tokens per pass of the target, and drafted nodes per pass."""
    passes = sum(len(out.trace.row(row)) for row in range(QUESTIONS))
    drafted = sum(one.drafted for row in range(QUESTIONS) for one in out.trace.row(row))
    accepted = sum(one.accepted for row in range(QUESTIONS) for one in out.trace.row(row))
    return 1 + accepted / passes, drafted / passes


plain = mmspec.generate(target, None, *asked)
for one, text in zip(questions, plain.text, strict=True):
    print(one.prompt, "->", text)

# ## What one pass says
#
# The block begins with the newest token, the anchor. The other slots hold a mask. Each gives a distribution of its own, a *marginal*:
# what stands at the first place, what at the second, and so on, whatever stands between. Here is the first round of one answer, over the picture
# that it is about: in every column the likeliest tokens, the likeliest on top, as dark as they are likely. The lines are the tree of the
# fifteen likeliest paths through them, and the green ones are what the target kept.

def marginals(one, image):
    """A round of a block drafter: its marginals, and the paths that a tree makes of them, over the picture."""
    drafted, places = [node for node in one.nodes[1:] if not node.bonus], {}
    for node in drafted:
        places.setdefault(node.depth, {})[node.text] = node.drafter
    order = {depth: sorted(told, key=told.get, reverse=True) for depth, told in places.items()}
    spots = [(0, 0), *((node.depth, -order[node.depth].index(node.text)) for node in drafted)]
    limits = -0.5, max(order) + 0.5, -max(map(len, order.values())) + 0.3, 0.7
    plot = visualization.figure(9, 3.4)
    axes = plot.subplots()
    axes.imshow(image, extent=limits, aspect="auto", alpha=0.25)
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none"}
    for node, (x, y) in zip(drafted, spots[1:], strict=True):
        above, kept = spots[node.parent], node.accepted
        color, width = "#009E73" if kept else "#999999", 1 + 2 * kept
        axes.plot((above[0], x), (above[1], y), color=color, linewidth=width, zorder=1)
        shade = (0.75 * (1 - node.drafter),) * 3
        axes.text(x, y, node.text, ha="center", va="center", bbox=box, color=shade, fontsize=9)
    axes.text(0, 0, one.nodes[0].text, ha="center", va="center", bbox=box, weight="bold", fontsize=9)
    axes.set(xlabel="place in the block", yticks=[], xlim=limits[:2], ylim=limits[2:])
    return plot


tree = answer("dflash", BestFirstTree(15))
show(marginals(tree.trace.row(QUESTIONS - 1)[0], questions[-1].image), "outputs/10_a_block_in_one_pass/05")

# ## A chain of the best, and a tree of the likeliest paths
#
# The simplest use is the chain of the likeliest token at each place. It throws away that the second choices are known as well, from the same
# pass. `BestFirstTree` takes the paths whose product of probabilities is largest: no tree of as many nodes has a larger sum.

shapes = {"chain of 16": Chain(16), **{f"tree of {size}": BestFirstTree(size) for size in (8, 16, 32, 63)}}
blocks = {label: answer("dflash", shape) for label, shape in shapes.items()}
for label, out in blocks.items():
    tokens, nodes = per_pass(out)
    same = out.token_ids == plain.token_ids
    print(f"{label:11} {tokens:5.2f} tokens per pass   {nodes:5.1f} nodes   same text: {same}")

# Every row is one pass of the drafter a round. What grows is what the target has to check.
#
# ## What a marginal cannot know
#
# Where two continuations are about equally likely, the places behind mix them: each guesses the best token *on average*, and a chain may
# begin one way and go on another. In the picture above the likeliest second token is
# "middle" once more: the answer may begin with "middle", or with a word before it, and the second place does not know which. The chain of the
# best would write "middle middle"; the tree has "right" too. DSpark corrects this: a small matrix says what a token makes of the next one, so that a level costs
# a product instead of a pass. `DSparkDrafter.plain()` is the same block without its correction.

drafters["dspark, not corrected"] = drafters["dspark"].plain()
corrected = {name: answer(name, Chain(16)) for name in ("dspark, not corrected", "dspark")}
for name, out in corrected.items():
    print(f"{name:22} {per_pass(out)[0]:5.2f} tokens per pass   same text: {out.token_ids == plain.token_ids}")

show(visualization.acceptance_by_position(corrected), "outputs/10_a_block_in_one_pass/09")

# ## Where the confidence cuts
#
# DSpark's third part is a head that says how likely the next guess is accepted, before it is made. `ConfidenceChain` multiplies these estimates
# along the chain, and cuts where the product falls below its threshold: what is cut need not be checked. Below, every round of the four
# answers: how long the chain was (bars), and how much of it was accepted (dots).

cut = answer("dspark", ConfidenceChain(0.4))
rounds = [one for row in range(QUESTIONS) for one in cut.trace.row(row)]

plot = visualization.figure(8, 2.6)
axes = plot.subplots()
axes.bar(range(1, len(rounds) + 1), [one.drafted for one in rounds], color="#E69F00", label="drafted")
axes.plot(range(1, len(rounds) + 1), [one.accepted for one in rounds], "o", color="#0072B2", label="accepted")
axes.set(xlabel="round", ylabel="tokens")
axes.legend(frameon=False, fontsize=8)
show(plot, "outputs/10_a_block_in_one_pass/11")

thresholds = {f"threshold {value}": answer("dspark", ConfidenceChain(value)) for value in (0.1, 0.2, 0.4, 0.6)}
for label, out in {"no cut": corrected["dspark"], **thresholds}.items():
    tokens, nodes = per_pass(out)
    print(
        f"{label:14} {tokens:5.2f} tokens per pass   {nodes:4.1f} nodes   "
        f"{(tokens - 1) / nodes:4.0%} of them accepted   "
        f"same text: {out.token_ids == plain.token_ids}"
    )

# The head never sees the token that it decides about. A chain that dropped a token *because of what it is* would change the
# distribution of sampled text; the tests contain that mistake, and find it.
#
# ## Next to EAGLE-3
#
# EAGLE-3 knows every token above, and pays a pass of its layer for each level.

eagle = answer("eagle3", Chain(12))
rows = {
    "eagle3, chain of 12": (eagle, eagle.stats.mean_levels),
    "dflash, chain of 16": (blocks["chain of 16"], 1),
    "dflash, tree of 32": (blocks["tree of 32"], 1),
    "dspark, chain of 16": (corrected["dspark"], 1),
    "dspark, tree of 32": (answer("dspark", BestFirstTree(32)), 1),
}
for label, (out, passes) in rows.items():
    print(f"{label:20} {per_pass(out)[0]:5.2f} tokens per pass of the target   {passes:3.1f} passes of the drafter")

# What that is in seconds depends on the machine: `mmspec bench` measures it, and `tree=auto` finds the shape that pays. More is in
# `docs/methods/dflash.md`, `docs/methods/dspark.md` and `docs/methods/marginal_trees.md`.
