# Made from 01_first_steps.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # First steps
#
# A vision-language model (VLM) reads a picture and a question and writes an answer, one token per pass through the whole
# model. *Speculative decoding* makes that faster without changing a word: a small *drafter* guesses several tokens, and the
# model, now called the *target*, checks all of them in one pass.
#
# Everything here runs on a small model inside the package: no network, no GPU, seconds on a laptop.

import mmspec
from mmspec import zoo

target = mmspec.load_target("tiny")
image, question = zoo.demo_image(), "Describe the picture."

# The model was trained on pictures like this one.

show(image.resize((240, 240)), "outputs/01_first_steps/04")

# ## One token at a time
#
# Without a drafter this is ordinary decoding. Each *round* is one pass of the target and gives one token.

plain = mmspec.generate(target, None, question, [image], max_new_tokens=160)
print(plain.text[0])
print()
print(len(plain.token_ids[0]), "tokens in", len(plain.stats.rounds), "rounds")

# The prompt's own pass gives the first token, so there is one round less than there are tokens.
#
# ## With a drafter
#
# `tiny/eagle3` is a single layer that reads the target's hidden states and foresees what the target will write. In a
# notebook the answer shows itself: tokens that the drafter guessed are green, those that the target had to add are orange.
# Point at a token to see which round wrote it.

drafter = mmspec.load_drafter("tiny/eagle3", target)
out = mmspec.generate(target, drafter, question, [image], max_new_tokens=160, trace=True)
show(out, "outputs/01_first_steps/08")

# Not similar, but the same tokens:

show(out.token_ids == plain.token_ids, "outputs/01_first_steps/10")

# ## What was gained
#
# The number to look at is `mean_acceptance_length`: tokens per pass of the target, its own included. Plain decoding has 1.
# Seconds depend on the machine and on what else it is doing; passes do not.

for name, one in {"plain": plain, "with a drafter": out}.items():
    stats = one.stats
    print(
        f"{name:15} {len(stats.rounds):4} passes   {stats.mean_acceptance_length:5.2f} tokens per pass   "
        f"{stats.tokens_per_second:6.0f} tokens/s"
    )

# ## One round from inside
#
# `trace=True` keeps what was drafted in every round. This is one of them: from left to right the drafter's guesses grow into
# a tree; the green path is what the target agreed with, and the orange token is its own addition.

show(out.trace[3], "outputs/01_first_steps/14")

# ## As it is written
#
# `stream` gives the pieces as the rounds end, for a chat window, say. A piece here is what one pass of the target gave.

for piece in mmspec.stream(target, drafter, question, [image], max_new_tokens=40):
    print(piece.round, repr(piece.text))

# ## Several at once
#
# A batch is a list of prompts with a list of pictures for each. Rows advance by different amounts in every round, and each
# gets the text that it would get alone.

samples = [zoo.sample(task, "test", 1) for task in ("charts", "questions", "documents")]
batch = mmspec.generate(
    target, drafter, [sample.prompt for sample in samples], [[sample.image] for sample in samples], max_new_tokens=48
)
for sample, text in zip(samples, batch.text, strict=True):
    print(f"> {sample.prompt}\n{text}\n")

# ## Where next
#
# [02](02_anatomy_of_a_round.ipynb) takes a round apart, [03](03_compare_drafters.ipynb) compares drafters,
# [04](04_trees.ipynb) shapes of trees, [05](05_what_the_drafter_sees.ipynb) shows what they see of a picture. Then train a
# drafter ([06](06_train_your_own_eagle.ipynb)), write one ([07](07_write_your_own_drafter.ipynb)), convince yourself that
# sampling is exact too ([08](08_sampling_and_losslessness.ipynb)), and bring your own model ([09](09_your_own_model.ipynb)).
