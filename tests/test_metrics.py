"""Accuracy and average precision against loops and hand-worked cases."""

import math

import pytest
import torch

from irnet import metrics
from irnet.metrics import Confusion, average_precision, confusions, evaluate, per_class


def slow_ap(scores, positive, total):
    """At every score as threshold: precision and recall; each step of recall takes the best precision from there on."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        chosen = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        points.append((sum(chosen) / total, sum(chosen) / len(chosen)))
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[i:])
        before = recall
    return area


def slow_figures(scores, labels, background):
    classes = len(scores[0])
    allowed = [c for c in range(classes) if c != background]
    best = [max(allowed, key=lambda c: row[c]) for row in scores]
    hit = [b == t for b, t in zip(best, labels, strict=True)]
    own = [row[t] for row, t in zip(scores, labels, strict=True)]
    table = {}
    for c in allowed:
        rows = [r for r, t in enumerate(labels) if t == c]
        if rows:
            table[c] = {
                "regions": len(rows),
                "score": sum(own[r] for r in rows) / len(rows),
                "accuracy": sum(hit[r] for r in rows) / len(rows),
                "ap": slow_ap([row[c] for row in scores], [t == c for t in labels], len(rows)),
            }
        else:
            table[c] = {"regions": 0, "score": 0.0, "accuracy": 0.0, "ap": 0.0}
    occurring = [row for row in table.values() if row["regions"]]
    mean = {key: sum(row[key] for row in occurring) / len(occurring) for key in ("score", "accuracy", "ap")}
    n = len(labels)
    return table, {
        "class_score": mean["score"],
        "class_accuracy": mean["accuracy"],
        "class_ap": mean["ap"],
        "instance_score": sum(own) / n,
        "instance_accuracy": sum(hit) / n,
        "instance_ap": slow_ap([row[b] for row, b in zip(scores, best, strict=True)], hit, n),
        "instance_ap_gt_ranked": slow_ap(own, hit, n),
    }


def draw(seed, regions=40, classes=7, coarse=False):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, classes - 1, (regions,), generator=generator)  # the last class never occurs
    logits = torch.randn(regions, classes, generator=generator)
    logits[torch.arange(regions), labels] += 1
    logits[:, 0] += 2  # a background that would often win
    scores = logits.softmax(1)
    # whole numbers of 1/16 collide all the time; a small term per class keeps the argmax unambiguous
    return (scores.mul(16).round() / 16 + torch.arange(classes) / 1024 if coarse else scores), labels


@pytest.mark.parametrize("background", [0, None])
@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_figures_are_the_loops(seed, coarse, background):
    scores, labels = draw(seed, coarse=coarse)
    table, figures = slow_figures(scores.double().tolist(), labels.tolist(), background)
    found = evaluate(scores, labels, background)
    assert tuple(found) == metrics.METRICS
    assert found == pytest.approx(figures, rel=1e-12)
    rows = per_class(scores, labels, background)
    assert list(rows) == list(table)
    for c, row in table.items():
        assert rows[c] == pytest.approx(row, rel=1e-12)


@pytest.mark.parametrize(
    ("scores", "positive", "total", "expected"),
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 2, 1.0),  # perfect
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 2, 0.5),  # worst: 1/3 is lifted to the later 2/4
        ([0.9, 0.8, 0.2], [0, 0, 1], 1, 1 / 3),
        ([0.9, 0.8, 0.2, 0.1], [1, 0, 1, 0], 2, 0.5 + 0.5 * 2 / 3),  # interleaved
        ([0.9, 0.8, 0.2, 0.1], [0, 1, 0, 1], 2, 0.5),  # 1/2 and 2/4
        ([0.1, 0.9, 0.2, 0.8], [0, 1, 1, 0], 2, 0.5 + 0.5 * 2 / 3),  # given in another order
        ([0.9, 0.8], [1, 0], 4, 0.25),  # three positives were never found
        ([0.9, 0.8], [0, 0], 4, 0.0),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 1, 0.25),  # all tied
        ([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 1], 3, 1 / 3 + 1 / 3 * 3 / 4 + 1 / 3 * 3 / 4),  # 2/3 at the tie, then 3/4
        ([0.3], [1], 1, 1.0),
    ],
)
def test_average_precision_by_hand(scores, positive, total, expected):
    assert average_precision(torch.tensor(scores), torch.tensor(positive).bool(), total) == pytest.approx(expected)


def test_ties_do_not_depend_on_the_order():
    scores, labels = draw(5, coarse=True)
    assert len(set(scores[:, 2].tolist())) < len(scores) / 2
    expected = evaluate(scores, labels, 0)
    for seed in range(5):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        assert evaluate(scores[order], labels[order], 0) == pytest.approx(expected, rel=1e-12)


def test_background_never_wins():
    scores = torch.tensor([[0.9, 0.06, 0.04], [0.98, 0.01, 0.01 + 1e-4]])
    labels = torch.tensor([1, 2])
    figures = evaluate(scores, labels, background=0)
    assert figures["instance_accuracy"] == figures["class_accuracy"] == 1
    assert evaluate(scores, labels)["instance_accuracy"] == 0
    assert list(per_class(scores, labels, 0)) == [1, 2]
    assert scores[0, 0] == pytest.approx(0.9)  # the caller's scores stay as they are
    assert evaluate(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([1]), 0)["instance_accuracy"] == 1
    last = scores[:, [1, 2, 0]]
    assert evaluate(last, labels - 1, background=2) == pytest.approx(figures)


def test_means_run_over_the_classes_that_occur():
    scores = torch.tensor([[0.0, 0.8, 0.1, 0.1], [0.0, 0.6, 0.3, 0.1], [0.0, 0.5, 0.4, 0.1]])
    labels = torch.tensor([1, 1, 2])
    figures = evaluate(scores, labels, 0)
    assert figures["class_score"] == pytest.approx((0.7 + 0.4) / 2)
    assert figures["class_accuracy"] == pytest.approx(0.5)
    assert figures["class_ap"] == pytest.approx(1.0)
    assert figures["instance_accuracy"] == pytest.approx(2 / 3)
    assert per_class(scores, labels, 0)[3] == {"regions": 0, "score": 0.0, "accuracy": 0.0, "ap": 0.0}


def test_the_two_instance_aps_differ_in_their_ranking():
    scores = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    labels = torch.tensor([1, 0, 1])  # wrong with 0.9, right with 0.6, right with 0.7
    figures = evaluate(scores, labels)
    assert figures["instance_ap"] == pytest.approx(2 / 3 * 2 / 3)  # 0.9 miss, 0.7 hit, 0.6 hit
    assert figures["instance_ap_gt_ranked"] == pytest.approx(2 / 3)  # 0.7 hit, 0.6 hit, 0.1 miss


def test_nothing_is_nan_for_one_region():
    for labels in ([0], [1]):
        figures = evaluate(torch.tensor([[0.3, 0.7]]), torch.tensor(labels))
        assert not any(math.isnan(v) for v in figures.values())


FINE = torch.full((3, 4), 0.25)


@pytest.mark.parametrize(
    ("scores", "labels", "background", "message"),
    [
        (torch.zeros(0, 4), torch.zeros(0).long(), None, "no regions"),
        (FINE * torch.nan, torch.tensor([1, 2, 3]), None, "NaN"),
        (FINE, torch.tensor([1, 2, 4]), None, "0 .. 3"),
        (FINE, torch.tensor([1, 2, -1]), None, "0 .. 3"),
        (FINE, torch.tensor([1, 2, 0]), 0, "background"),
        (FINE, torch.tensor([1, 2]), None, r"\[2, C\]"),
        (FINE[0], torch.tensor([1, 2, 3, 0]), None, r"\[4, C\]"),
    ],
    ids=["empty", "nan", "too-large", "negative", "background", "lengths", "one-dimension"],
)
def test_errors(scores, labels, background, message):
    for function in (evaluate, per_class):
        with pytest.raises(ValueError, match=message):
            function(scores, labels, background)


def test_average_precision_without_positives_is_an_error():
    with pytest.raises(ValueError, match="at least one positive"):
        average_precision(torch.tensor([0.5]), torch.tensor([False]), 0)


def test_confusions():
    """Of six regions of class 2: one stays right, two are put right, one goes wrong, two stay wrong, one of them as
    another class than before."""
    labels = torch.tensor([2, 2, 2, 2, 2, 2, 0])
    before = torch.tensor([2, 1, 1, 2, 1, 1, 0])
    after = torch.tensor([2, 2, 2, 0, 1, 0, 0])
    assert confusions(labels, before, after) == [
        Confusion(2, 2, regions=3, before=2, resolved=0, introduced=0),
        Confusion(2, 0, regions=2, before=0, resolved=0, introduced=1),
        Confusion(0, 0, regions=1, before=1, resolved=0, introduced=0),
        Confusion(2, 1, regions=1, before=4, resolved=2, introduced=0),
    ]
    right = torch.tensor([0])
    assert confusions(right, right, right) == [Confusion(0, 0, 1, 1, 0, 0)]
