"""Draw the figures of docs/methods: what each drafter keeps of a small prompt, read from the drafters themselves.

    python scripts/draw_methods.py

A prompt of three words, a picture of 4 x 4 visual tokens and five words. Every drafter reads it as it would read any
other, and its slots are drawn at the positions that they have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import mmspec
from mmspec.compressors import DraftPrompt, FeatureGuided, Pool
from mmspec.drafters import DraftModelDrafter, DreamDrafter, FeatureDrafter
from mmspec.drafters.reading import TargetView
from mmspec.families import Vision
from mmspec.inputs import Request
from mmspec.trees import ConfidenceTree

OUTPUT = Path(__file__).parents[1] / "docs" / "methods"
BEFORE, EDGE, AFTER = 3, 4, 5
TOKENS = BEFORE + EDGE**2 + AFTER
TEXT, PICTURE, KEPT = "#bbbbbb", "#56b4e9", "#e69f00"


def small_request(target: mmspec.Target) -> Request:
    """The small prompt."""
    ids = torch.full((1, TOKENS), 7)
    ids[:, BEFORE : BEFORE + EDGE**2] = target.family.image_token_id
    return Request({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [TOKENS])


def prompt_of(drafter: FeatureDrafter) -> DraftPrompt:
    """The small prompt as a drafter reads it, with random states."""
    target = drafter.target
    request = small_request(target)
    features = {layer: torch.randn(1, TOKENS, target.hidden_size) for layer in drafter.feature_layers}
    seen = torch.randn(EDGE**2, target.hidden_size)
    embeds = torch.randn(1, TOKENS, target.hidden_size)
    return drafter.read(TargetView(request, request, embeds, features, Vision([seen], [seen])))


def box(axes, x: float, y: float, colour: str, label: str) -> None:
    axes.add_patch(Rectangle((x - 0.45, y), 0.9, 0.8, facecolor=colour, edgecolor="white"))
    axes.text(x, y + 0.4, label, ha="center", va="center", fontsize=7)


def draw_slots(name: str, drafter: FeatureDrafter, title: str) -> None:
    """The target's tokens above, the drafter's slots below."""
    torch.manual_seed(0)
    with torch.inference_mode():
        prompt = prompt_of(drafter)
        positions = drafter.slot_positions(prompt)[0].tolist()
    seen = prompt.visual[0].tolist()[-len(positions) :]  # with or without a slot for the first token
    draw_rows(name, positions, seen, KEPT if prompt.removed.any() else PICTURE, title)


def draw_draft_model(name: str, drafter: DraftModelDrafter, title: str) -> None:
    """The same for a small model that reads the prompt in its own way."""
    request, seen = small_request(drafter.target), torch.randn(EDGE**2, drafter.target.hidden_size)
    own, _ = drafter.prompt_of(request, Vision([seen], [seen]))
    positions, _ = drafter.draft_target.family.positions(own.inputs)
    visual = drafter.target.family.is_visual(own.inputs["input_ids"])[0].tolist()
    draw_rows(name, positions.flatten()[: own.lengths[0]].tolist(), visual, KEPT, title)


def draw_rows(name: str, positions: list[int], visual: list[bool], colour: str, title: str) -> None:
    """Draw the target's tokens above, and slots below.

    Args:
        name: of the file.
        positions: per slot, its position.
        visual: per slot, whether it holds something of the picture.
        colour: of those that do.
        title: of the figure.
    """
    figure = Figure(figsize=(10, 1.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place in range(TOKENS):
        picture = BEFORE <= place < BEFORE + EDGE**2
        box(axes, place, 1.3, PICTURE if picture else TEXT, str(place))
    for slot, (position, seen) in enumerate(zip(positions, visual, strict=True)):
        box(axes, position, 0, colour if seen else TEXT, str(slot))
    axes.text(-1.2, 1.7, "target's tokens", ha="right", va="center", fontsize=8)
    axes.text(-1.2, 0.4, "drafter's slots", ha="right", va="center", fontsize=8)
    axes.set_xlim(-5, TOKENS)
    axes.set_ylim(-0.3, 2.3)
    axes.set_axis_off()
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    figure.savefig(OUTPUT / f"{name}.png", dpi=110)


def draw_sage() -> None:
    """Depth and width against the entropy of the drafter's ten likeliest tokens."""
    entropy = np.linspace(0, np.log(10), 100)
    alpha = 1 - entropy / np.log(10)
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(entropy, 3 + alpha * 5, color="#0072b2", label="depth D, levels")
    axes.plot(entropy, 2 + (1 - alpha) * 8, color="#d55e00", label="width W, children of the root")
    axes.set_xlabel("entropy of the ten likeliest tokens, nats")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle("SAGE: certain drafters draft deep, uncertain ones wide", fontsize=9, x=0.01, ha="left")
    figure.savefig(OUTPUT / "sage.png", dpi=110)


def draw_confidence(target: mmspec.Target) -> None:
    """Of some answers the confidence tree with most places where it branches."""
    built = []

    class Recording(ConfidenceTree):
        """Keeps every tree that it builds: not on itself, as every request has a copy of its own."""

        def build(self, growth):
            built.append(super().build(growth))
            return built[-1]

    drafter = mmspec.load_drafter("tiny/draft_model", target)
    for number in range(6):
        image, prompt, _ = mmspec.zoo.sample("scenes", "test", number)
        mmspec.generate(target, drafter, prompt, [image], tree=Recording(total=13))
    going_on = [tree for tree in built if not set(tree.tokens[0].tolist()) & set(target.eos_token_ids)]
    tree = max(going_on, key=lambda tree: int((tree.parents[0, 1:].bincount() > 1).sum()))
    parents, depth = tree.parents[0].tolist(), tree.depth[0].tolist()
    height: dict[int, float] = {}
    leaves = 0

    def place(node: int) -> float:
        """Leaves one below the other, the others in the middle of their children."""
        nonlocal leaves
        below = [place(child) for child, parent in enumerate(parents) if parent == node]
        if not below:
            leaves += 1
        height[node] = sum(below) / len(below) if below else -float(leaves)
        return height[node]

    place(0)
    figure = Figure(figsize=(9, 0.45 * leaves + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for node, parent in enumerate(parents):
        if parent >= 0:
            axes.plot([depth[parent], depth[node]], [height[parent], height[node]], color=TEXT, zorder=0)
        token = target.tokenizer.decode([int(tree.tokens[0, node])])
        label = repr(token) if not node else f"{token!r} {tree.log_probs[0, node].exp().item():.2f}"
        axes.text(
            depth[node], height[node], label, ha="center", va="center", fontsize=8, bbox={"fc": "white", "ec": KEPT}
        )
    axes.set_xlim(-0.4, max(depth) + 0.5)
    axes.set_ylim(-leaves - 0.6, -0.4)
    axes.set_title("one round: where the drafter is sure it guesses on, where it is not it guesses several")
    axes.axis("off")
    figure.savefig(OUTPUT / "spec_llava.png", dpi=110)


def main() -> None:
    target = mmspec.load_target("tiny")
    pooled = mmspec.load_drafter("tiny/eagle", target).with_compressor(Pool(2))
    dream = DreamDrafter(target, compressor=FeatureGuided(0.75))
    colours = "grey: text; blue: a visual token; orange: what is left of the picture; numbers count"
    for name, drafter, what in (
        ("hivis", mmspec.load_drafter("tiny/hivis", target), "HiViS: no visual token stays, the text keeps its places"),
        ("msd", mmspec.load_drafter("tiny/msd", target), "MSD: all stay; a blue slot holds the bare visual embedding"),
        ("vispec", mmspec.load_drafter("tiny/vispec", target), "ViSpec: one compressed token, at the picture's end"),
        ("specvlm", pooled, "SpecVLM, where its gate chooses pooling: the mean of every window"),
        ("dream", dream, "DREAM: a slot per token, the first one too; 3 in 4 visual tokens stay"),
    ):
        draw_slots(name, drafter, f"{what} ({colours})")
    for name, model, what in (
        ("spd_mllm", "tiny/text_only", "SPD-MLLM: the text alone, at positions of its own"),
        ("massv", "tiny/draft_model", "MASSV: all stay; orange ones come through a projector of the drafter's own"),
    ):
        draw_draft_model(name, mmspec.load_drafter(model, target), f"{what} (grey: text; blue: a visual token)")
    draw_sage()
    draw_confidence(target)


if __name__ == "__main__":
    main()
