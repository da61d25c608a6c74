"""Questions with documents: the task, the target's tower as a scorer on it, and both ways in `mmspec bench`."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from running import measure, side, tiny

from mmspec import MMSpecError, zoo
from mmspec.chat import Medium, Message
from mmspec.data import Example, FactSource, from_record, to_record
from mmspec.data.accuracy import metrics_of
from mmspec.decoding.sampling import Sampling
from mmspec.evaluation import report
from mmspec.evaluation.methods import GROUPS, Method
from mmspec.evaluation.questions import told
from mmspec.selection import (
    DOCUMENTS,
    StandardRAGEngine,
    TowerScorer,
    VideoSpeculateRAGEngine,
    read_parts,
)
from mmspec.selection.documents import DRAFT
from mmspec.selection.member import with_words
from mmspec.zoo.data import subject_of
from mmspec.zoo.facts import MOST, FactReader, fact


def test_one_document_is_about_the_shape_that_is_asked_for_and_the_others_about_none_that_is_shown():
    rights = set()
    for index in range(30):
        found, scene = fact("test", index, 5), subject_of("scenes", "test", index)
        assert found == fact("test", index, 5) and len(set(found.documents)) == 5
        names = [document.split(" is called ")[0].removeprefix("The ") for document in found.documents]
        (asked,) = [
            thing for thing in scene.things if thing.place in found.prompt.split(" in the ")[1].split(" called")
        ]
        assert names[found.right] == asked.name
        shown = {f"{thing.colour} {thing.shape}" for thing in scene.things}
        assert not any(name.split(" ", 1)[1] in shown for name in names[: found.right] + names[found.right + 1 :])
        assert found.documents[found.right] == f"The {asked.name} is called {found.answer}."
        rights.add(found.right)
    assert rights == set(range(5))
    assert len(fact("train", 3, MOST).documents) == MOST and fact("train", 3, 1).right == 0
    with pytest.raises(ValueError, match="1 to 40 documents, not 41"):
        fact("train", 3, MOST + 1)


def test_the_reader_takes_the_document_apart_wherever_it_stands():
    found = fact("test", 7)
    talk = [Message("user", (Medium("image"), found.prompt))]
    asked = [with_words(talk, DRAFT.format(document=document)) for document in found.documents]
    parts = [read_parts(text) for text in FactReader()(asked)]
    assert parts[found.right].answer == found.answer
    assert [f"The {one.subject} is called {one.answer}." for one in parts] == list(found.documents)
    assert FactReader()([talk]) == [""]


def test_the_task_and_how_documents_are_told():
    source = FactSource(count=2, start=5, documents=3, metric="exact_match")
    examples = list(source)
    assert [one.id for one in examples] == ["facts/test/5", "facts/test/6"] and len(examples[1].documents) == 3
    assert all(from_record(to_record(one)) == one for one in examples) and "documents" not in to_record(
        Example("a", "b")
    )
    other = Example("x", "y", regions=("r",))
    assert told([examples[0], other]) == {
        "references": [None, ["r"]],
        DOCUMENTS: [list(examples[0].documents), None],
    }
    assert told([other]) == {"references": [["r"]]} and told([Example("x", "y")]) is None
    assert source.describe() != FactSource(start=5, documents=4).describe()
    for settings, message in (
        ({"split": "tests"}, "split 'tests' is unknown. Did you mean"),
        ({"documents": 41}, "documents=41 must be at most 40"),
        ({"count": 0}, "count=0 must be at least 1"),
    ):
        with pytest.raises(MMSpecError, match=message):
            FactSource(**settings)


@pytest.mark.product
def test_the_tower_scores_by_the_closest_visual_token_of_each_word():
    target = tiny()
    pictures = [zoo.sample("scenes", "test", index)[0] for index in range(3)]
    subjects = ["small red circle", "green star"]
    found = TowerScorer(target, at_once=2)(subjects, pictures)
    read = target.processor(text=["<image>"] * 3, images=pictures, return_tensors="pt")
    words = target.model.get_input_embeddings().weight
    with torch.inference_mode():
        seen = target.model.get_image_features(pixel_values=read["pixel_values"])
        seen = getattr(seen, "pooler_output", seen)
        for row, subject in enumerate(subjects):
            tokens = [target.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in subject.split()]
            own = words[torch.tensor([one for (one,) in tokens])]
            for column, picture in enumerate(seen):
                cosines = torch.cosine_similarity(own[:, None], picture[None], dim=-1)
                assert found[row, column].item() == pytest.approx(cosines.amax(1).mean().item(), abs=1e-5)


@pytest.mark.product
def test_the_target_knows_which_subject_it_sees():
    """The most aligned of six drafts is the right one far more often than one in six, by what the target has learnt."""
    scorer, right = TowerScorer(tiny()), 0
    for index in range(200, 224):
        asked = fact("test", index)
        subjects = [document.removeprefix("The ").split(" is called ")[0] for document in asked.documents]
        right += int(scorer(subjects, [zoo.sample("scenes", "test", index)[0]]).argmax()) == asked.right
    assert right >= 12


@pytest.mark.product
def test_bench_has_accuracy_and_cost_of_both(tmp_path):
    sides = [side("plain", tiny(), tokens=12)]
    for label, cls, settings in (
        ("all documents", StandardRAGEngine, {}),
        ("read", VideoSpeculateRAGEngine, {"small": FactReader(), "delta": 1.0}),
        ("drafted", VideoSpeculateRAGEngine, {}),
        ("by the target", VideoSpeculateRAGEngine, {"small": "large"}),
    ):
        made = cls(tiny(), None, None, None, Sampling(), 12, **settings)
        sides.append(Method(label, (), OmegaConf.create(dict.fromkeys(GROUPS)), engine=made))
    source = FactSource(count=2, start=100, documents=3)
    source.metric = metrics_of("exact_match")
    bundle = measure(tmp_path / "b", source, tiny(), sides)
    assert not any(one["failed"] for one in bundle.manifest["sides"])
    assert [one["lossless"] for one in bundle.manifest["sides"]] == [True, False, False, False, False]
    records = {(record["side"], record["request"]): record for record in bundle.requests}
    assert records["read", 0]["passes"] == 0 < records["all documents", 0]["passes"]
    headings, rows = report(tmp_path / "b").table().cells()
    shown = {row[0]: dict(zip(headings, row, strict=True)) for row in rows}
    assert float(shown["read"]["accuracy"]) > float(shown["plain"]["accuracy"]) == 0
    assert shown["drafted"]["same text as plain"].startswith("lossy")
