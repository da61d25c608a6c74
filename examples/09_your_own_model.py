# Made from 09_your_own_model.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # Your own model
#
# mmspec takes models of `transformers` as they are: LLaVA, Qwen-VL, Gemma 3, InternVL and others, and plain language models
# (`docs/families.md`). This notebook goes the way from a model of yours to an answer, with a drafter that others have
# published.
#
# Cells that say *needs weights* download several gigabytes and want a GPU. They do nothing unless you set `WEIGHTS` below, so
# the notebook can be run from top to bottom as it is. All others run on the embedded model.

WEIGHTS = False  # True: also run the cells that download models of several gigabytes and want a GPU

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import mmspec
from mmspec import zoo
from mmspec.formats import FORMATS
from mmspec.hf import custom_generate

image = zoo.demo_image()

# ## 1. Load it
#
# A name, a folder or a hub id; keyword arguments go to `from_pretrained`.

target = mmspec.load_target("tiny")
show((type(target.model).__name__, type(target.processor).__name__), "outputs/09_your_own_model/05")

# Needs weights (and Qwen-VL's processor needs torchvision):

if WEIGHTS:
    llava = mmspec.load_target("llava-hf/llava-1.5-7b-hf", dtype="float16", device="cuda")
    qwen = mmspec.load_target("Qwen/Qwen2.5-VL-7B-Instruct", dtype="bfloat16", device="cuda")

# A model that is in memory already, such as one that you have fine-tuned, is wrapped as it is. Nothing is copied.

same = mmspec.Target(target.model, target.processor)
show(same.model is target.model, "outputs/09_your_own_model/09")

# ## 2. Check it
#
# Speculative decoding reads trees, with masks and positions that no one else asks of a model. `target.check()` compares every
# node of some trees with what the model's own `generate` computes step by step, with pictures and in a batch. It takes some
# fifty passes and raises if anything differs by more than rounding. Run it once for a model that you have not used here
# before, and in float32 if it fits.

print(target.check())

# On the command line this is `mmspec check MODEL`. A model of an architecture that is not listed checks itself when it is loaded,
# and is refused if it fails.
#
# ## 3. A published drafter
#
# Authors publish their heads in formats of their own. These are recognised by their weights' names:

show([checkpoint.name for checkpoint in FORMATS], "outputs/09_your_own_model/13")

# Needs weights. A drafter belongs to *one* target: it was trained on that model's hidden states.

out = "not run: it needs weights"
if WEIGHTS:
    vispec = mmspec.load_drafter("JLKang/ViSpec-llava-1.5-7b-hf", llava)
    out = mmspec.generate(llava, vispec, "What is in this picture?", [image], max_new_tokens=128)
show(out, "outputs/09_your_own_model/15")

out = "not run: it needs weights"
if WEIGHTS:
    eagle3 = mmspec.load_drafter("Rayzl/qwen2.5-vl-7b-eagle3-sgl", qwen)
    out = mmspec.generate(qwen, eagle3, "What is in this picture?", [image], max_new_tokens=128)
show(out, "outputs/09_your_own_model/16")

# What was recognised, and every size and switch, is in `config()`. No published weights were at hand where this library was
# written: the formats follow the authors' code and are tested with random weights. If a head accepts little, look there first.

drafter = mmspec.load_drafter("tiny/vispec", target)
print(json.dumps(drafter.config(), indent=1))

# Once loaded, a drafter can be kept in this library's own form: two files, safetensors and JSON.

with TemporaryDirectory() as folder:
    drafter.save_pretrained(folder)
    print({path.name: f"{path.stat().st_size / 1024:.0f} KB" for path in sorted(Path(folder).iterdir())})
    again = mmspec.load_drafter(folder, target)

options = {"prompt": "Describe the picture.", "images": [image], "max_new_tokens": 64}
answers = [mmspec.generate(target, one, **options) for one in (drafter, again)]
show(answers[0].token_ids == answers[1].token_ids, "outputs/09_your_own_model/20")

# ## 4. What does not fit is refused
#
# A drafter for another target is not an error that shows: the text would be right, and slow. So it is refused where it can be
# known.

try:
    mmspec.generate(mmspec.load_target("tiny"), drafter, "Describe the picture.", [image])
except mmspec.MMSpecError as error:
    print(error)

# ## 5. Inputs
#
# `prompt=` and `images=` go through the model's processor and chat template. With `inputs=` you hand over what the processor
# returned, pixel values and all. Videos and sounds have arguments of their own, `videos=` and `audio=` (`docs/asking.md`).

conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the picture."}]}]
text = target.processor.apply_chat_template(conversation, add_generation_prompt=True)
inputs = target.processor(text=text, images=[image], return_tensors="pt")
by_inputs = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=64)
show(by_inputs.token_ids == answers[0].token_ids, "outputs/09_your_own_model/24")

# ## 6. From inside transformers
#
# Where your code calls `model.generate`, it can go on doing so.

ids = target.model.generate(**inputs, custom_generate=custom_generate(drafter), max_new_tokens=64)
show(ids[0, inputs["input_ids"].shape[1] :].tolist() == by_inputs.token_ids[0], "outputs/09_your_own_model/26")

# ## 7. No drafter for your model?
#
# - The n-gram drafter needs no training: it repeats what was written before, which pays for transcripts and code.
# - A small model of the same family drafts as it is: `load_drafter("HuggingFaceTB/SmolVLM-256M-Instruct", target)` for a larger
#   SmolVLM, for instance. It must share the tokenizer.
# - Train one on your target's own answers: [06](06_train_your_own_eagle.ipynb), `docs/training.md`.

ngram = mmspec.drafters.NGramDrafter(target)
chart = zoo.sample("charts", "test", 3)
out = mmspec.generate(target, ngram, chart.prompt, [chart.image], max_new_tokens=96)
print(f"{out.stats.mean_acceptance_length:.2f} tokens per pass")
show(out, "outputs/09_your_own_model/28")
