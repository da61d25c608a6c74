# Made from 03_compare_drafters.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # Compare drafters
#
# Everything that guesses can be a drafter: a table of what was written before, a small language model, a layer on top of the
# target's own hidden states. All of them give the same text. They differ in how often they are right and in what a guess
# costs.

LENGTH = 160  # tokens of an answer at most
PICTURES = 3  # of each task, in the last table

import mmspec
from mmspec import visualization, zoo
from mmspec.drafters import NGramDrafter
from mmspec.trees import Chain

target = mmspec.load_target("tiny")
drafters = {
    "ngram": NGramDrafter(target),  # no model: repeats what followed the same words before
    "text_only": mmspec.load_drafter("tiny/text_only", target),  # one layer that never sees the picture
    "draft_model": mmspec.load_drafter("tiny/draft_model", target),  # two layers that look at the picture themselves
    "eagle": mmspec.load_drafter("tiny/eagle", target),  # one layer on the target's last hidden state
    "eagle3": mmspec.load_drafter("tiny/eagle3", target),  # one layer on hidden states from three depths
}

# ## Something to describe, something to read
#
# Two pictures. The description follows a pattern that a drafter can learn by heart. The letters cannot be guessed from
# the words before them: whoever does not see the picture has no chance.

scene, page = zoo.sample("scenes", "test", 3), zoo.sample("documents", "test", 3)
plot = visualization.figure(5, 2.6)
for axes, sample in zip(plot.subplots(1, 2), (scene, page), strict=True):
    axes.imshow(sample.image)
    axes.set_title(sample.prompt, fontsize=9)
    axes.axis("off")
show(plot, "outputs/03_compare_drafters/05")

# Every drafter proposes a chain of five tokens per round, so that no one has the better tree (`ngram` proposes as it
# likes). The first answer of each is thrown away: it pays for warming up.

def ask(sample, drafter=None):
    tree = None if drafter is None or drafter.tree is None else Chain(5)
    for _ in range(2):
        out = mmspec.generate(target, drafter, sample.prompt, [sample.image], tree=tree, max_new_tokens=LENGTH)
    return out


described = {name: ask(scene, drafter) for name, drafter in [("plain", None), *drafters.items()]}
read = {name: ask(page, drafter) for name, drafter in [("plain", None), *drafters.items()]}

print(f"{'':12} {'describing':>28}    {'reading':>28}")
for name in described:
    cells = []
    for outs in (described, read):
        stats, same = outs[name].stats, outs[name].token_ids == outs["plain"].token_ids
        speedup = stats.tokens_per_second / outs["plain"].stats.tokens_per_second
        cells.append(f"{stats.mean_acceptance_length:5.2f} per pass  {speedup:4.2f}x {'same' if same else 'OTHER'}")
    print(f"{name:12} {cells[0]:>28}    {cells[1]:>28}")

# `per pass` counts tokens per pass of the target, six at most here. `x` is the speed over plain decoding on the machine that
# ran this notebook, in one go: it varies, the tokens per pass do not.
#
# ## Who is right how far ahead
#
# A chain of guesses is kept up to the first wrong one, so every line falls. EAGLE learnt to guess single steps and loses at
# each further one; EAGLE-3 learnt to go on from its own guesses.

show(visualization.acceptance_by_position({name: described[name] for name in drafters}), "outputs/03_compare_drafters/10")

show(visualization.acceptance_by_position({name: read[name] for name in drafters}), "outputs/03_compare_drafters/11")

# The blind drafter knows how descriptions go and is lost on the page. Two layers with eyes of their own are not enough to
# read print; the heads need not read it, because the target's hidden states tell them.
#
# ## Where in the answer
#
# Tokens per pass over the answer: the blind drafter loses wherever the next word depends on the picture.

show(visualization.acceptance_over_time({name: described[name] for name in ("text_only", "eagle3")}), "outputs/03_compare_drafters/13")

# ## What a guess costs
#
# The time per token, cut into the steps of the loop. A drafter buys shorter `score` (fewer passes of the target) with time in
# `draft`. Speed-up needs both: guesses that are right, and guesses that are cheap.

show(visualization.phase_times(described), "outputs/03_compare_drafters/15")

# ## On more than one picture
#
# One answer is an anecdote. A few of each task already tell more; `mmspec bench` does this with repeats, in turns and with
# confidence intervals.

tasks = {task: [zoo.sample(task, "test", number) for number in range(10, 10 + PICTURES)] for task in zoo.TASKS}
print(f"{'':12}" + "".join(f"{task:>12}" for task in tasks))
for name, drafter in drafters.items():
    line = f"{name:12}"
    for samples in tasks.values():
        prompts, images = [sample.prompt for sample in samples], [[sample.image] for sample in samples]
        tree = None if drafter.tree is None else Chain(5)
        out = mmspec.generate(target, drafter, prompts, images, tree=tree, max_new_tokens=min(LENGTH, 96))
        line += f"{out.stats.mean_acceptance_length:12.2f}"
    print(line)
