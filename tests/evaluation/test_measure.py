"""Measuring: what is recorded, what is checked, what makes a run fail, and how it goes on."""

import json
from dataclasses import replace
from operator import itemgetter

import pytest
from running import (
    PAGE,
    SHORT,
    AcceptsAll,
    Listed,
    OtherNoise,
    interrupted_at,
    lines,
    measure,
    questions,
    side,
    sides,
    tiny,
)

import mmspec
from mmspec.data import Example, open_image
from mmspec.decoding.sampling import Sampling
from mmspec.drafters import NGramDrafter
from mmspec.errors import MMSpecError
from mmspec.evaluation.bench import prepare_run
from mmspec.evaluation.bundle import REQUESTS, ROUNDS, Bundle, BundleWriter
from mmspec.evaluation.measure import Protocol, booking_seconds
from mmspec.evaluation.methods import PLAIN, PLAIN_AGAIN
from mmspec.evaluation.questions import grouped
from mmspec.exactness import Divergence, divergences, next_scores
from mmspec.inputs import prepare
from mmspec.verifiers import RejectionSampling, Synthetic

pytestmark = pytest.mark.product


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Three methods, three requests, two repeats."""
    target, place = tiny(), tmp_path_factory.mktemp("measured") / "b"
    chosen = [*sides(target, tokens=10), side("again", target, tokens=10)]
    return measure(place, questions(100, 101, 102), chosen=chosen, repeats=2)


def test_a_bundle_holds_every_answer_and_round(bundle):
    assert bundle.complete and bundle.manifest["requests"] == 3 and bundle.manifest["skipped"] == []
    assert len(bundle.requests) == 3 * 3 * 2
    place = itemgetter("request", "turn", "repeat", "side")
    for record in bundle.requests:
        rounds = [entry for entry in bundle.rounds if place(entry) == place(record)]
        assert len(rounds) == record["passes"]
        assert sum(entry["emitted"][0] for entry in rounds) + record["first_tokens"][0] == record["new_tokens"][0]
        assert record["same"] is True and record["repeatable"] is True
        assert ("token_ids" in record) == (record["repeat"] == 0)


def test_phases_add_up_to_the_wall_time_and_measuring_costs_little(bundle):
    inside = sum(sum(record["seconds"].values()) for record in bundle.requests)
    outside = sum(record["wall"] for record in bundle.requests)
    assert 0.98 * outside < inside <= outside
    seconds = bundle.manifest["seconds"]
    assert 0 < seconds["measuring"] < 0.02 * seconds["timed"]
    assert 0 < booking_seconds(200) < 1e-3


def test_the_methods_take_turns_and_change_places(bundle):
    order = {}
    for record in bundle.requests:
        order.setdefault((record["request"], record["repeat"]), {})[record["order"]] = record["side"]
    firsts = [order[request, 0][0] for request in range(3)]
    assert sorted(firsts) == ["again", "ngram", "plain"]
    assert [order[0, 1][place] for place in range(3)] == [order[0, 0][place] for place in (2, 1, 0)]


def test_the_same_seed_gives_the_same_tokens_and_counts(tmp_path):
    said = []
    for seed in (3, 4):
        chosen = sides(tiny(), temperature=1.0, tokens=16)
        bundle = measure(tmp_path / str(seed), chosen=chosen, seed=seed, repeats=2)
        assert all(record["repeatable"] and record["same"] for record in bundle.requests)
        said.append(bundle.requests[0]["token_ids"])
    assert said[0] != said[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_verifier_fails_the_run(tmp_path, dtype):
    target = tiny(dtype)
    chosen = sides(target, verifier=AcceptsAll())
    with pytest.raises(Divergence) as caught:
        measure(tmp_path / "b", PAGE, target, chosen)
    message = str(caught.value)
    for part in ("'ngram'", "documents/test/100", "new token", "prefers", dtype, "on_divergence=report"):
        assert part in message
    failed = Bundle.open(tmp_path / "b")
    assert failed.manifest["status"] == "failed" and failed.manifest["error"] == message
    assert [record["same"] for record in failed.requests] == [True, False], "what was measured is kept"
    assert measure(tmp_path / "c", PAGE, target, chosen, on_divergence="report").complete


def test_wrong_noise_fails_a_sampled_run(tmp_path):
    chosen = sides(tiny(), verifier=OtherNoise(), temperature=1.0, tokens=20)
    with pytest.raises(Divergence, match="'ngram' is not lossless"):
        measure(tmp_path / "b", questions(100), chosen=chosen)


def test_plain_decoding_is_its_own_control(tmp_path):
    target = tiny("bfloat16")
    again = replace(side(PLAIN_AGAIN, target), control=True)
    plain, ngram = sides(target)
    bundle = measure(tmp_path / "b", target=target, chosen=[plain, again, ngram])
    assert [record["same"] for record in bundle.requests if record["side"] == PLAIN_AGAIN] == [True]
    assert [one["control"] for one in bundle.manifest["sides"]] == [False, True, False]
    wrong = side(PLAIN_AGAIN, target, NGramDrafter(target), verifier=AcceptsAll())
    other = replace(wrong, control=True)  # as if numerics changed the text
    bundle = measure(tmp_path / "c", target=target, chosen=[plain, other, ngram])
    assert bundle.complete and not bundle.failures, "the control is reported and never fails"
    assert [record["same"] for record in bundle.requests if record["side"] == PLAIN_AGAIN] == [False]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [([], False), (["dtype=bfloat16"], True), (["dtype=bfloat16", "control=false"], False), (["control=true"], True)],
)
def test_the_control_is_on_in_half_precision(overrides, wanted):
    _, _, methods = prepare_run(["drafter=ngram", *overrides])
    assert [method.label for method in methods] == [PLAIN, *([PLAIN_AGAIN] if wanted else []), "ngram"]


def test_what_cannot_be_compared_token_by_token_is_not(tmp_path):
    target = tiny()
    drafter = mmspec.load_drafter("tiny/text_only", target)
    chosen = [side("plain", target, temperature=1.0)]
    chosen += [side("rejection", target, drafter, verifier=RejectionSampling(), temperature=1.0)]
    chosen += [side("synthetic", target, drafter, verifier=Synthetic(0.5), temperature=1.0)]
    bundle = measure(tmp_path / "b", chosen=chosen)
    assert [record["same"] for record in bundle.requests] == [True, None, None]
    assert [s["lossless"] for s in bundle.manifest["sides"]] == [True, True, False]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_margin_is_what_the_loop_decides_by(temperature):
    target = tiny()
    image, prompt, _ = mmspec.zoo.sample("scenes", "test", 100)
    requests = prepare(target, [prompt, "Describe it."], [[image], [image]])
    out = mmspec.generate(target, inputs=requests, temperature=temperature, seed=5, max_new_tokens=12)
    sampling = Sampling(temperature)
    for row in range(2):
        ids = out.token_ids[row]
        for position in (0, 4, 11):
            scores = next_scores(target, requests, row, ids[:position], sampling, 5)
            assert scores.argmax() == ids[position]
    other = [list(ids) for ids in out.token_ids]
    other[1][4] = (other[1][4] + 1) % 600
    (found,) = divergences(target, requests, out.token_ids, other, sampling, 5, tie=2.0)
    assert (found["row"], found["position"]) == (1, 4) and found["margin"] > 0 and not found["tie"]
    (tied,) = divergences(target, requests, out.token_ids, other, sampling, 5, tie=1e9)
    assert tied["tie"]
    short = [out.token_ids[0][:7], out.token_ids[1]]
    (found,) = divergences(target, requests, out.token_ids, short, sampling, 5, tie=2.0)
    assert (found["position"], found["token"], found["margin"]) == (7, None, None)


def test_an_interrupted_run_goes_on(tmp_path):
    source, folder = questions(100, 101, 102), tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        measure(folder, source, progress=interrupted_at(2))
    stopped = Bundle.open(folder)
    assert stopped.manifest["status"] == "interrupted" and len(stopped.blocks()) == 2
    before = (folder / REQUESTS).read_text()
    # A full disk, and a kill in the middle of a block and of a line.
    (folder / ROUNDS).rename(tmp_path / "kept")
    (folder / ROUNDS).symlink_to("/dev/full")
    with BundleWriter(folder, "") as writer, pytest.raises(MMSpecError, match="No space left.*--resume"):
        writer.add([], [{"request": 1}])
    (tmp_path / "kept").replace(folder / ROUNDS)
    for name in (REQUESTS, ROUNDS):
        first = lines(folder / name)[0]
        with (folder / name).open("a") as file:
            file.write(json.dumps(first | {"request": 2}) + '\n{"requ')
    bundle = measure(folder, source)
    assert bundle.complete and (folder / REQUESTS).read_text().startswith(before)
    whole = measure(tmp_path / "c", source)
    assert len(bundle.requests) == len(whole.requests) == 6
    for a, b in zip(bundle.requests, whole.requests, strict=True):
        assert a["token_ids"] == b["token_ids"] and a["order"] == b["order"]
    with pytest.raises(MMSpecError, match="is complete"):
        measure(folder, source)


def test_a_folder_of_others_and_one_in_use_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with BundleWriter(tmp_path, "") as writer:
        with pytest.raises(MMSpecError, match="'thesis.tex' and no bundle"):
            writer.begin({})
        with pytest.raises(MMSpecError, match="another process"), BundleWriter(tmp_path, ""):
            pass


def test_pictures_that_fail_are_reported_and_leave_their_batch_alone(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    bad = [Example(name, "What?", (str(tmp_path / f"{name}.png"),), "scenes") for name in ("missing", "broken")]
    bundle = measure(tmp_path / "b", Listed(*bad, *questions(100, 101)), batch_size=4)
    skipped = {skip["id"]: skip["reason"] for skip in bundle.manifest["skipped"]}
    assert set(skipped) == {"missing", "broken"} and all(f"{name}.png" in skipped[name] for name in skipped)
    assert [record["ids"] for record in bundle.requests] == [["scenes/test/100", "scenes/test/101"]] * 2
    assert all(len(record["new_tokens"]) == 2 and record["same"] for record in bundle.requests)
    with pytest.raises(MMSpecError, match="none of the 2 questions could be asked"):
        measure(tmp_path / "c", Listed(*bad))
    with pytest.raises(MMSpecError, match="no question"):
        measure(tmp_path / "d", Listed())


def test_batches_are_of_one_task_and_keep_their_order():
    source = questions(1, 2, 3, tasks=("scenes", "charts"))
    found = [(g.number, g.task, [e.id for e in g.examples]) for g in grouped(source, 2)]
    assert found == [
        (0, "scenes", ["scenes/test/1", "scenes/test/2"]),
        (1, "charts", ["charts/test/1", "charts/test/2"]),
        (2, "scenes", ["scenes/test/3"]),
        (3, "charts", ["charts/test/3"]),
    ]
    assert len(list(grouped(source, limit=1))) == 2


def test_later_turns_are_asked_after_what_plain_decoding_said(tmp_path):
    first = questions(100)[0]
    source = Listed(
        Example("talk", first.prompt, first.images, "scenes", follow_ups=("How many shapes?", "Where?")),
        questions(101)[0],
    )
    target = tiny()
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "b", source, progress=interrupted_at(2))
    bundle = measure(tmp_path / "b", source)
    turns = [r for r in bundle.requests if r["side"] == "plain" and r["ids"] == ["talk"]]
    assert [record["turn"] for record in turns] == [0, 1, 2]
    said = [record["text"][0] for record in turns]
    prompt = (first.prompt, said[0], "How many shapes?", said[1], "Where?")
    out = mmspec.generate(target, None, [prompt], [[open_image(first.images[0])]], max_new_tokens=SHORT)
    assert out.text[0] == said[2]
    assert [r["ids"] for r in bundle.requests if r["turn"] == 1] == [["talk"]] * 2


@pytest.mark.parametrize("setting", ["repeats=0", "warmup=-1", "attributed=-1", "limit=0", "on_divergence=ignore"])
def test_bad_protocols_are_refused(setting):
    name, _, value = setting.partition("=")
    with pytest.raises(MMSpecError, match=f"{setting} must be (at least [01]|fail or report)"):
        Protocol(**{name: int(value) if value.lstrip("-").isdigit() else value})
