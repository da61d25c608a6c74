"""The embedded model and its drafters: they see, they are exact, and they are what their files say."""

from __future__ import annotations

from functools import cache

import pytest
from covering import covering

import mmspec
from mmspec import zoo
from mmspec.drafters import NGramDrafter
from mmspec.embedded import EMBEDDED, EMBEDDED_TARGETS
from mmspec.inputs import prepare
from mmspec.trees import Chain, DynamicTree, StaticTree

pytestmark = pytest.mark.product

DRAFTERS = (
    "ngram",
    "draft_model",
    "text_only",
    "dflash",
    "dspark",
    "eagle",
    "eagle3",
    "hivis",
    "specvlm",
    "vispec",
    "msd",
    "dream",
    "v5e0",
    "aasd",
    "specflash",
    "fastvlm",
)
TOKENS = 36
TREES = (Chain(4), DynamicTree(4, 3, 12), StaticTree())


@cache
def target():
    return mmspec.load_target("tiny")


@cache
def drafter(name):
    return NGramDrafter(target()) if name == "ngram" else mmspec.load_drafter(f"tiny/{name}", target())


@cache
def plain(task, index):
    """What the model's own `generate` writes about a test picture."""
    image, prompt, _ = zoo.sample(task, "test", index)
    inputs = prepare(target(), prompt, [image]).inputs
    ids = target().model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(("name", "number"), covering(DRAFTERS, range(len(TREES)), strength=1))
def test_every_drafter_writes_what_the_model_writes(name, number):
    """With every tree; the tasks take turns."""
    tree = None if name == "ngram" else TREES[number]
    task = zoo.TASKS[(DRAFTERS.index(name) + number) % len(zoo.TASKS)]
    image, prompt, _ = zoo.sample(task, "test", 5)
    out = mmspec.generate(target(), drafter(name), prompt, [image], tree=tree, max_new_tokens=TOKENS)
    assert out.token_ids[0] == plain(task, 5)
    assert name == "ngram" or out.stats.mean_acceptance_length > 1  # a short answer may repeat nothing


@pytest.mark.parametrize("name", DRAFTERS)
def test_ragged_batch_of_all_tasks(name):
    samples = [zoo.sample(task, "test", 5) for task in zoo.TASKS]
    out = mmspec.generate(
        target(), drafter(name), [s.prompt for s in samples], [s.image for s in samples], max_new_tokens=TOKENS
    )
    assert out.token_ids == [plain(task, 5) for task in zoo.TASKS]


@pytest.mark.parametrize("task", ["scenes", "charts", "documents"])
@pytest.mark.parametrize("name", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in DRAFTERS)])
def test_another_picture_gives_another_answer(task, name):
    prompts = [zoo.sample(task, "test", 1).prompt] * 3
    images = [zoo.sample(task, "test", index).image for index in (1, 2, 3)]
    chosen = drafter(name) if name else None
    out = mmspec.generate(target(), chosen, prompts, images, max_new_tokens=TOKENS)
    assert len(set(out.text)) == 3


def test_what_is_seen_is_accepted():
    """The target's own features tell most, then the picture, then the text alone."""
    accepted = {}
    for name in ("eagle3", "draft_model", "text_only"):
        outs = []
        for index in (1, 2):
            image, prompt, _ = zoo.sample("scenes", "test", index)
            outs.append(mmspec.generate(target(), drafter(name), prompt, [image], max_new_tokens=96).stats)
        steps = sum(stats.num_spec_steps for stats in outs)
        accepted[name] = sum(stats.num_accepted_draft_tokens for stats in outs) / steps
    assert accepted["eagle3"] > accepted["draft_model"] > accepted["text_only"] > 0.5


def test_sampling_is_coupled_across_drafters():
    image, prompt, _ = zoo.sample("scenes", "test", 4)
    options = {"prompt": prompt, "images": [image], "max_new_tokens": 20, "temperature": 1.0, "seed": 3}
    texts = {name: mmspec.generate(target(), drafter(name), **options).token_ids for name in DRAFTERS}
    assert set(map(str, texts.values())) == {str(mmspec.generate(target(), None, **options).token_ids)}


def test_weights_are_small_safetensors():
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    of_pictures = [path.parent.name for path in weights if path.parent.parent.name == "tiny"]
    assert set(of_pictures) == {"target", *DRAFTERS} - {"ngram"}
    sizes = {name: sum(path.stat().st_size for path in (EMBEDDED / name).rglob("*")) for name in EMBEDDED_TARGETS}
    assert sizes["tiny"] < 45e6 and 0 < sizes["tiny-video"] < 12e6
    assert len(files) == sum(path.is_file() for name in EMBEDDED_TARGETS for path in (EMBEDDED / name).rglob("*"))
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


def test_the_target_is_as_large_as_it_should_be():
    model = target().model
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.config.text_config.num_hidden_layers >= 16
    image, prompt, _ = zoo.sample("scenes", "test", 0)
    request = prepare(target(), prompt, [image])
    assert sum(id_ == target().family.image_token_id for id_ in request.token_ids()[0]) >= 128


@pytest.mark.parametrize("name", [name for name in DRAFTERS if name != "ngram"])
def test_half_precision_drafters_keep_their_rotary_frequencies(name):
    half = mmspec.load_target("tiny", "bfloat16")
    drafter = mmspec.load_drafter(f"tiny/{name}", half)
    assert {p.dtype for p in drafter.parameters()} == {half.dtype}
    frequencies = [buffer for key, buffer in drafter.named_buffers() if key.endswith("inv_freq")]
    assert (frequencies or name in ("v5e0", "fastvlm")) and all(buffer.dtype.itemsize == 4 for buffer in frequencies)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("tree", [Chain(5), StaticTree(), DynamicTree(5, 4, 16)], ids=lambda tree: type(tree).__name__)
@pytest.mark.parametrize("name", [name for name in DRAFTERS if name != "ngram"])
def test_a_hundred_pictures(name, tree, batch):
    """All tasks, whole answers: the same tokens as plain decoding."""
    for number in range(0, 100, batch):
        samples = [zoo.sample(zoo.TASKS[n % 4], "test", 1000 + n // 4) for n in range(number, number + batch)]
        request = {"prompt": [s.prompt for s in samples], "images": [s.image for s in samples], "max_new_tokens": 192}
        out = mmspec.generate(target(), drafter(name), tree=tree, **request)
        assert out.token_ids == [plainly(n) for n in range(number, number + batch)], number


@cache
def plainly(number):
    """Plain decoding of a picture, alone: what stands beside a row must not matter."""
    sample = zoo.sample(zoo.TASKS[number % 4], "test", 1000 + number // 4)
    return mmspec.generate(target(), None, sample.prompt, [sample.image], max_new_tokens=192).token_ids[0]
