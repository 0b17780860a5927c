"""The page that compares variants: complete, self-contained, and true to what is missing."""

import re

import pytest

from irnet import files
from irnet.errors import InputError
from irnet.report.page import page
from irnet.report.table import table_text
from tests.report.made_up import FACTS, VARIANTS, made_up, made_up_gallery, made_up_puzzles, made_up_runs
from tests.report.reader import Reader, self_contained


@pytest.mark.parametrize("gallery", [0, 2])
def test_page_is_self_contained_and_well_formed(tmp_path, gallery):
    path = tmp_path / "new" / "page.html"
    files.write(path, page("irnet demo", made_up_runs(), made_up_gallery(gallery), FACTS))
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]  # no draft is left behind
    text = path.read_text(encoding="utf-8")
    reader = self_contained(text)
    words = " ".join(reader.words)
    assert "raised accuracy from 46.3 % to 76.3 %" in words and "at or below 60.8 %" in words
    for expected in [*VARIANTS, "1500 training", "two cores", "torch 2.13", "7", "2,000 boxes", "held-out"]:
        assert expected in words
    assert sum(tag == "svg" for tag, _ in reader.tags) == 3  # iterations and two losses
    if gallery:
        scenes = 2 * (2 + 1)  # two scenes with two writes and the attention each
        assert len(reader.images) == gallery + scenes
        entry = made_up_gallery(gallery)[1]
        for reasoning in entry["reasonings"].values():
            answer, score = reasoning.answer(1)
            assert answer in words and f"{score:.2f}" in words
    else:
        assert "no box was named right by the full model and wrong by all others" in words


def test_page_begins_with_a_card_for_every_puzzle():
    made = made_up_puzzles()
    text = page("t", made_up_runs(), made_up_gallery(2), FACTS, puzzles=made)
    reader = self_contained(text)
    first = text[: text.index("<table")]
    assert first.count("<figure class=card>") == 3 == first.count("<img")
    for entry in made:
        shown, region = entry["reasonings"]["full"], entry["region"]
        alt = f"a box that truly holds a {shown.truth(region)}. Framed in dashes, its clue: {shown.truth(3)}."
        assert entry["rule"] in first and alt in first
        for variant in ("conv", "full"):
            answer, score = entry["reasonings"][variant].answer(region)
            verdict = "✓ right" if answer == shown.truth(region) else "✗ wrong"
            assert re.search(rf"<dd>{answer}, {score:.2f}</dd><dd class=\w+>{verdict}</dd>", first)
    assert "the box in question" in reader.words
    assert "the box in question" not in page("t", made_up_runs(), [], FACTS)


def test_page_escapes_names():
    nasty = ["<b>bold</b>", '"quoted" & co', "<script>alert(1)</script>", "a'b", "</figcaption>"]
    asked = {"kind": "<i>k</i>", "rule": "<u>r</u>", "clue": [0, 1]} | made_up_gallery(1, nasty)[0]
    facts = {**FACTS, "machine": "<u>m</u>"}
    text = page("<i>title</i>", made_up_runs(), made_up_gallery(3, nasty), facts, puzzles=[asked])
    reader = Reader(text)
    assert not {"b", "i", "u", "script"} & {tag for tag, _ in reader.tags}
    assert "&lt;u&gt;" in text and "&lt;i&gt;title" in text
    assert "<b>bold</b>" in " ".join(reader.words)


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [{"variant": "conv"}],
        [{"variant": "full", "results": {}, "history": [], "seconds": None, "parameters": None}],
        [
            {"variant": "conv", "results": {"metrics": {"final": {"class_ap": 0.5}}}},
            {"variant": "mine", "seconds": 3.2},
        ],
        [{"variant": "conv", "history": [{"step": 1, "loss": float("nan")}, {"step": 2}, {"loss": 1.0}]}],
        [{"variant": "full", "results": {"metrics": {"local 1": {"instance_accuracy": 0.5}}}}],
    ],
    ids=["none", "bare", "empty", "other", "nan", "no conv"],
)
def test_page_and_tables_work_with_fields_missing(runs):
    text = page("only a title", runs, [], {})
    words = " ".join(Reader(text).words)
    assert "only a title" in words and "nan" not in words.lower() and "None" not in words
    assert "box-only bound" not in words and "Gains" not in words  # nothing is invented
    assert all(run["variant"] in table_text(runs, {}) for run in runs)


def test_page_claims_no_difference_within_the_noise():
    runs = made_up_runs()
    final = runs[3]["results"]["metrics"]["final"]
    final["instance_accuracy"] = 0.470
    text = page("t", runs, [], {})
    assert "no clear difference" in text and "two standard errors" in text
    final["instance_accuracy"] = 0.30
    assert "lowered accuracy from 46.3 % to 30.0 %" in page("t", runs, [], {})


def test_page_takes_scenes_of_its_own():
    scene = made_up(variant="conv", regions=0)
    reader = Reader(page("t", made_up_runs(), [], FACTS, scenes=[scene]))
    assert len(reader.images) == 1 and "attention" in reader.images[0]["alt"]


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")
    monkeypatch.setattr("irnet.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(InputError, match="disk full"):
        files.write(path, page("t", [], [], {}))
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["page.html"]
