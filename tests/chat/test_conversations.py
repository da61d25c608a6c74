"""Conversations as users have them: the same ids as transformers' own processor and `generate` give, whichever layout
they come in; and what makes no sense is refused in one line."""

from __future__ import annotations

import base64
import copy
import io

import numpy as np
import pytest
import tiny_families
import tiny_processors
import torch
from models import VIDEO, llama
from PIL import Image
from refusals import refused

import mmspec
from mmspec import MMSpecError, Target, zoo
from mmspec.chat import Medium, Message, read_messages
from mmspec.drafters import NGramDrafter
from mmspec.inputs import prepare

NEW = 12


@pytest.fixture(scope="module")
def tiny():
    return mmspec.load_target("tiny")


@pytest.fixture(scope="module")
def drafter(tiny):
    return mmspec.load_drafter("tiny/eagle3", tiny)


@pytest.fixture(scope="module")
def pictures():
    return [zoo.sample("scenes", "test", number).image for number in range(2)]


def said(role: str, *parts) -> dict:
    """A message, of which pictures are parts and texts are parts too."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return {"role": role, "content": content}


def own_answer(target, messages) -> list[list[int]]:
    """What transformers' processor and `generate` make of one conversation, prompt and answer."""
    inputs = target.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    out = target.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return [out[0, :length].tolist(), out[0, length:].tolist()]


TALK = ("What is this?", "A red square.", "And what is here?")


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
def test_pictures_in_any_turn_are_read_as_transformers_reads_them(tiny, drafter, pictures, later):
    first, second = pictures
    messages = [said("system", "Be brief."), said("user", first, TALK[0]), said("assistant", TALK[1])]
    messages.append(said("user", TALK[2], second) if later else said("user", TALK[2]))
    prompt, answer = own_answer(tiny, messages)
    request = prepare(tiny, messages=messages)
    assert request.token_ids() == [prompt]
    out = mmspec.generate(tiny, drafter, messages=messages, max_new_tokens=NEW)
    assert out.token_ids == [answer]
    kept = [[np.asarray(picture) for picture in row] for row in request.images]
    assert len(kept[0]) == 1 + later and all(map(np.array_equal, kept[0], map(np.asarray, pictures)))
    exchanged = [said("user", second, TALK[0]), *messages[2:]] if not later else [said("user", second, first, TALK[2])]
    assert mmspec.generate(tiny, None, messages=exchanged, max_new_tokens=NEW).token_ids != [answer]


def test_a_system_prompt_and_tuples_are_the_same_conversation(tiny, pictures):
    first, second = pictures
    messages = [said("system", "Be brief."), said("user", first, TALK[0]), said("assistant", TALK[1])]
    messages.append(said("user", "And in ", second, "?"))
    marked = ("<image>What is this?", TALK[1], "And in <image>?")
    for prompt, images in ([marked], [pictures]), ([marked, "Why?"], [pictures, None]):
        ids = prepare(tiny, prompt, images, system="Be brief.").token_ids()
        assert ids[0] == prepare(tiny, messages=messages).token_ids()[0]
    different = prepare(tiny, ["Why?", "Why?"], system=[None, "Be brief."]).token_ids()
    assert different[0] == prepare(tiny, "Why?").token_ids()[0]
    assert different[1] == prepare(tiny, "Why?", system="Be brief.").token_ids()[0]


def encoded(picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_all_layouts_of_a_picture_are_one(tiny, pictures, tmp_path):
    content = encoded(pictures[0])
    (tmp_path / "a.png").write_bytes(content)
    text, path = base64.b64encode(content).decode(), str(tmp_path / "a.png")
    url = f"data:image/png;base64,{text}"
    parts = [
        {"type": "image", "image": pictures[0]},
        {"type": "image", "image": np.asarray(pictures[0])},
        {"type": "image", "image": path},
        {"type": "image", "path": tmp_path / "a.png"},
        {"type": "image", "url": url},
        {"type": "image", "url": f"file://{path}"},
        {"type": "image", "base64": text},
        {"type": "image", "bytes": content},
        {"image": {"bytes": content, "path": None}},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url},
    ]
    want = prepare(tiny, TALK[0], pictures[0])
    for part in parts:
        request = prepare(tiny, messages=[{"role": "user", "content": [part, {"type": "text", "text": TALK[0]}]}])
        assert request.token_ids() == want.token_ids()
        assert torch.equal(request.inputs["pixel_values"], want.inputs["pixel_values"]), part
    for content in (TALK[0], [{"type": "text", "text": TALK[0]}], [{"type": "input_text", "text": TALK[0]}]):
        assert (
            prepare(tiny, messages=[{"role": "user", "content": content}]).token_ids()
            == prepare(tiny, TALK[0]).token_ids()
        )


def test_conversations_share_a_batch(tiny, drafter, pictures):
    rows = [[said("user", TALK[0])], [said("system", "Be brief."), said("user", pictures[1], TALK[0])]]
    together = mmspec.generate(tiny, drafter, messages=rows, max_new_tokens=NEW)
    assert together.token_ids == [own_answer(tiny, row)[1] for row in rows]
    again = prepare(tiny, messages=prepare(tiny, messages=rows).conversations)
    assert again.token_ids() == prepare(tiny, messages=rows).token_ids()


# Chat templates


def with_template(tiny, template: str) -> Target:
    processor = copy.deepcopy(tiny.processor)
    processor.chat_template = template
    return Target(tiny.model, processor)


SPEAKING = "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{{ p['text'] }}{% endfor %} {% endfor %}"
MARKING = SPEAKING.replace(
    "{{ p['text'] }}", "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}"
)


def test_arguments_of_the_chat_template_arrive(tiny):
    thinking = with_template(
        tiny, SPEAKING + "{% if enable_thinking is defined and not enable_thinking %}done{% endif %}"
    )
    plain, hushed = (
        thinking.tokenizer.decode(prepare(thinking, "What?", chat_template_kwargs=given, system="Hm.").token_ids()[0])
        for given in (None, {"enable_thinking": False})
    )
    assert hushed == plain + "done"
    request = prepare(thinking, "What?", chat_template_kwargs={"enable_thinking": False})
    assert request.template_settings == {"enable_thinking": False}
    with pytest.raises(MMSpecError, match="has no variable 'enable_thinkin'. Did you mean 'enable_thinking'?"):
        prepare(thinking, "What?", chat_template_kwargs={"enable_thinkin": False})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (SPEAKING.replace("messages", "messages[1:]"), "what it writes leaves out a text of the system"),
        (SPEAKING.replace("messages", "messages[-1:]"), "what it writes leaves out a text of the system"),
        (SPEAKING, "The total number of <image> tokens in the prompts should"),
        (
            MARKING.replace("<image>", "{% if loop.first %}<image>{% endif %}"),
            "what it writes leaves out 1 of 2 images",
        ),
        ("{{ raise_exception('roles must alternate') }}", "does not take it: roles must alternate"),
    ],
)
def test_a_template_that_swallows_a_part_is_refused(tiny, pictures, template, message):
    """The check that a picture arrives is of the tokens, for templates may write what only the processor knows."""
    count = 2 if "loop.first" in template else 1
    messages = [said("system", "Be brief."), said("user", *pictures[:count], "What?")]
    refused(lambda: prepare(with_template(tiny, template), messages=messages), message)
    assert prepare(with_template(tiny, MARKING), messages=messages).lengths[0] > 36


def test_a_picture_that_does_not_arrive_is_missed(tiny, pictures):
    """Some processors do not compare what they write with what they are given; then the tokens tell."""

    class Deaf(type(tiny.processor)):
        def __call__(self, text=None, images=None, **options):
            return super().__call__(text=[one.replace("<image>", "") for one in text], **options)

    processor = copy.copy(tiny.processor)
    processor.__class__ = Deaf
    with pytest.raises(MMSpecError, match="prompt 1: 1 images were given, but what the chat template"):
        prepare(Target(tiny.model, processor), ["What?", "Why?"], [None, pictures[0]])


def test_a_template_that_wants_texts_gets_texts(tiny, pictures):
    """Some templates join the system prompt as a text and go through the parts of everybody else."""
    mixed = "{{ messages[0]['content'] + '. ' }}" + MARKING.replace("messages", "messages[1:]")
    target = with_template(tiny, mixed)
    ids = prepare(target, "What?", pictures[0], system="Be brief").token_ids()[0]
    assert target.tokenizer.decode([i for i in ids if i != target.family.image_token_id]) == "Be brief. user: What? "


def test_parts_are_not_written_as_they_are(tiny):
    """A template that knows texts alone writes a list of parts as Python shows it, if it is let."""
    target = with_template(tiny, "{% for m in messages %}{{ m['content'] }} {% endfor %}")
    assert target.tokenizer.decode(prepare(target, "What?", system="Be brief.").token_ids()[0]) == "Be brief. What? "


def test_switches_in_a_text_may_be_taken_out(tiny):
    template = SPEAKING.replace("p['text']", "p['text'].replace('/no_think', '')")
    target = with_template(tiny, template)
    text = target.tokenizer.decode(prepare(target, "What?", system="/no_think Be brief.").token_ids()[0])
    assert "Be brief." in text and "think" not in text


def test_thoughts_of_earlier_turns_may_be_left_out(tiny):
    target = with_template(tiny, SPEAKING.replace("p['text']", "p['text'].split('</think>')[-1]"))
    messages = [said("user", "What?"), said("assistant", "<think>Hm.</think>That."), said("user", "Why?")]
    text = target.tokenizer.decode(prepare(target, messages=messages).token_ids()[0])
    assert "Hm." not in text and "That." in text


# What is refused


USER = [{"role": "user", "content": "What?"}]
IMAGE = {"type": "image", "image": np.zeros((8, 8, 3), np.uint8)}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"messages": USER, "prompt": "What?"}, "or inputs=, the output of a processor, and not prompt= and"),
        ({"messages": USER, "images": ["a.png"]}, "images= goes with prompt=; in messages= media are parts"),
        ({"messages": USER, "system": "Hm."}, "system= goes with prompt= ... in messages= begin with"),
        ({"messages": []}, "messages=[] is no conversation"),
        ({"messages": "What?"}, "messages='What?' is no conversation; give a list of messages"),
        ({"messages": [[]]}, "row 0 of messages has no message"),
        ({"messages": [{"content": "What?"}]}, "row 0, message 1 is {'content': 'What?'}; a message is"),
        ({"messages": [{"role": "user", "content": 3}]}, "row 0, message 1: a message must hold text, not 3"),
        ({"messages": [{"role": "user", "content": " "}]}, "row 0, message 1 is empty"),
        ({"messages": [*USER, {"role": "assistant", "content": "That."}]}, "ends with what the assistant said"),
        ({"messages": [said("user", "What?") | {"content": [{"type": "imge"}]}]}, "Did you mean 'image'?"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of type 'image' without a picture"),
        ({"messages": [{"role": "user", "content": [IMAGE | {"fps": 9}]}]}, "says 'fps', which is not read here: set"),
        ({"messages": [{"role": "user", "content": [{"type": ["image"]}]}]}, "a part of type ['image'], which is not"),
        ({"messages": [{"role": "user", "content": "Is <image>?"}]}, "a text of the user has '<image>', which this"),
        ({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]}, "takes none"),
        ({"prompt": "What?", "videos": [np.zeros((2, 8, 8, 3), np.uint8)]}, "videos"),
        ({"prompt": ["What?"] * 2, "videos": ["a.mp4"]}, "2 prompts but videos for 1"),
        ({"prompt": USER}, "messages go into messages="),
        ({"prompt": "What?", "system": ["a", "b"]}, "must be a text, or a list with one for each of the 1 rows"),
        ({"prompt": "What?", "system": " "}, "system=' ' must be a text that says something"),
        ({"prompt": "What?", "chat_template_kwargs": ["x"]}, "chat_template_kwargs=['x'] must be a dict of names"),
        ({"prompt": "What?", "extras": {"reference": "a text"}}, "extras['reference'] is a str: give a list with one"),
        ({"prompt": "What?", "extras": {"text": []}}, "extras['text'] has 0 entries for 1 rows: give one per row"),
        ({"prompt": "What?", "extras": ["a text"]}, "extras=['a text'] must be a dict of names"),
        ({"prompt": "What?", "stop": ""}, "stop='' must be a text, or a list of texts, none of them empty"),
        ({"prompt": "What?", "num_return_sequences": 2}, "num_return_sequences=2 at temperature 0 would give the same"),
        ({"prompt": "What?", "num_return_sequences": 0}, "num_return_sequences=0 must be a positive integer"),
        ({"inputs": {"input_ids": [[5]]}, "system": "Be brief."}, "system= goes with prompt= or messages="),
        ({"inputs": {"input_ids": [[5]]}, "videos": ["a.mp4"]}, "videos= goes with prompt=; with inputs= pass"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tiny, asked, message):
    refused(lambda: mmspec.generate(tiny, **asked, max_new_tokens=2), message)


def test_a_target_without_a_tokenizer_or_a_template_says_what_is_missing(tiny):
    bare = Target(llama())
    refused(lambda: mmspec.generate(bare, inputs={"input_ids": [[5]]}, stop="a"), "stop=['a'] is looked for in the")
    refused(lambda: mmspec.generate(bare, messages=USER), "the target has no processor, so it reads no text")
    processor = copy.deepcopy(tiny.processor)
    processor.chat_template = processor.tokenizer.chat_template = None
    mute = Target(tiny.model, processor)
    refused(lambda: prepare(mute, "What?", chat_template_kwargs={"enable_thinking": False}), "chat_template_kwargs has")
    refused(lambda: prepare(mute, "What?", system="Be brief."), "prompt 0 is a conversation, but ... has no chat")
    refused(lambda: prepare(mute, ["What?", TALK]), "prompt 1 is a conversation, but ... has no chat template")
    assert prepare(mute, [("What?",)]).token_ids() == prepare(mute, "What?").token_ids()


def test_messages_keep_what_only_templates_know():
    call = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    (row,) = read_messages(
        [*USER, {"role": "assistant", "content": None, "tool_calls": call}, {"role": "tool", "content": "5"}]
    )
    assert row[1] == Message("assistant", (), True, {"tool_calls": call}) and row[2] == Message("tool", ("5",), True)
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    assert read_messages([{"role": "user", "content": [sound]}])[0][0].parts == (Medium("audio", b"RIFF"),)
    assert read_messages([{"role": "user", "content": [IMAGE, "What?"]}])[0][0].parts[0] == Medium(
        "image", IMAGE["image"]
    )


# Sounds and videos in any turn


def test_sounds_in_any_turn_are_read_as_transformers_reads_them():
    """By a real processor, in a batch with a row without a sound."""
    target = Target(tiny_families.FAMILIES["qwen2_audio"].build("sdpa"), tiny_processors.qwen2_audio())
    generator = np.random.default_rng(0)
    sounds = [generator.normal(0, 0.3, size).astype(np.float32) for size in (tiny_processors.RATE, 9000)]

    def talk(*held) -> list[dict]:
        first, second = ({"type": "audio", "audio": sound} for sound in held)
        what, dog = ({"type": "text", "text": text} for text in ("what is this?", "a dog."))
        turns = [[what, first], [dog], [second, what]]
        return [
            {"role": role, "content": said} for role, said in zip(["user", "assistant", "user"], turns, strict=True)
        ]

    prompt, answer = own_answer(target, talk(*sounds))
    held = [(sound, tiny_processors.RATE) for sound in sounds]
    alone = [{"role": "user", "content": "why?"}]
    out = mmspec.generate(target, NGramDrafter(target), messages=[alone, talk(*held)], max_new_tokens=NEW)
    assert out.token_ids[1] == answer
    marked = ("what is this?<audio>", "a dog.", "<audio>what is this?")
    request = prepare(target, [marked], audio=[held])
    assert request.token_ids() == [prompt] == prepare(target, messages=request.conversations).token_ids()
    other = prepare(target, [marked], audio=[held[::-1]])
    assert not torch.equal(other.inputs["input_features"], request.inputs["input_features"]), "in order"


def test_videos_stand_where_they_are_said_to_be():
    target = Target(tiny_families.FAMILIES["qwen2_5_vl"].build("sdpa"), tiny_processors.Patches())
    clips = [np.random.default_rng(n).integers(0, 255, (2 * n, 16, 16, 3), np.uint8) for n in (1, 2)]
    request = prepare(target, ["is <video> a <video>", "why?"], videos=[clips, None])
    ids = request.token_ids()[0]
    assert [place for place, token in enumerate(ids) if token == VIDEO] == [*range(10, 14), *range(18, 26)]
    frames = [Image.fromarray(frame) for frame in clips[0]]
    content = [{"type": "text", "text": "is "}, {"type": "video", "video": frames}, {"type": "text", "text": " a"}]
    messages = [{"role": "user", "content": [*content, {"type": "video", "video": clips[1]}]}]
    by_messages = prepare(target, messages=messages)
    assert by_messages.token_ids() == [ids] and [len(video) for video in by_messages.media["video"][0]] == [2, 4]
    assert torch.equal(by_messages.inputs["pixel_values_videos"], request.inputs["pixel_values_videos"])
    single = prepare(target, "why?", videos=frames)
    assert single.token_ids() == prepare(target, "why?", videos=[clips[0]]).token_ids()
    refused(lambda: prepare(target, "is <video> a <video>", videos=clips[0]), "prompt 0 has 2 <video> but 1 videos")
