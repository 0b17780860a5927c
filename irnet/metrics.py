"""Accuracy and average precision, per class and per instance. Takes scores and labels; knows no model or data set."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

METRICS = (
    "class_score",
    "class_accuracy",
    "class_ap",
    "instance_score",
    "instance_accuracy",
    "instance_ap",
    "instance_ap_gt_ranked",
)


class RegionScores(NamedTuple):
    """What every metric but the AP of a class needs to know of R regions."""

    own: Tensor  # [R], the score of the true class
    best: Tensor  # int64 [R], the best class
    hit: Tensor  # bool [R], whether the best class is the true one
    confidence: Tensor  # [R], the score of the best class


def evaluate(scores: Tensor, labels: Tensor, background: int | None = None) -> dict[str, float]:
    """All metrics of METRICS for soft-max scores [R, C] and labels int64 [R].

    background  a class that never wins an argmax and of which there are no regions; None where there is no such class
    Class metrics are means over the classes that occur. ValueError for no regions, NaN scores, labels out of range.
    """
    table = per_class(scores, labels, background)
    return means(region_scores(scores, labels, background), table)


def per_class(scores: Tensor, labels: Tensor, background: int | None = None) -> dict[int, dict[str, float]]:
    """For every class but the background: its number of regions, mean score, accuracy and AP (0 where none occurs)."""
    _check(scores, labels, background)
    columns = ((c, scores[:, c]) for c in range(scores.shape[1]) if c != background)
    return class_table(columns, region_scores(scores, labels, background), labels)


def region_scores(scores: Tensor, labels: Tensor, background: int | None = None) -> RegionScores:
    """What is kept of the scores [R, C] of some regions; that of several parts of a data set can be concatenated."""
    own = scores.gather(1, labels[:, None])[:, 0]
    if background is not None:
        scores = scores.clone()
        scores[:, background] = -torch.inf
    confidence, best = scores.max(1)
    return RegionScores(own, best, best == labels, confidence)


def class_table(
    columns: Iterable[tuple[int, Tensor]], regions: RegionScores, labels: Tensor
) -> dict[int, dict[str, float]]:
    """The table of `per_class` from every class and its scores [R], one after the other: they need not be in memory."""
    table = {}
    for c, scores in columns:
        own = labels == c
        count = int(own.sum())
        table[c] = {
            "regions": count,
            "score": regions.own[own].double().mean().item() if count else 0.0,
            "accuracy": regions.hit[own].double().mean().item() if count else 0.0,
            "ap": average_precision(scores, own, count) if count else 0.0,
        }
    return table


class Confusion(NamedTuple):
    """The regions of one true class that one of two predictions, or both, take for the same class."""

    true: int
    predicted: int
    regions: int  # that the later prediction takes for it
    before: int  # that the earlier prediction takes for it
    resolved: int  # of `before`, those that the later prediction names rightly; 0 where `predicted` is right
    introduced: int  # of `regions`, those that the earlier prediction names rightly; 0 where `predicted` is right


def confusions(labels: Tensor, before: Tensor, after: Tensor) -> list[Confusion]:
    """The confusion matrices of an earlier and a later prediction, without the pairs of classes that neither has.

    Takes memory by the regions, not by the pairs that there may be.

    Args:
        labels: int64 [R], the true classes.
        before: Of any integers [R], what the earlier prediction takes them for.
        after: Of any integers [R], the same of the later one.

    Returns:
        A row for each pair that occurs, by falling number of regions, then by the classes.
    """
    classes = 1 + int(torch.stack([labels, before, after]).max())
    earlier, later = (labels * classes + predicted for predicted in (before, after))  # one number for a pair
    resolved, introduced = (before != labels) & (after == labels), (before == labels) & (after != labels)
    counts: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for column, pairs in enumerate((later, earlier, earlier[resolved], later[introduced])):
        for pair, count in zip(*(values.tolist() for values in pairs.unique(return_counts=True)), strict=True):
            counts[pair][column] = count
    rows = [Confusion(*divmod(pair, classes), *pair_counts) for pair, pair_counts in counts.items()]
    return sorted(rows, key=lambda row: (-row.regions, row.true, row.predicted))


def means(regions: RegionScores, table: dict[int, dict[str, float]]) -> dict[str, float]:
    """All metrics of METRICS: the means of the table of `per_class`, and those over regions."""
    occurring = [row for row in table.values() if row["regions"]]
    mean = lambda key: sum(row[key] for row in occurring) / len(occurring)  # noqa: E731
    return {
        "class_score": mean("score"),
        "class_accuracy": mean("accuracy"),
        "class_ap": mean("ap"),
        "instance_score": regions.own.double().mean().item(),
        "instance_accuracy": regions.hit.double().mean().item(),
        "instance_ap": average_precision(regions.confidence, regions.hit, len(regions.hit)),
        "instance_ap_gt_ranked": average_precision(regions.own, regions.hit, len(regions.hit)),
    }


def average_precision(scores: Tensor, positive: Tensor, total: int) -> float:
    """The area under the interpolated precision-recall curve, at all points, of items ranked by score.

    scores    [N]
    positive  bool [N]
    total     the number of positives that recall counts against
    Items of equal score enter together, so the order in which they are given does not matter.
    """
    if total == 0:
        raise ValueError("average precision needs at least one positive")
    order = scores.argsort(descending=True, stable=True)
    true_positives = positive[order].double().cumsum(0)
    ranked = scores[order]
    last = torch.cat([ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)])  # the end of each run of ties
    true_positives = true_positives[last]
    precision = true_positives / (last.nonzero()[:, 0] + 1)
    recall = true_positives / total
    envelope = precision.flip(0).cummax(0).values.flip(0)
    return ((recall - torch.cat([recall.new_zeros(1), recall[:-1]])) * envelope).sum().item()


def _check(scores: Tensor, labels: Tensor, background: int | None) -> None:
    if len(labels) == 0:
        raise ValueError("no regions to evaluate")
    if scores.dim() != 2 or len(scores) != len(labels):
        raise ValueError(f"scores must be [{len(labels)}, C], got {list(scores.shape)}")
    if scores.isnan().any():
        raise ValueError("scores hold NaN")
    if labels.min() < 0 or labels.max() >= scores.shape[1] or (background is not None and (labels == background).any()):
        raise ValueError(
            f"labels must be classes of 0 .. {scores.shape[1] - 1} other than the background ({background})"
        )
