"""Tiny random models of every family, and inputs for them as their processors would write them.

To add a family: one `Tiny` here. Rows are lists of what they show, such as `["image", "video"]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import models
import torch
import transformers
from models import (
    CLIP,
    CLIP_VISION,
    IMAGE,
    MROPE,
    PAD,
    QWEN_IDS,
    QWEN_VISION,
    TEXT,
    TOWER,
    VIDEO,
    VISION_END,
    VISION_START,
    WINDOW,
    rescale,
)
from torch import Tensor

Row = list[str]


@dataclass
class Picture:
    """One picture as a processor writes it.

    Args:
        ids: its placeholders, with what stands between them.
        arrays: what it adds to the batch, by name.
    """

    ids: list[int]
    arrays: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Tiny:
    """A family in small.

    Args:
        build: the model for a back end of attention.
        picture: the n-th picture of a row, of any size that the family takes: from its kind, n, where to draw pixels
            from, and all kinds of the row.
        join: the arrays of all pictures of a batch, row by row, to those of the batch; they are put behind one another
            by default.
        types: names of per-token inputs that say where pictures are, to the value on (text, image, video).
        kinds: what it can be shown, or told.
        attention: its usual back end.
    """

    build: Callable[[str], torch.nn.Module]
    picture: Callable[[str, int, torch.Generator, Row], Picture] | None = None
    join: Callable[[list[list[dict[str, Tensor]]]], dict[str, Tensor]] | None = None
    types: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("image",)
    attention: str = "sdpa"

    def inputs(self, rows: list[Row], lengths: list[int] | None = None, seed: int = 0) -> dict[str, Tensor]:
        """A batch, padded on the left. A row's tokens and pictures do not depend on the rows beside it.

        Args:
            rows: what each row shows.
            lengths: text tokens of each row besides its pictures.
            seed: of the first row; the next one has the next.
        """
        ids, arrays = [], []
        for number, (row, length) in enumerate(zip(rows, lengths or [9] * len(rows), strict=True)):
            generator = torch.Generator().manual_seed(seed + number)

            def text(count: int, generator=generator) -> list[int]:
                return torch.randint(1, 50, (count,), generator=generator).tolist()

            tokens, shown = text(2), []
            for index, kind in enumerate(row):
                picture = self.picture(kind, index, generator, row)
                shown.append(picture.arrays)
                tokens += [VISION_START, *picture.ids, VISION_END, *text(1)]
            ids.append(tokens + text(length - 2))
            arrays.append(shown)
        width = max(map(len, ids))
        tokens = torch.tensor([[PAD] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        inputs = {"input_ids": tokens, "attention_mask": mask}
        for name, (text_type, image_type, video_type) in self.types.items():
            types = torch.full_like(tokens, text_type)
            types[tokens == IMAGE] = image_type
            types[tokens == VIDEO] = video_type
            inputs[name] = types
        return inputs | (self.join or behind_one_another)(arrays)


def behind_one_another(rows: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    pictures = [arrays for row in rows for arrays in row]
    names = dict.fromkeys(name for arrays in pictures for name in arrays)
    return {name: torch.cat([arrays[name] for arrays in pictures if name in arrays]) for name in names}


# The visual side of the families.


def square(kind: str, index: int, generator: torch.Generator, row: Row) -> Picture:
    return Picture([IMAGE] * 4, {"pixel_values": torch.randn(1, 3, 16, 16, generator=generator)})


def tiles(kind: str, index: int, generator: torch.Generator, row: Row) -> Picture:
    """InternVL: the first picture has one tile, the second two."""
    count = 1 + index % 2
    return Picture([IMAGE] * 4 * count, {"pixel_values": torch.randn(count, 3, 16, 16, generator=generator)})


PINPOINTS = [[16, 32], [32, 16], [32, 32]]


def anyres(kind: str, index: int, generator: torch.Generator, row: Row) -> Picture:
    """LLaVA-NeXT: a thumbnail of 2 x 2 tokens, and tiles of which the edges that no picture fills are cut off."""
    if kind == "video":
        frames = torch.randn(1, 3, 3, 16, 16, generator=generator)
        return Picture([VIDEO] * (3 * 1 + 1), {"pixel_values_videos": frames})
    # Height and width in pixels: as large as two tiles side by side, and a smaller one with its edges cut.
    height, width, rows, columns = [(16, 32, 2, 4), (32, 16, 4, 2), (20, 32, 4, 4)][index % 3]
    down, across = {(16, 32): (1, 2), (32, 16): (2, 1), (20, 32): (2, 2)}[height, width]
    count = 1 + down * across
    if (height, width) == (20, 32):
        rows = 2  # 4 rows of tokens, from which 1 is cut at either side
    pixels = torch.randn(1, 5, 3, 16, 16, generator=generator)
    pixels[:, count:] = 0  # batched with the picture that has most tiles
    tokens = 4 + rows * (columns + 1)
    return Picture([IMAGE] * tokens, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])})


def onevision(kind: str, index: int, generator: torch.Generator, row: Row) -> Picture:
    """LLaVA-OneVision: the same, but several pictures in a prompt are thumbnails with one line break each."""
    picture = anyres(kind, index, generator, row)
    return Picture([IMAGE] * 5, picture.arrays) if kind == "image" and row.count("image") > 1 else picture


GRIDS = [[1, 4, 4], [1, 6, 4], [1, 4, 8]]


def patches(kind: str, index: int, generator: torch.Generator, row: Row, framed: bool = False) -> Picture:
    """Qwen-VL: patches of 4 x 4 pixels in two frames, 2 x 2 patches a token; Qwen3-VL says before each frame when."""
    grid = torch.tensor([[2, 4, 4]] if kind == "video" else [GRIDS[index % 3]])
    pixels = torch.randn(int(grid.prod()), 3 * 2 * 4 * 4, generator=generator)
    if kind == "image":
        return Picture([IMAGE] * (len(pixels) // 4), {"pixel_values": pixels, "image_grid_thw": grid})
    ids = [VIDEO] * 4 + ([VISION_END, 7, VISION_START] if framed else []) + [VIDEO] * 4
    return Picture(ids, {"pixel_values_videos": pixels, "video_grid_thw": grid})


FRAMES_IN_A_ROW = "num_frames_per_video" in inspect.signature(transformers.Gemma4Model.get_video_features).parameters
"""Whether frames of all of Gemma 4's videos are behind one another, as in transformers 5.24, or one video beside the
other, as in 5.17."""


def placed(kind: str, index: int, generator: torch.Generator, row: Row, side: int = 2) -> Picture:
    """Gemma 4: patches of 4 x 4 pixels with their column and row, 2 x 2 patches a token (`side` a side), padded to 32
    patches; a video says before each of its two frames when."""
    rows, columns = (2, 2) if kind == "video" else [(2, 2), (2, 3), (4, 2)][index % 3]
    frames = 2 if kind == "video" else 1
    places = torch.cartesian_prod(torch.arange(side * rows), torch.arange(side * columns)).flip(-1)
    at = torch.full((frames, 32, 2), -1)
    at[:, : len(places)] = places
    pixels = torch.zeros(frames, 32, 48)
    pixels[:, : len(places)] = torch.rand(frames, len(places), 48, generator=generator)
    if kind == "image":
        return Picture([IMAGE] * rows * columns, {"pixel_values": pixels, "image_position_ids": at})
    ids = [VIDEO] * 4 + [VISION_END, 7, VISION_START] + [VIDEO] * 4
    if not FRAMES_IN_A_ROW:
        return Picture(ids, {"pixel_values_videos": pixels[None], "video_position_ids": at[None]})
    arrays = {"pixel_values_videos": pixels, "video_position_ids": at, "num_frames_per_video": torch.tensor([2])}
    return Picture(ids, arrays)


def pixtral(kind: str, index: int, generator: torch.Generator, row: Row) -> Picture:
    """Mistral 3: pictures of any size, 2 x 2 patches of 4 x 4 pixels a token, a separator after every row but the
    last. The batch is padded to the largest picture."""
    height, width = [(16, 16), (24, 8), (8, 24)][index % 3]
    row = [IMAGE] * (width // 8)
    ids = [token for _ in range(height // 8) for token in [*row, 11]][:-1]
    pixels = torch.zeros(1, 3, 24, 24)
    pixels[:, :, :height, :width] = torch.randn(1, 3, height, width, generator=generator)
    return Picture(ids, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])})


SAMPLES = {"qwen2_audio": 40, "voxtral": 32, "audioflamingo3": 32, "glmasr": 32, "qwen3_asr": 200}
"""Frames of log-mel features, of 8 bins, that a window of sound has."""


def sound(kind: str, index: int, generator: torch.Generator, row: Row, family: str) -> Picture:
    """A sound in a window of its own, padded to its length; the second of a row is shorter. For Voxtral, which has no
    mask, the second is two windows long instead."""
    longest = SAMPLES[family]
    windows, frames = (2, longest) if family == "voxtral" and index % 2 else (1, longest - 9 * (index % 2))
    features = torch.randn(windows, 8, longest, generator=generator)
    halved = (frames - 1) // 2 + 1
    if family == "voxtral":
        return Picture([IMAGE] * 4 * windows, {"input_features": features})
    mask = (torch.arange(longest) < frames).long()[None]
    features = features * mask[:, None]
    if family == "qwen3_asr":  # three convolutions by 2 over chunks of 100 frames
        tokens = 13 * (frames // 100) + -(-(frames % 100) // 8)
    else:
        tokens = (halved - 4) // 4 + 1 if family == "glmasr" else (halved - 2) // 2 + 1
    name = "feature_attention_mask" if family == "qwen2_audio" else "input_features_mask"
    return Picture([IMAGE] * tokens, {"input_features": features, name: mask})


def rows_of_pictures(rows: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    """SmolVLM: `[batch, most pictures, ...]`, padded with empty pictures."""
    most = max(map(len, rows))
    if not most:
        return {}
    pixels = torch.zeros(len(rows), most, 3, 16, 16)
    for row, shown in enumerate(rows):
        for index, arrays in enumerate(shown):
            pixels[row, index] = arrays["pixel_values"][0]
    mask = (pixels != 0).any(2).long()
    mask[:, :, 12:] = 0  # the last rows of all pictures are padding
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def counted(rows: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    """LLaVA-OneVision: with the number of pictures per row that shows any."""
    batch = behind_one_another(rows)
    counts = [n for row in rows if (n := sum("pixel_values" in arrays for arrays in row))]
    return batch | ({"batch_num_images": torch.tensor(counts)} if counts else {})


# The models.


def builder(kind: str, *parts: dict | None, **settings) -> Callable[[str], torch.nn.Module]:
    """Return what builds a model of `models.of_parts` for a back end."""
    return lambda attention="sdpa": models.of_parts(kind, attention, 0, *parts, **settings)


def gemma3_text(attention: str = "sdpa") -> torch.nn.Module:
    config = transformers.Gemma3TextConfig(**TEXT, **models.MIXED_WINDOWS)
    return rescale(transformers.Gemma3ForCausalLM._from_config(config, attn_implementation=attention), 0)


LLAMA, QWEN2 = TEXT | {"model_type": "llama"}, TEXT | {"model_type": "qwen2"}
SIGLIP = CLIP | {"model_type": "siglip_vision_model"}

MTEXT = TEXT | MROPE
QWEN_SIZES = {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
SEES_VIDEOS = {"types": {"mm_token_type_ids": (0, 1, 2)}, "kinds": ("image", "video")}
EARS = TOWER | {"num_mel_bins": 8}
IMAGE_ID, IMAGE_INDEX, AUDIO_ID = ({name: IMAGE} for name in ("image_token_id", "image_token_index", "audio_token_id"))

FAMILIES: dict[str, Tiny] = {
    "llava": Tiny(models.llava, square),
    "llava_next": Tiny(
        builder(
            "LlavaNext", LLAMA, CLIP_VISION, **IMAGE_INDEX, image_grid_pinpoints=PINPOINTS, vision_feature_layer=-1
        ),
        anyres,
    ),
    "llava_onevision": Tiny(
        builder(
            "LlavaOnevision", QWEN2, SIGLIP, **IMAGE_INDEX, video_token_index=VIDEO, image_grid_pinpoints=PINPOINTS
        ),
        onevision,
        counted,
        kinds=("image", "video"),
    ),
    "qwen2_vl": Tiny(
        builder("Qwen2VL", MTEXT, QWEN_VISION | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}, **QWEN_IDS),
        patches,
        **SEES_VIDEOS,
    ),
    "qwen2_5_vl": Tiny(models.qwen_vl, patches, **SEES_VIDEOS),
    "qwen3_vl": Tiny(
        builder(
            "Qwen3VL",
            MTEXT,
            QWEN_VISION | QWEN_SIZES | {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
            **QWEN_IDS,
        ),
        partial(patches, framed=True),
        **SEES_VIDEOS,
    ),
    "internvl": Tiny(
        builder(
            "InternVL", QWEN2, TOWER | {"image_size": [16, 16], "patch_size": [4, 4]}, **IMAGE_ID, image_seq_length=4
        ),
        tiles,
    ),
    "smolvlm": Tiny(
        builder("SmolVLM", LLAMA, CLIP | {"patch_size": 4}, **IMAGE_ID, scale_factor=2, pad_token_id=PAD),
        square,
        rows_of_pictures,
    ),
    "gemma3": Tiny(models.gemma3, square, types={"token_type_ids": (0, 1, 0)}),
    "mistral3": Tiny(
        builder(
            "Mistral3",
            TEXT | {"model_type": "mistral", "sliding_window": None},
            TOWER | {"model_type": "pixtral", "head_dim": 8, "image_size": 32, "patch_size": 4},
            **IMAGE_INDEX,
            vision_feature_layer=-1,
            spatial_merge_size=2,
        ),
        pixtral,
    ),
    "paligemma": Tiny(
        builder("PaliGemma", TEXT | {"model_type": "gemma"}, SIGLIP, **IMAGE_INDEX, projection_dim=32),
        square,
        types={"token_type_ids": (0, 0, 0)},
    ),
    "paligemma2": Tiny(
        builder(
            "PaliGemma",
            TEXT | {"model_type": "gemma2", "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
            SIGLIP,
            **IMAGE_INDEX,
            projection_dim=32,
        ),
        square,
        types={"token_type_ids": (0, 0, 0)},
        attention="eager",  # Gemma 2 caps its scores, which sdpa cannot
    ),
    **{
        family: Tiny(
            builder(name, text, audio_config=audio, **AUDIO_ID), partial(sound, family=family), kinds=("audio",)
        )
        for family, name, text, audio in (
            (
                "qwen2_audio",
                "Qwen2Audio",
                QWEN2,
                EARS | {"model_type": "qwen2_audio_encoder", "d_model": 16, "max_source_positions": 20},
            ),
            ("voxtral", "Voxtral", LLAMA, EARS | {"intermediate_size": 64, "max_source_positions": 16}),
            ("audioflamingo3", "AudioFlamingo3", QWEN2, EARS | {"max_source_positions": 16}),
            ("glmasr", "GlmAsr", LLAMA, EARS | {"intermediate_size": 64, "max_position_embeddings": 64}),
        )
    },
    "llama": Tiny(models.llama, kinds=()),
    "qwen3": Tiny(models.qwen3, kinds=()),
    "mistral, sliding window": Tiny(models.mistral, kinds=()),
    "gemma3_text, mixed windows": Tiny(gemma3_text, kinds=()),
    "gemma4": Tiny(models.gemma4, placed, **SEES_VIDEOS),
}

COHERE2 = TEXT | {
    "model_type": "cohere2",
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

# Models without a family, which are read like those that have one.
UNLISTED: dict[str, Tiny] = {
    "vipllava": Tiny(builder("VipLlava", LLAMA, CLIP_VISION, **IMAGE_INDEX, vision_feature_layers=[-1, -2]), square),
    "glm4v": Tiny(
        builder(
            "Glm4v",
            MTEXT,
            QWEN_VISION | QWEN_SIZES | {"image_size": 32},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=VISION_START,
            image_end_token_id=VISION_END,
        ),
        patches,
        types={"mm_token_type_ids": (0, 1, 2)},
    ),
    "idefics2": Tiny(
        builder(
            "Idefics2",
            TEXT | {"model_type": "mistral"},
            CLIP,
            **IMAGE_ID,
            perceiver_config={"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2}
            | {"resampler_head_dim": 8, "num_key_value_heads": 2},
        ),
        square,
        rows_of_pictures,
    ),
    "qwen3_asr": Tiny(
        builder(
            "Qwen3ASR",
            TEXT | {"model_type": "qwen3"},
            audio_config=EARS | {"output_dim": 32, "n_window": 50, "n_window_infer": 100, "downsample_hidden_size": 4},
            **AUDIO_ID,
        ),
        partial(sound, family="qwen3_asr"),
        kinds=("audio",),
    ),
    "aya_vision": Tiny(
        builder("AyaVision", COHERE2, SIGLIP | {"patch_size": 4}, image_token_index=IMAGE, downsample_factor=2), square
    ),
}
