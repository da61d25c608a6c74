"""VideoSpeculateRAG: drafts in one batch, reliability by a plain forward pass, the delta rule, alignment, documents."""

from __future__ import annotations

import itertools
import random
from functools import cache

import numpy as np
import pytest
import tiny_processors
import torch
from models import llama
from PIL import Image
from tiny_families import FAMILIES

import mmspec
from mmspec import MMSpecError, Target
from mmspec.chat import Medium, Message
from mmspec.drafters import NGramDrafter, OwnEncoderDrafter, TextOnlyDrafter
from mmspec.inputs import prepare
from mmspec.media import Video
from mmspec.selection import (
    DOCUMENTS,
    ClipScorer,
    CosineRetriever,
    Member,
    Reliability,
    StandardRAG,
    VideoSpeculateRAG,
    admitted,
    best_draft,
    nearest,
)
from mmspec.selection.documents import DRAFT, JUDGE, all_documents, prepare_together
from mmspec.selection.member import with_words
from mmspec.selection.speculate_rag import seen_in

QUESTION = "who is it?"
DOCS = ["a red dog, called rex.", "bo, a cat.", "all about the blue bird, who sings and is called al."]
WORDS = {"yes_words": "y", "no_words": "n"}  # the tokens of the tiny processor are letters


@cache
def watcher():
    """A tiny random Qwen2.5-VL that watches videos: multi-axis positions, one placeholder a square."""
    return Target(FAMILIES["qwen2_5_vl"].build("sdpa"), tiny_processors.Patches())


@cache
def clip(frames: int = 6) -> Video:
    still = np.random.default_rng(0).integers(0, 100, (16, 16, 3), dtype=np.uint8)
    drawn = np.stack([np.roll(still, number, axis=1) for number in range(frames)])  # the same grey values elsewhere
    drawn[frames // 2 :] += 120  # but for a cut in the middle
    return Video(drawn, fps=2.0)


def asked(documents=DOCS):
    return prepare(watcher(), QUESTION, videos=[clip()], extras={DOCUMENTS: [documents]})


def together(template: str = DRAFT):
    (conversation,) = asked().conversations
    return [with_words(conversation, template.format(document=document)) for document in DOCS]


def scripted(*texts: str):
    """A writer that says these texts, and what it was asked."""
    heard: list = []

    def write(conversations):
        heard.extend(conversations)
        return list(texts)

    return write, heard


def draft(subject: str, answer: str) -> str:
    return f"Subject: {subject}\nReasoning: so it says\nAnswer: {answer}"


# The choice.


def test_delta_0_takes_the_most_reliable_and_delta_1_the_best_aligned():
    draw = random.Random(0)
    for _ in range(200):
        rel, ent = ([draw.choice((0.0, 0.2, 0.5, 0.9, 1.0)) for _ in range(5)] for _ in range(2))
        first, last = best_draft(rel, ent, 0), best_draft(rel, ent, 1)
        assert rel[first] == max(rel) and ent[last] == max(ent)
        assert ent[first] == max(e for r, e in zip(rel, ent, strict=True) if r == max(rel))
        assert rel[last] == max(r for r, e in zip(rel, ent, strict=True) if e == max(ent))  # ties by rel
        for delta in (0.1, 0.3, 0.7):
            chosen = [place for place in range(5) if rel[place] >= max(rel) - delta]
            assert admitted(rel, delta) == chosen
            assert best_draft(rel, ent, delta) == min(chosen, key=lambda i, e=ent, r=rel: (-e[i], -r[i], i))


# One pass over all drafts.


def test_reliability_of_all_drafts_in_one_pass_is_that_of_plain_forward_passes():
    target, squares = watcher(), []
    conversations = [
        with_words(asked().conversations[0], JUDGE.format(subject=document, reasoning="so", answer=document[:4]))
        for document in DOCS
    ]
    hook = target.model.model.visual.register_forward_pre_hook(lambda _, args: squares.append(len(args[0])))
    try:
        found = Reliability(target, **WORDS)(conversations)
    finally:
        hook.remove()
    yes, no = (target.tokenizer.convert_tokens_to_ids(word) for word in "yn")
    expected = []
    for conversation in conversations:
        alone = prepare(target, messages=[conversation])
        with torch.inference_mode():
            p = target.model(**alone.inputs).logits[0, -1].double().softmax(-1)
        expected.append((p[yes] / (p[yes] + p[no])).item())
    assert found == pytest.approx(expected, abs=1e-5) and len({round(one, 4) for one in found}) == 3
    assert squares == [prepare(target, QUESTION, videos=[clip()]).inputs["pixel_values_videos"].shape[0]]  # once


def test_spellings_count_together():
    target, (conversation, *_) = watcher(), together()
    with torch.inference_mode():
        p = target.model(**prepare(target, messages=[conversation]).inputs).logits[0, -1].double().softmax(-1)
    of = dict(zip("yobn", p[target.tokenizer.convert_tokens_to_ids(list("yobn"))].tolist(), strict=True))
    (found,) = Reliability(target, ("y", "o", "yes"), ("n", "b"))([conversation])
    assert found == pytest.approx((of["y"] + of["o"]) / sum(of.values()), abs=1e-5)


def member_of(name: str) -> Member:
    target = watcher()
    if name == "the target":
        return Member(target, name)
    if name == "the target, drafted":
        return Member(target, name, NGramDrafter(target))
    if name == "a model of its own":
        return Member(Target(target.model, tiny_processors.Patches()), name)
    if name == "a blind draft model":
        return Member(TextOnlyDrafter(target, llama(seed=8, layers=4)), name)  # one that heeds what it reads
    return Member(OwnEncoderDrafter(target, target.model, tiny_processors.Patches()), name)


@pytest.mark.parametrize("name", ["the target", "the target, drafted", "a model of its own", "a blind draft model"])
def test_drafts_in_one_batch_are_those_that_are_written_alone(name):
    member, target = member_of(name), watcher()
    conversations = together()
    rows = member.write_all(prepare_together(target, conversations), target, 9)
    alone = [member.write(prepare(target, messages=[one]), target, 9) for one in conversations]
    assert rows == alone and len({tuple(row) for row in rows}) > 1 and min(map(len, rows)) > 5


def test_a_draft_model_that_looks_itself_reads_every_row():
    """The rows share a video and not a text: it must not take the first one's conversation for all."""
    member, target = member_of("a draft model that looks itself"), watcher()
    conversations = together()
    rows = member.write_all(prepare_together(target, conversations), target, 6)
    assert rows == [member.write(prepare(target, messages=[one]), target, 6) for one in conversations]
    request = prepare_together(target, conversations)
    assert not request.of_one_text and target.repeat(asked(), 3).of_one_text and asked().of_one_text
    drafter = member.model
    own, _ = drafter.prompt_of(request, None)
    assert own.token_ids() == request.token_ids() and len({len(ids) for ids in own.token_ids()}) == 3


def test_rows_of_a_draft_model_end_by_themselves():
    target = watcher()
    drafter = member_of("a blind draft model").model
    request = prepare_together(target, together())
    free = drafter.write(request, target.encode(request), 12, ())
    assert list(map(len, free)) == [12] * 3
    ends = {free[0][2], free[1][6]}
    cut = [list(itertools.takewhile(lambda token: token not in ends, row)) for row in free]
    assert len({len(row) for row in cut}) > 1
    with torch.inference_mode():
        assert drafter.write(request, target.encode(request), 12, ends) == cut
        assert drafter.write(request, target.encode(request), 0, ()) == [[], [], []]


# The whole way, with scripted drafts, scores and reliabilities where no tiny model means anything.


def test_the_best_aligned_of_the_reliable_drafts_is_the_answer():
    texts = [draft("a dog", "rex"), draft("a cat", "bo"), draft("a bird", "al"), "no answer here: Subject: x"]
    write, heard = scripted(*texts)
    seen = []

    def score(subjects, pictures):
        seen.append((list(subjects), [np.asarray(one)[0, 0, 0] for one in pictures]))
        return np.array([[0.1, 0.2], [0.7, 0.1], [0.3, 0.9]])

    chooser = VideoSpeculateRAG(watcher(), write, score, delta=0.3, **WORDS)
    judged = []
    chooser.reliability = lambda questions, settings: judged.extend(questions) or [0.9, 0.7, 0.5]
    found = chooser.ask(QUESTION, videos=[clip()], documents=[*DOCS, "nothing"])
    assert found.text == "bo" and found.by == "document 2" and found.token_ids == ids_of("bo")
    assert [one.alignment for one in found.drafts] == [0.2, 0.7, 0.9, None]  # the largest of the keyframes
    assert found.scores == {"document 1": 0.9, "document 2": 0.7, "document 3": 0.5}
    assert found.kept == ["document 1", "document 2"] and found.reasons["document 2"] == "so it says"
    assert found.passes == 1 and found.tokens["large"] == 0 and found.tokens["members"] > 20
    assert found.answers == {"document 1": "rex", "document 2": "bo", "document 3": "al", "document 4": ""}
    # The scorer saw the first frame and the cut of the video, the writer each document, the judge each draft.
    cuts = [frame[0, 0, 0] for frame in clip().frames[[0, 3]]]
    assert seen[0] == (["a dog", "a cat", "a bird"], cuts) and found.keyframes == 2
    assert [DOCS[place] in heard[place][-1].texts[-1] for place in range(3)] == [True] * 3
    assert [answer in judged[place][-1].texts[-1] for place, answer in enumerate(("rex", "bo", "al"))] == [True] * 3
    for delta, answer in ((0.0, "rex"), (1.0, "al"), (0.1, "rex")):
        chooser.delta = delta
        assert chooser.ask(QUESTION, videos=[clip()], documents=[*DOCS, "nothing"]).text == answer


def test_all_pictures_and_the_keyframes_of_every_video_are_seen():
    request, picture = asked(), Image.fromarray(clip().frames[0])
    shown = [Medium("image", picture), Medium("video", clip()), Medium("video", clip()), QUESTION]
    request.conversations = [[Message("user", tuple(shown))]]
    assert seen_in(request, 0.8)[0] is picture
    red = [np.asarray(one)[0, 0, 0] for one in seen_in(request, 0.8)]
    first, cut = (clip().frames[place][0, 0, 0] for place in (0, 3))
    assert red == [first, first, cut, first, cut] and len(seen_in(request)) == 1 + 6 + 6


def ids_of(text: str):
    return watcher().tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_draft_without_a_subject_fits_nothing():
    write, _ = scripted("Answer: rex", draft("a cat", "bo"))
    chooser = VideoSpeculateRAG(watcher(), write, lambda subjects, pictures: -np.ones((1, len(pictures))), 1.0, **WORDS)
    found = chooser.answer(asked(DOCS[:2]))
    assert found.text == "bo" and [one.alignment for one in found.drafts] == [float("-inf"), -1.0]
    chooser.small, _ = scripted("Answer: rex", "Answer: bo")  # then the more reliable one is taken
    found = chooser.answer(asked(DOCS[:2]))
    assert found.scores[found.by] == max(found.scores.values())


def test_the_large_model_reads_all_documents_if_no_draft_has_an_answer():
    write, _ = scripted("Subject: x", "Reasoning: y")
    found = VideoSpeculateRAG(watcher(), write, never, **WORDS).answer(asked(DOCS[:2]), max_new_tokens=5)
    conversation = all_documents(asked().conversations[0], DOCS[:2])
    text = mmspec.generate(watcher(), messages=[conversation], max_new_tokens=5).text[0]
    standard = StandardRAG(watcher(), drafter=NGramDrafter(watcher())).answer(asked(DOCS[:2]), max_new_tokens=5)
    assert found.by == "large" and found.text == text == standard.text and found.passes == 5
    assert all(document in conversation[-1].texts[-1] for document in DOCS[:2])


def never(*_):
    raise AssertionError("nobody is to ask this")


def test_a_retriever_finds_the_documents_of_questions_that_have_none():
    asked_for = []

    def embed(pictures):
        asked_for.append(len(pictures))
        return torch.tensor([[1.0, 0.0]]).expand(len(pictures), 2)

    retriever = CosineRetriever(DOCS, [[0.0, 1.0], [1.0, 0.1], [1.0, 0.9]], embed, count=2)
    write, heard = scripted(draft("a cat", "bo"), draft("a bird", "al"))
    chooser = VideoSpeculateRAG(watcher(), write, ones, retriever=retriever, **WORDS)
    found = chooser.ask(QUESTION, videos=[clip()])
    assert [one.document for one in found.drafts] == [DOCS[1], DOCS[2]] and "retrieval" in found.seconds
    assert asked_for == [2]  # the first frame and the cut
    chooser.ask(QUESTION, videos=[clip()], documents=DOCS[:2])
    assert len(asked_for) == 1 and DOCS[0] in heard[2][-1].texts[-1]


def ones(subjects, pictures):
    return torch.ones(len(subjects), len(pictures))


def test_the_nearest_documents_come_first_and_once():
    documents = ["far", "near", " near ", "middle"]
    embeddings = [[-1.0, 0.0], [1.0, 0.1], [2.0, 0.0], [1.0, 1.0]]
    assert nearest([[3.0, 0.0]], embeddings, documents) == [" near ", "middle", "far"]
    assert nearest([[3.0, 0.0], [-1.0, 0.0]], embeddings, documents, 2) == ["far", " near "]  # any of the queries


def test_a_clip_of_transformers_scores_as_its_own_forward_pass():
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": 61, "max_position_embeddings": 24, "eos_token_id": 60, "bos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=size | words, vision_config=size | {"image_size": 16, "patch_size": 8}, projection_dim=8
    )
    model, square = CLIPModel(config).eval(), {"height": 16, "width": 16}
    tokenizer = tiny_processors.tokenizer(("<eos>", 60))
    tokenizer.model_max_length = 24
    processor = CLIPProcessor(CLIPImageProcessorPil(size=square, crop_size=square), tokenizer)
    scorer = ClipScorer(model, processor)
    subjects, pictures = ["a dog", "the blue bird"], [Image.fromarray(frame) for frame in clip().frames[::2]]
    read = processor(text=subjects, images=pictures, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**read).logits_per_text / model.logit_scale.exp()
    assert torch.allclose(scorer(subjects, pictures), expected, atol=1e-5)
    assert scorer(["a very long name, " * 9], pictures[:1]).shape == (1, 1)  # cut


def test_refusals():
    target = watcher()
    write, _ = scripted(*[draft("a", "b")] * 3)
    short, _ = scripted("a")

    def rag(scorer=ones, small=write, **options):
        return VideoSpeculateRAG(target, small, scorer, **(WORDS | options))

    def of_shape(*shape):
        return rag(lambda *_: np.zeros(shape)).answer(asked())

    for make, message in [
        (lambda: rag().ask(QUESTION, videos=[clip()]), "the question has no documents: give documents="),
        (lambda: rag().ask(QUESTION, videos=[clip()], documents=[]), "the question has no documents"),
        (lambda: rag().ask(QUESTION, documents=DOCS), "beside a picture or a video, and there is none"),
        (lambda: rag().ask(QUESTION, videos=[clip()], documents="a b"), "documents='a b' must be a list of texts"),
        (lambda: rag().ask(QUESTION, videos=[clip()], documents=["a", " "]), "document 2 is ' '"),
        (lambda: rag().answer(prepare(target, inputs=asked().inputs)), "not inputs="),
        (lambda: rag().answer(target.repeat(asked(), 2)), "answers one question at a time, and there are 2"),
        (lambda: of_shape(3), r"returned shape \(3,\) for 3 subjects and \d pictures"),
        (lambda: of_shape(1, 3), r"returned shape \(1, 3\) for 3 subjects"),
        (lambda: rag(lambda *_: "well").answer(asked()), "'well', which is no table of numbers"),
        (lambda: rag(lambda s, p: np.full((3, len(p)), np.nan)).answer(asked()), "not finite"),
        (lambda: rag(small=short).answer(asked()), "for 3 documents: return a text for each"),
        (lambda: rag(small=lambda _: None).answer(asked()), "returned None for 3 documents"),
        (lambda: rag(small=lambda _: "abc").answer(asked()), "returned 'abc' for 3 documents"),
        (lambda: rag(yes_words="yes"), r"yes_words='yes' has no word that is one token of the target \('yes' is"),
        (lambda: rag(no_words=()), "there is none"),
        (lambda: rag(yes_words=("y", "n")), "both have 'n'"),
        (lambda: rag(delta=1.5), "VideoSpeculateRAG: delta=1.5 must be a number from 0 to 1"),
        (lambda: rag(keyframe=2), "VideoSpeculateRAG: keyframe=2"),
        (lambda: rag(scorer=3), "scorer=3 must be a function"),
        (lambda: rag(small=3), "is no Target and no draft model"),
        (lambda: rag(small=NGramDrafter(target)), "is no Target and no draft model"),
        (lambda: rag(retriever=3), "retriever=3 must be a function"),
        (lambda: ClipScorer(target.model, None), "has no get_text_features"),
        (lambda: VideoSpeculateRAG(Target(llama(), tiny_processors.tokenizer()), write, **WORDS), "takes no pictures"),
        (lambda: nearest([1.0], [[1.0]], ["a"]), r"queries has shape \(1,\)"),
        (lambda: nearest([[1.0]], [[1.0]], ["a", "b"]), r"embeddings has shape \(1, 1\) for 2 documents"),
        (lambda: CosineRetriever(["a"], [[1.0], [2.0]], ones), "1 documents, and embeddings of 2"),
        (lambda: CosineRetriever(["a"], "x", ones), "embeddings='x' must be a table of numbers"),
    ]:
        with pytest.raises(MMSpecError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
