"""Processors of tiny models that see videos and hear: a stand-in for Qwen-VL's without torchvision, which the real ones
need, and the real one of Qwen2-Audio."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from models import IMAGE, VIDEO, VISION_END, VISION_START
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor, WhisperFeatureExtractor

RATE = 16000
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}[PLACE]{% endif %}{% endfor %}{% endif %} {% endfor %}"
)


def template_of(**places: str) -> str:
    """A chat template with a token for every kind of medium."""
    choice = "".join(
        f"{{% {'if' if number == 0 else 'elif'} part['type'] == '{kind}' %}}{token}"
        for number, (kind, token) in enumerate(places.items())
    )
    return TEMPLATE.replace("PLACE", choice + "{% endif %}")


@cache
def tokenizer(*special: tuple[str, int]) -> PreTrainedTokenizerFast:
    """One token a character, and special tokens at given places; the others are padding and letters."""
    taken = dict(special)
    letters = "abcdefghijklmnopqrstuvwxyz .,:?[]0123456789"
    vocabulary = {"<pad>": 0} | taken
    free = (n for n in range(1, 61) if n not in taken.values())
    vocabulary |= {letter: next(free) for letter in letters}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.add_special_tokens([*taken, "<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token=".")


QWEN = (
    ("<|image_pad|>", IMAGE),
    ("<|video_pad|>", VIDEO),
    ("<|vision_start|>", VISION_START),
    ("<|vision_end|>", VISION_END),
)


class Patches:
    """What Qwen2-VL's processor makes of videos that need no resizing: patches of 4 x 4 pixels in two frames, ordered
    by squares of 2 x 2, one placeholder a square; an odd frame is shown twice."""

    image_token, video_token = "<|image_pad|>", "<|video_pad|>"

    def __init__(self, **sampling):
        self.tokenizer = tokenizer(*QWEN)
        self.chat_template = template_of(image=self.image_token, video=self.video_token)
        self.video_processor = SimpleNamespace(**sampling)

    def apply_chat_template(self, messages, **options) -> str:
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **options)

    def __call__(self, text, videos=(), video_metadata=(), do_sample_frames=None, images=None, **options):
        if images is not None:
            raise ValueError("it reads videos alone")
        assert list(map(len, videos)) == list(map(len, video_metadata)) and (do_sample_frames is False or not videos)
        made = [self.patches(frames) for row in videos for frames in row]
        tokens = iter(patches.shape[0] // 4 for patches, _ in made)
        texts = []
        for row in text:
            head, *others = row.split(self.video_token)
            texts.append(head + "".join(self.video_token * next(tokens) + other for other in others))
        batch = dict(self.tokenizer(texts, **options))
        batch.pop("token_type_ids", None)
        if made:
            batch["pixel_values_videos"] = torch.cat([patches for patches, _ in made])
            batch["video_grid_thw"] = torch.tensor([grid for _, grid in made])
        return batch

    @staticmethod
    def patches(frames: np.ndarray) -> tuple[torch.Tensor, list[int]]:
        pixels = torch.from_numpy(frames.copy()).float() / 127.5 - 1
        pixels = torch.cat([pixels, pixels[-1:]]) if len(pixels) % 2 else pixels
        times, height, width = len(pixels) // 2, frames.shape[1] // 4, frames.shape[2] // 4
        cut = pixels.view(times, 2, height // 2, 2, 4, width // 2, 2, 4, 3)
        # time, rows of squares, columns of squares, row and column within, then channel, frame, pixels
        cut = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
        return cut.reshape(times * height * width, -1), [times, height, width]


SMOL = (
    ("<image>", IMAGE),
    ("<video>", VIDEO),
    ("<fake_token_around_image>", VISION_START),
    ("<end_of_utterance>", VISION_END),
)


def real(name: str):
    """A family's own processor, which takes torchvision. None of the letters that it writes matters."""
    picture, video = "<|image_pad|>", "<|video_pad|>"
    words = copy.deepcopy(tokenizer(*QWEN))
    square = {"size": {"height": 16, "width": 16}}
    settings = {"tokenizer": words, "chat_template": template_of(image=picture, video=video)}
    if name.startswith("qwen"):
        sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
        sizes["size"] = {"shortest_edge": 64, "longest_edge": 4096}
        kind = "Qwen3VL" if name == "qwen3_vl" else "Qwen2VL"
        image = transformers.Qwen2VLImageProcessor(**sizes)
        frames = getattr(transformers, f"{kind}VideoProcessor")(**sizes)
        kind = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name]
        return getattr(transformers, f"{kind}Processor")(image, video_processor=frames, **settings)
    if name == "internvl":
        tokens = {"start_image": "<|vision_start|>", "end_image": "<|vision_end|>", "context_image": picture}
        for place, token in tokens.items():
            setattr(words, f"{place}_token", token)
            setattr(words, f"{place}_token_id", words.convert_tokens_to_ids(token))
        words.video_token = video
        image, frames = transformers.GotOcr2ImageProcessor(**square), transformers.InternVLVideoProcessor(**square)
        return transformers.InternVLProcessor(image, video_processor=frames, image_seq_length=4, **settings)
    if name == "smolvlm":
        settings["tokenizer"] = tokenizer(*SMOL)  # the processor has a template of its own for videos
        edges = {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}}
        frames = transformers.SmolVLMVideoProcessor(video_sampling={"max_frames": 64, "fps": 3}, **edges)
        image = transformers.SmolVLMImageProcessor(do_image_splitting=False, **edges)
        return transformers.SmolVLMProcessor(image, video_processor=frames, image_seq_len=4, **settings)
    frames = transformers.LlavaOnevisionVideoProcessor(**square)
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(image_grid_pinpoints=[[16, 32]], **square),
        video_processor=frames,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        image_token=picture,
        video_token=video,
        **settings,
    )


AUDIO = (("<|AUDIO|>", IMAGE), ("<|audio_bos|>", VISION_START), ("<|audio_eos|>", VISION_END))


@cache
def qwen2_audio() -> Qwen2AudioProcessor:
    """For the tiny model: 40 frames of 8 bins are a second."""
    extractor = WhisperFeatureExtractor(
        feature_size=8, sampling_rate=RATE, hop_length=RATE // 40, chunk_length=1, n_fft=400
    )
    return Qwen2AudioProcessor(extractor, tokenizer(*AUDIO), chat_template=template_of(audio="<|AUDIO|>"))
