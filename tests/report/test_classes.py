"""What the terminal shows of single classes: the right ones, in their order, and no line too long."""

import pytest
import torch

from irnet import metrics
from irnet.engine.evaluate import Scores
from irnet.models.predictions import CONV, FINAL
from irnet.report.classes import classes_text, cut, width


def made_up(labels: list[int], before: list[int], after: list[int], classes: int) -> Scores:
    """Of predictions that are certain."""
    labels, predicted = torch.tensor(labels), {CONV: torch.tensor(before), FINAL: torch.tensor(after)}
    tables = {
        key: metrics.per_class(torch.nn.functional.one_hot(best, classes).float(), labels)
        for key, best in predicted.items()
    }
    return Scores({}, {}, tables, predicted, labels, {}, 1)


def drawn(classes: int) -> Scores:
    draw = torch.Generator().manual_seed(0)
    return made_up(*torch.randint(0, classes, (3, 40 * classes), generator=draw).tolist(), classes)


def test_best_worst_and_confusions():
    scores = made_up([0, 0, 0, 1, 1, 2], [1, 1, 0, 1, 1, 2], [0, 0, 0, 0, 1, 2], 4)
    sorted_classes, confused = classes_text(scores, ["cup", "mug", "jar", "never"]).split("\n\n")
    assert [line.split()[0] for line in sorted_classes.splitlines()[2:]] == ["mug", "cup", "jar"]
    assert sorted_classes.splitlines()[2].split()[1:] == ["2", "50.0", "66.7", "+16.7", "100.0", "50.0"]
    assert sorted_classes.splitlines()[3].split()[1:] == ["3", "66.7", "75.0", "+8.3", "33.3", "100.0"]
    title, _, *rows = confused.splitlines()
    assert title.startswith("the most frequent of 2 confusions")
    assert [row.split() for row in rows] == [["mug", "cup", "1", "0", "0", "1"], ["cup", "mug", "0", "2", "2", "0"]]


def test_only_the_ends_of_a_long_table():
    scores = drawn(30)
    text = classes_text(scores, [f"class {c}" for c in range(30)])
    lines = text.splitlines()
    gains = [float(line.split()[-3]) for line in lines[2:13] if "more" not in line]
    assert len(gains) == 10 and gains == sorted(gains, reverse=True) and lines[7] == "... 20 more"
    every = [scores.per_class[FINAL][c]["ap"] - scores.per_class[CONV][c]["ap"] for c in range(30)]
    assert gains[0] == round(100 * max(every), 1) and gains[-1] == round(100 * min(every), 1)
    assert len(lines) == 13 + 1 + 2 + 10


def test_nothing_is_confused():
    assert "confusion" not in classes_text(made_up([0, 1], [0, 1], [0, 1], 2), ["a", "b"])


@pytest.mark.parametrize(
    "name", ["a very long name of a class, ", "海辺の" * 5, "line\nbreak\t\x1b[31m" * 5], ids=ascii
)
def test_no_line_is_longer_than_a_hundred_columns(name):
    lines = classes_text(drawn(12), [f"{c} {name * 3}" for c in range(12)]).splitlines()
    assert len(lines) == 13 + 1 + 2 + 10
    assert max(map(width, lines)) <= 100 and all(line.isprintable() for line in lines)


def test_cut():
    assert cut("mug", 3) == "mug" and cut("mugs", 3) == "..." and cut("coffee mug", 9) == "coffee..."
    assert cut("海辺の町", 8) == "海辺の町" and cut("海辺の町", 7) == "海辺..." and cut("a\x07b", 9) == "a?b"
