# Made from 11_what_a_pruner_keeps.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # What a pruner keeps, frame by frame
#
# A clip costs a drafter thousands of visual tokens. A *pruner* is a compressor that leaves it a few of them, chosen once behind the prompt. The
# target still sees everything, so the text does not change; what changes is how well the drafter guesses, and how much it has to read. Here we
# look at what four pruners keep of a clip, and at what that costs and saves.
#
# `tiny-video` is a small Qwen2.5-VL that ships with mmspec. It tells what happens in clips of moving shapes, number by number.

SHARES = (0.05, 0.1, 0.25, 0.5)  # of the visual tokens that a pruner keeps

import mmspec
from mmspec import visualization, zoo
from mmspec.compressors import Hide, Holistic, Prune, SinkAware, TopPUniform, UVPrune
from mmspec.media import Video
from mmspec.trees import Chain
from mmspec.zoo.video.data import watch

target = mmspec.load_target("tiny-video")
drafter = mmspec.load_drafter("tiny-video/eagle3", target)
clip, question = zoo.demo_clip(), zoo.DEMO_CLIP_PROMPT
plain = mmspec.generate(target, None, question, videos=[clip])
print(plain.text[0])

# ## A tenth of the clip
#
# Each row is a pruner, each column a time step of the target (two frames of the file). What is clear is kept, what is veiled is not. Above each
# step stands how many of its tokens are left.
#
# - `TopPUniform` (SpecVLM for videos): what the question's words attend to, and evenly spaced tokens of the rest.
# - `Holistic` (HIPPO): attention, change since the step before, and variance within the frame; a budget for every frame.
# - `UVPrune` (ParallelVLM): what the first layers bring closer to the question's words.
# - `SinkAware` (ours): attention, but not where it goes whatever is asked.
# - `Prune`: evenly spaced, for comparison.

PRUNERS = {
    "top_p": TopPUniform,
    "holistic": Holistic,
    "uv": UVPrune,
    "sink_aware": SinkAware,
    "evenly spaced": lambda keep: Prune(keep, by="uniform"),
}

tenth = {name: drafter.with_compressor(make(keep=0.1)) for name, make in PRUNERS.items()}
show(visualization.draw_kept_frames(tenth, question, str(clip)), "outputs/11_what_a_pruner_keeps/05")

# ## Guessing with less
#
# The same answer with chains of five, by the share that is kept. `Hide` leaves nothing of the clip; even then EAGLE-3's head is not blind, as the
# target's states, which it reads at every token, have seen the clip.

def tokens_per_pass(compressor):
    """Tokens per pass of the target, and whether the text is plain decoding's."""
    seeing = drafter if compressor is None else drafter.with_compressor(compressor)
    out = mmspec.generate(target, seeing, question, videos=[clip], tree=Chain(5))
    return out.stats.mean_acceptance_length, out.token_ids == plain.token_ids


print("kept             " + "".join(f"{share:>8.0%}" for share in SHARES))
for name, make in PRUNERS.items():
    found = [tokens_per_pass(make(keep=share)) for share in SHARES]
    print(
        f"{name:17}" + "".join(f"{tokens:8.2f}" for tokens, _ in found), "  same text:", all(same for _, same in found)
    )
for name, compressor in {"everything": None, "nothing": Hide()}.items():
    tokens, same = tokens_per_pass(compressor)
    print(f"{name:17}{tokens:8.2f}   same text: {same}")

# One clip proves little; `mmspec bench experiment=video` asks about several, of four lengths.
#
# ## Where the time goes before the first token
#
# A longer clip, of 2,028 visual tokens. `prune` is the choice of what the drafter sees, `draft_prefill` what the drafter then reads. A pruner pays
# where it takes less time than the drafter saves: in its own pass over the prompt, and in every guess behind it.

long = watch("accounts", "test", 10, "2k")
frames = Video(long.frames, fps=2.0)
choices = {"everything": drafter} | tenth | {"text alone": drafter.with_scope("text")}
print("ms               " + "".join(f"{phase:>15}" for phase in ("prefill", "prune", "draft_prefill", "a round")))
for name, one in choices.items():
    mmspec.generate(
        target, one, long.prompt, videos=[frames], tree=Chain(5), max_new_tokens=4
    )  # the first call warms up
    stats = mmspec.generate(target, one, long.prompt, videos=[frames], tree=Chain(5), max_new_tokens=48).stats
    times = [1e3 * stats.seconds[phase] for phase in ("prefill", "prune", "draft_prefill")]
    times.append(1e3 * stats.decode_seconds / len(stats.rounds))
    print(
        f"{name:17}" + "".join(f"{time:15.1f}" for time in times),
        f"  cache: {stats.cache_bytes['drafter'] / 2**20:.2f} MiB",
    )

# `attention_scope="text"` (the last row) is Sparrow's switch: the head attends to text alone, so what it costs does not grow with the clip.
#
# More is in `docs/methods/video_pruning.md`, `docs/methods/sparrow.md` and `docs/concepts/video.md`.
