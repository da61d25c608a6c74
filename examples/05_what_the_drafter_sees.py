# Made from 05_what_the_drafter_sees.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # What the drafter sees
#
# Most of a prompt with a picture is the picture: here 144 of some 150 tokens, thousands in large models. The target needs
# them all. Does the drafter? Four methods say no, each in its own way. Whatever a drafter leaves out, the text stays the
# target's: a wrong guess costs time, not truth.

LENGTH = 80  # tokens of an answer at most
PICTURES = 3  # of each task, in the comparison

import mmspec
from mmspec import visualization, zoo
from mmspec.compressors import Pool, Prune

target = mmspec.load_target("tiny")
names = {"eagle": "EAGLE", "dream": "DREAM", "specvlm": "SpecVLM", "vispec": "ViSpec", "hivis": "HiViS"}
drafters = {title: mmspec.load_drafter(f"tiny/{name}", target) for name, title in names.items()}
scene = zoo.sample("scenes", "test", 3)

# ## One picture, five views
#
# What a drafter reads is clear, what it leaves out is grey. The grid is that of the visual tokens.
#
# - **EAGLE** reads every visual token.
# - **DREAM** keeps the three quarters that the target itself looks at.
# - **SpecVLM** lets the question decide how the picture is shortened. *Entries* are what is left: each may stand for several
#   tokens.
# - **ViSpec** asks the picture once: learned queries leave a token of it. The lighter, the more they look.
# - **HiViS** hides the picture. What the target's hidden states at the words say about it must do.

show(visualization.draw_kept(drafters, scene.prompt, scene.image), "outputs/05_what_the_drafter_sees/05")

# ## Another question, another view
#
# SpecVLM's gate reads the target's states of the question. Asked to read out a page it keeps what is there to be read; asked
# about a chart it prefers not to look, having learnt that this head can do without.

page, chart = zoo.sample("documents", "test", 3), zoo.sample("charts", "test", 3)
for sample in (page, chart):
    (kept,) = visualization.kept_tokens(drafters["SpecVLM"], sample.prompt, sample.image)
    print(f"{sample.prompt:36} {kept.entries:4} entries for {kept.tokens} tokens")

show(visualization.draw_kept(drafters, page.prompt, page.image), "outputs/05_what_the_drafter_sees/08")

# ## What it costs to look away
#
# Tokens per pass of the target on three pictures of each task, a dynamic tree for all.

tasks = {task: [zoo.sample(task, "test", number) for number in range(20, 20 + PICTURES)] for task in zoo.TASKS}
lengths = {}
for name, drafter in drafters.items():
    for task, samples in tasks.items():
        prompts, images = [sample.prompt for sample in samples], [[sample.image] for sample in samples]
        out = mmspec.generate(target, drafter, prompts, images, max_new_tokens=LENGTH)
        lengths[name, task] = out.stats.mean_acceptance_length

plot = visualization.figure(7.5, 3)
axes = plot.subplots()
for number, name in enumerate(drafters):
    places = [index + 0.16 * (number - 2) for index in range(len(tasks))]
    axes.bar(places, [lengths[name, task] for task in tasks], width=0.15, label=name)
axes.set_xticks(range(len(tasks)), tasks)
axes.set_ylabel("tokens per pass")
axes.axhline(1, color="black", lw=0.8)
axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
show(plot, "outputs/05_what_the_drafter_sees/10")

print(f"{'':8}" + "".join(f"{task:>12}" for task in tasks))
for name in drafters:
    print(f"{name:8}" + "".join(f"{lengths[name, task]:12.2f}" for task in tasks))

# Scenes are coarse: a glance is enough. Print is fine: who hides the page cannot guess its letters. Which compressor is best is
# a question about your pictures, not about compressors.
#
# ## A view of your own
#
# A compressor without weights fits in front of a drafter that was trained without one. Here two thirds of the visual tokens
# are dropped, evenly, and then those that resemble the question least.

eagle = drafters["EAGLE"]
views = {
    "all": eagle,
    "every third": eagle.with_compressor(Prune(1 / 3, by="uniform")),
    "like the question": eagle.with_compressor(Prune(1 / 3, by="similarity")),
    "means of 3 x 3": eagle.with_compressor(Pool(3)),
}
show(visualization.draw_kept(views, scene.prompt, scene.image), "outputs/05_what_the_drafter_sees/13")

for name, drafter in views.items():
    out = mmspec.generate(target, drafter, page.prompt, [page.image], max_new_tokens=LENGTH)
    print(f"{name:18} {out.stats.mean_acceptance_length:5.2f} tokens per pass on the page")
