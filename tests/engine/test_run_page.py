"""`irnet page`: what it collects of a run agrees with what evaluation and prediction say, on any data set."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from irnet.cli import main
from irnet.data.registry import open_dataset
from irnet.data.sample import Sample
from irnet.engine import checkpoint, evaluate, predict, run_page
from irnet.engine.build import restore_model
from irnet.engine.explain import EdgeRow
from irnet.models.predictions import CONV, FINAL
from irnet.report.run_page import Cause
from tests.engine.tools import edit
from tests.report.made_up_run import made_up_images, of_answers
from tests.report.test_run_page import calls, records


@pytest.fixture(scope="module")
def run(trained):
    """Model, data, settings and answers of a finished run."""
    saved = checkpoint.find(trained)
    model = restore_model(saved.config.model, len(saved.classes), saved.model)
    data = open_dataset(saved.config.data, "val")
    answers = run_page.answers(model, data, saved.config, next(model.parameters()).device)
    assert answers.images == len(data)
    return model, data, saved.config, answers


def test_answers_are_those_of_the_evaluation(run, trained):
    model, data, config, answers = run
    results = json.loads((trained / "results.json").read_text())
    assert answers.metrics == results["metrics"] and answers.classes == data.classes
    assert [str(key) for key in answers.best] == list(results["metrics"])
    for key in answers.best:
        accuracy = results["metrics"][str(key)]["instance_accuracy"]
        assert answers.right(key).mean() == pytest.approx(accuracy, abs=1e-12)
    for i, labels in enumerate(data.image_labels()):
        assert answers.labels[answers.image == i].tolist() == labels.tolist()
        reasoning = predict.explain(model, data[i], data.classes, config.data)
        assert answers.best[FINAL][answers.image == i].tolist() == reasoning.final.argmax(1).tolist()
        assert answers.best[CONV][answers.image == i].tolist() == reasoning.scores[0].argmax(1).tolist()


def test_images_that_reasoning_changed_most_come_first():
    labels, image = [0] * 6, [0, 0, 1, 2, 2, 4]
    conv, final = [0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0]  # image 0 changes one region, image 2 two
    run = of_answers(labels, conv, final, image)
    assert run_page.most_changed(run, 1) == [2] and run_page.most_changed(run, 2) == [0, 2]
    assert run_page.most_changed(run, 3) == [0, 1, 2]
    assert run_page.most_changed(run, 0) == run_page.most_changed(run, 9) == [0, 1, 2, 3, 4]


def test_causes_are_the_decisive_edges_of_what_reasoning_changed(run):
    model, data, config, answers = run
    relations = run_page.relation_names(model, data, config.data)
    found = list(run_page.shown(model, data, config.data, [1, 3], relations, edges=2))
    assert [one.name for one in found] == [data[i].name for i in (1, 3)]
    for i, one in zip((1, 3), found, strict=True):
        own = answers.image == i
        changed = np.flatnonzero(answers.best[CONV][own] != answers.best[FINAL][own])
        assert sorted(one.causes) == changed.tolist() and one.attributes == data[i].attributes
        for causes in one.causes.values():
            assert len(causes) <= 2 and all(cause.effect > 0 for cause in causes)
            types = {"left", "right", "above", "below", "overlap"}
            relations = {"belongs_together"} | {
                r["name"] for r in json.loads((data.root / "class_graph.json").read_text())["relations"]
            }
            assert all(cause.type in (types if cause.kind == "region" else relations) for cause in causes)
    assert any(one.causes for one in found)
    assert not any(one.causes for one in run_page.shown(model, data, config.data, [1, 3]))


def test_of_many_changed_regions_those_that_were_corrected_or_broken_are_measured(monkeypatch):
    shown = next(made_up_images(1, regions=60))
    shown.reasoning.labels[::3] = (shown.reasoning.labels[::3] + 2) % 5  # which neither answer is
    before, after = shown.reasoning.scores[0].argmax(1), shown.reasoning.final.argmax(1)
    right = (before == shown.reasoning.labels) | (after == shown.reasoning.labels)
    expected = [r for told in (True, False) for r in range(60) if before[r] != after[r] and right[r] == told]
    assert not right[expected[-1]] and expected != sorted(expected)

    class Study:
        def __init__(self, *given):
            pass

        def strongest_rows(self, region, count):
            return [(EdgeRow("class", 0, 2, 1), 0.5), (EdgeRow("region", 1, 3, 4), 0.25)]

    monkeypatch.setattr(run_page, "EdgeStudy", Study)
    for most in (1, 12, len(expected) - 1):
        monkeypatch.setattr(run_page, "MEASURED", most)
        causes = run_page._causes(None, Sample(None, None, None, ""), shown.reasoning, ["is_a"], 2)
        assert list(causes) == expected[:most]
        assert causes[expected[0]] == [Cause("class", "is_a", 2, 1, 0.5), Cause("region", "right", 3, 4, 0.25)]


def test_relations_without_their_file_have_the_names_of_a_derived_graph_or_numbers(run, tmp_path):
    model, data, config, _ = run
    count = model.graph.num_types
    names = run_page.relation_names(model, data, config.data)
    assert len(names) == count and "belongs_together" in names
    path = tmp_path / "other.json"
    graph = json.loads((data.root / "class_graph.json").read_text())
    graph["relations"][0]["edges"].pop()  # another graph, whose names may mean others
    path.write_text(json.dumps(graph))
    numbers = [f"relation {k + 1}" for k in range(count)]
    assert run_page.relation_names(model, data, replace(config.data, class_graph=str(path))) == numbers
    model.graph.num_types, root = 2, data.root
    data.root = tmp_path
    try:
        assert run_page.relation_names(model, data, config.data) == ["same_supercategory", "co_occurs"]
        model.graph.num_types = 3
        assert run_page.relation_names(model, data, config.data) == ["relation 1", "relation 2", "relation 3"]
    finally:
        model.graph.num_types, data.root = count, root


@pytest.mark.parametrize("name", [".", "checkpoints/last.safetensors"])
def test_the_command_writes_a_page_beside_the_run(name, trained, tmp_path, capsys):
    copy = shutil.copytree(trained, tmp_path / "run")
    assert main(["page", str(copy / name), "--device", "cpu", "--other-seed", str(trained), "--edges", "1"]) == 0
    index = copy / "page/index.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(index)
    text = index.read_text()
    assert "run: scenes, val" in text and "Over 2 seeds" in text and 'id="curve"' not in text
    assert "Losses over training: loss ends at " in text and "step 4" in text
    data = open_dataset(checkpoint.find(trained).config.data, "val")
    assert [record["name"] for record in records(copy / "page")] == [data[i].name for i in range(len(data))]
    ((facts,),) = [calls(copy / "page/data/run.js")]
    labels = np.concatenate([labels.numpy() for labels in data.image_labels()])
    assert [row[0] for row in facts["perClass"]] == np.bincount(labels, minlength=len(data.classes)).tolist()


def test_options_choose_images_batches_and_folder(trained, tmp_path):
    last = trained / "checkpoints/last.safetensors"
    words = ["page", str(last), "--output-dir", str(tmp_path / "p"), "--images", "2", "--edges", "0"]
    assert main([*words, "-b", "3", "train.limit_batches=1"]) == 0
    assert len(records(tmp_path / "p")) == 2
    assert "in 3 images" in (tmp_path / "p/index.html").read_text()


def test_images_without_boxes_are_shown_too(trained, copied, tmp_path):
    edit(copied, "val", lambda table: table.update(annotations=[a for a in table["annotations"] if a["image_id"] < 4]))
    words = ["page", str(trained), "--data-root", str(copied), "--output-dir", str(tmp_path / "p"), "--images", "0"]
    assert main(words) == 0
    found = records(tmp_path / "p")
    assert [bool(record["boxes"]) for record in found] == [True, True, True, False]
    text = (tmp_path / "p/index.html").read_text()
    assert "in 4 images" in text and "that were measured are here" not in text  # all are


def test_another_split_or_no_results_are_refused(trained, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(evaluate, "collect", None)  # before the evaluation
    (tmp_path / "run").mkdir()
    other = shutil.copytree(trained, tmp_path / "other")
    words = ["page", trained, "--output-dir", tmp_path / "p", "--other-seed", other]
    results = json.loads((other / "results.json").read_text())
    (other / "results.json").write_text(json.dumps(results | {"split": "test"}))
    refused(words, other / "results.json", "has other split: 'test', not 'val'")
    (other / "results.json").write_text(json.dumps(results | {"regions": 7}))
    refused(words, other / "results.json", "has other regions: 7, not ")
    (other / "results.json").write_text(json.dumps(results | {"metrics": {"conv": {}, "final": {}}}))
    refused(
        words, other / "results.json", "has other predictions: ['conv', 'final'], not ['conv', 'final', 'global 1', "
    )
    for odd in ([], {}, None):
        (other / "results.json").write_text(json.dumps(results | {"metrics": odd}))
        refused(words, other / "results.json", "cannot be used" if odd != {} else "has other predictions: []")
    (other / "results.json").write_text("[]")
    refused(words, other / "results.json", "cannot be used")
    (other / "results.json").unlink()
    refused(words, other / "results.json", "cannot be used")
    (other / "results.json").write_text(json.dumps(results))
    refused([*words, "--other-seed", tmp_path / "run/../other"], "is given twice")
    refused([*words[:-1], trained / "checkpoints/last.safetensors"], trained, "is the run of the page itself")
    assert not (tmp_path / "p").exists()


def test_a_broken_class_graph_is_told_before_the_evaluation(trained, copied, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(evaluate, "collect", None)
    (copied / "class_graph.json").write_text("{")
    words = ["page", trained, "--data-root", copied, "--output-dir", tmp_path / "p"]
    refused(words, copied / "class_graph.json", "not valid JSON")


def test_a_folder_with_something_else_is_refused_before_the_evaluation(trained, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(evaluate, "collect", None)
    (tmp_path / "thesis.tex").write_text("mine")
    refused(["page", trained, "--output-dir", tmp_path], "is no folder of a page (thesis.tex is there)")
    refused(["page", trained, "--images", "-1"], "--images", "out of range")
    refused(["page", tmp_path], "holds no checkpoint")
    refused(["page", trained, "--output-dir", "/proc"], "/proc", "is a mount point")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(["page", trained], "torchrun", "irnet page is one process")
