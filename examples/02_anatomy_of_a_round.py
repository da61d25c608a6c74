# Made from 02_anatomy_of_a_round.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # Anatomy of a round
#
# Speculative decoding is a loop of five steps: **draft**, **score**, **verify**, **commit**, **observe**. `mmspec.generate`
# runs it for you. Here we run it by hand, with the same objects, and look at what passes from step to step.

import time

import torch

import mmspec
from mmspec import visualization, zoo
from mmspec.decoding.sampling import LogitsPipeline
from mmspec.inputs import prepare
from mmspec.tree import DraftTree
from mmspec.trees import DynamicTree, Proposals
from mmspec.verifiers import Greedy

torch.set_grad_enabled(False)

target = mmspec.load_target("tiny")
drafter = mmspec.load_drafter("tiny/eagle3", target).fork(DynamicTree(depth=4, top_k=3, total=12))
decode = target.tokenizer.decode

# ## Before the first round: the prefill
#
# The prompt is words and a picture. The vision tower turns the picture into 144 *visual tokens*, which stand among the
# words. One pass over all of them fills the KV cache.

request = prepare(target, "Describe the picture.", [zoo.demo_image()])
vision = target.encode(request)
context = target.prefill(request, vision, capacity=400, feature_layers=drafter.feature_layers)

visual = int(target.family.is_visual(request.inputs["input_ids"]).sum())
print(f"{request.lengths[0]} tokens in the prompt, {visual} of them visual")

# The drafter is small because it need not understand the prompt by itself: it reads *features*, hidden states of the target
# from several depths, one vector per token.

show({layer: tuple(states.shape) for layer, states in context.features.items()}, "outputs/02_anatomy_of_a_round/06")

# The prefill also says what the first token is. It becomes the **root** of the first tree: written, but not yet in the
# target's cache.

verifier = Greedy().fork_for(context, LogitsPipeline(), seed=0)
root = verifier.first_token(context)
context.history[0].append(int(root))
context.proposals = Proposals()
drafter.start(context)
show(repr(decode(root)), "outputs/02_anatomy_of_a_round/08")

# ## 1. Draft
#
# The drafter proposes what might follow, as a tree: where it is unsure it offers several continuations. A tree is two lists,
# the tokens and the number of each token's parent.

tree = drafter.draft(root)
print("tokens ", tree.tokens[0].tolist())
print("parents", tree.parents[0].tolist())
print()
print(tree.draw(lambda token: decode([token])))

# `p` is the drafter's probability of a token after its parent. How many shapes there are it does not know for sure, so the
# tree holds several numbers.
#
# ## 2. Score
#
# The target reads the whole tree in **one pass**. A mask sees to it that every node looks at the prompt and at its own
# ancestors, and at nothing else, so each branch is read as if it stood alone. Row i of the picture shows what node i sees of
# the tree.

plot = visualization.figure(4.2, 3.8)
axes = plot.subplots()
axes.imshow(tree.ancestors[0].numpy(), cmap="Greens", vmin=0, vmax=1.4)
labels = [decode([token]).strip() or repr(decode([token])) for token in tree.tokens[0].tolist()]
axes.set_yticks(range(tree.num_nodes), [f"{label} {number}" for number, label in enumerate(labels)])
axes.set_xticks(range(tree.num_nodes))
axes.set_title("what each node sees", loc="left", fontsize=11)
show(plot, "outputs/02_anatomy_of_a_round/12")

# The pass gives the target's opinion on the next token after *every* node: `[batch, nodes, vocabulary]`.

scores = context.score(tree)
show(tuple(scores.logits.shape), "outputs/02_anatomy_of_a_round/14")

# This is where the time is saved: a pass over twelve nodes does not cost twelve times a pass over one, because much of it is
# reading the weights. On a GPU with a large model the two cost nearly the same.

def milliseconds(one):
    start = time.perf_counter()
    context.score(one)
    return 1000 * (time.perf_counter() - start)


single = DraftTree.root_only(root)
times = [(milliseconds(single), milliseconds(tree)) for _ in range(100)]  # in turns, because machines are busy
print("1 node:   {:.1f} ms\n12 nodes: {:.1f} ms, at best".format(*map(min, zip(*times, strict=True))))

# ## 3. Verify
#
# From the root, the verifier follows the target's own choice as long as the tree holds it. Where the tree ends, the target's
# choice is taken all the same: the **bonus** token. So a round gives at least one token, and a wrong guess is never kept.
# Here the second guess for the number was the right one; a single chain of guesses would have ended there.

verdict = verifier.verify(tree, scores)
path = verdict.path[0, : verdict.length[0]].tolist()
print("path of nodes", path, "->", [decode([token]) for token in tree.tokens[0, path].tolist()])
print("bonus        ", repr(decode(verdict.bonus)))

# ## 4. Commit, 5. Observe
#
# The cache keeps the entries of the path and drops the other branches. The drafter hears the verdict, and replaces its own
# guesses of hidden states by the true ones. The bonus is the next root.

emitted = context.commit(tree, verdict)
drafter.observe(tree, scores, verdict)
root = verdict.bonus
print("emitted", [decode([token]) for token in emitted[0]])

# ## And again
#
# These lines are the loop. Every drafter, tree shape and acceptance rule is a choice of what stands behind these calls.

for number in range(2, 7):
    tree = drafter.draft(root)
    scores = context.score(tree)
    verdict = verifier.verify(tree, scores)
    emitted = context.commit(tree, verdict)
    drafter.observe(tree, scores, verdict)
    root = verdict.bonus
    print(f"round {number}: {tree.num_nodes - 1} drafted, {len(emitted[0]) - 1} kept: {decode(emitted[0])!r}")

# ## The same, the short way
#
# `generate` does all of this, and `trace=True` keeps every tree. In a terminal, `print` shows one as text: q is the drafter's
# probability, p the target's.

out = mmspec.generate(
    target, drafter, "Describe the picture.", [zoo.demo_image()], max_new_tokens=len(context.history[0]), trace=True
)
written = context.history[0][request.lengths[0] :]
print("same tokens as by hand:", out.token_ids[0][: len(written)] == written)
print()
print(out.trace[1])

# A look at all rounds: how many tokens each pass of the target gave. Rounds that end early mark places where the text
# could have gone on otherwise.

show(visualization.acceptance_over_time({"eagle3": out}), "outputs/02_anatomy_of_a_round/26")
