"""What reasoning gained and lost, counted over regions: accuracies with their errors, classes, pairs of classes.

Takes plain arrays; draws nothing.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..models.predictions import CONV, FINAL, PredictionKey
from .table import number, percent

PAIRS = 200  # of each list: nobody reads on, and with 3,000 classes there may be millions


@dataclass
class RunAnswers:
    """What one run answers for the R regions of a data set, in the order of its images.

    classes  C names
    labels   int64 [R], the true classes
    image    int64 [R], the image of every region
    best     for every prediction of the run, the final one among them, its answers: int64 [R]
    metrics  for every prediction the metrics of results.json
    seeds    the same of runs with other seeds
    """

    classes: list[str]
    labels: np.ndarray
    image: np.ndarray
    best: dict[PredictionKey, np.ndarray]
    metrics: dict[str, dict[str, float]]
    seeds: list[dict[str, dict[str, float]]] = field(default_factory=list)

    def right(self, key: PredictionKey) -> np.ndarray:
        """bool [R], whether a prediction names each region rightly."""
        return self.best[key] == self.labels

    def gained(self) -> np.ndarray:
        """bool [R], the regions that the final answer names rightly and the ConvNet's does not."""
        return self.right(FINAL) & ~self.right(CONV)

    def lost(self) -> np.ndarray:
        """bool [R], the regions that the ConvNet names rightly and the final answer does not."""
        return self.right(CONV) & ~self.right(FINAL)


def mean_and_error(values: np.ndarray, image: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """The mean of a value of every region, and its standard error with images as what is drawn.

    Regions of one image are not independent, so residuals are summed within each image first (the cluster-robust
    error of a ratio of sums). A mean over `groups` (the classes, say) is that of their means, which weighs the regions
    of a rare one more.

    Args:
        values: float or bool [R].
        image: int64 [R], the image of every region.
        groups: int64 [R], or None for one group.

    Returns:
        The mean and the error, which is nan where there are fewer than two images.
    """
    values = values.astype(np.float64)
    groups = np.zeros(len(values), np.int64) if groups is None else groups
    counts = np.bincount(groups)
    means = np.bincount(groups, values) / np.maximum(counts, 1)
    occurring = np.count_nonzero(counts)
    residuals = (values - means[groups]) / (counts[groups] * occurring)
    _, inverse = np.unique(image, return_inverse=True)
    sums = np.bincount(inverse, residuals)
    spread = math.sqrt(len(sums) / (len(sums) - 1) * float(sums @ sums)) if len(sums) > 1 else math.nan
    return float(means[counts > 0].mean()), spread


@dataclass
class Row:
    """The metrics of one prediction as text: percentages, with half the width of a 95% interval where it is known."""

    key: str
    cells: list[tuple[str, str]]


METRICS = (
    ("instance_accuracy", "boxes named right"),
    ("class_accuracy", "mean over classes"),
    ("class_ap", "class AP"),
)


def metric_rows(run: RunAnswers) -> list[Row]:
    """The metrics of every prediction, in the order of a roll-out, and the gain of the final one over the ConvNet's."""
    rows = []
    for key in sorted(run.best):
        groups = {"instance_accuracy": None, "class_accuracy": run.labels}
        found = {name: mean_and_error(run.right(key), run.image, g) for name, g in groups.items()}
        rows.append(Row(str(key), [_cell(run.metrics[str(key)].get(name), found.get(name)) for name, _ in METRICS]))
    if len(run.best) > 2:  # the ConvNet's is not the final one
        change = run.right(FINAL).astype(np.float64) - run.right(CONV)
        cells = [_signed(*mean_and_error(change, run.image, groups)) for groups in (None, run.labels)]
        ap = run.metrics[str(FINAL)]["class_ap"] - run.metrics[str(CONV)]["class_ap"]
        rows.append(Row("gain", [*cells, _signed(ap, math.nan)]))
    return rows


def _cell(value: float | None, found: tuple[float, float] | None) -> tuple[str, str]:
    return percent(number(value)), "" if found is None or math.isnan(found[1]) else f"{196 * found[1]:.1f}"


def _signed(value: float, error: float) -> tuple[str, str]:
    return f"{100 * value:+.1f}", "" if math.isnan(error) else f"{196 * error:.1f}"


def seed_rows(run: RunAnswers) -> list[Row]:
    """Mean and sample standard deviation over this run and those with other seeds; empty where there are none."""
    runs = [run.metrics, *run.seeds]
    rows = []
    for key in sorted(run.best) if run.seeds else []:
        cells = []
        for name, _ in METRICS:
            values = [value for one in runs if (value := number(one.get(str(key), {}).get(name))) is not None]
            spread = f"{100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append((percent(statistics.fmean(values)) if values else "", spread))
        rows.append(Row(str(key), cells))
    return rows


def class_rows(run: RunAnswers) -> list[list[int]]:
    """For each of the C classes [regions, right before reasoning, gained, lost]."""
    count = lambda which: np.bincount(run.labels[which], minlength=len(run.classes)).tolist()  # noqa: E731
    everything = np.ones(len(run.labels), bool)
    columns = [count(which) for which in (everything, run.right(CONV), run.gained(), run.lost())]
    return [list(row) for row in zip(*columns, strict=True)]


def pairs(run: RunAnswers) -> dict[str, list[list[int]]]:
    """The confusions that reasoning resolved and made, as lists [true class, wrong answer, before, after].

    `before` and `after` are how many regions of the true class have this answer from the ConvNet and at the end. What
    changed most stands first; of each list there are the first PAIRS.
    """
    size = len(run.classes)
    before, after = (_mistakes(run, key) for key in (CONV, FINAL))
    change = {pair: after.get(pair, 0) - before.get(pair, 0) for pair in sorted(before | after)}
    row = lambda pair: [*divmod(pair, size), before.get(pair, 0), after.get(pair, 0)]  # noqa: E731
    ordered = sorted(change, key=lambda pair: abs(change[pair]), reverse=True)
    resolved, made = ([row(pair) for pair in ordered if sign * change[pair] > 0] for sign in (-1, 1))
    return {"resolved": resolved[:PAIRS], "made": made[:PAIRS]}


def _mistakes(run: RunAnswers, key: PredictionKey) -> dict[int, int]:
    """How often a prediction gives each wrong answer for each true class, by label x C + answer."""
    wrong = ~run.right(key)
    values, counts = np.unique(
        run.labels[wrong].astype(np.int64) * len(run.classes) + run.best[key][wrong], return_counts=True
    )
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def headline(run: RunAnswers) -> dict[str, str | int | bool]:
    """What reasoning did, in figures for a sentence."""
    before, after = (float(run.right(key).mean()) for key in (CONV, FINAL))
    change, error = mean_and_error(run.right(FINAL).astype(np.float64) - run.right(CONV), run.image)
    return {
        "regions": len(run.labels),
        "images": len(np.unique(run.image)),
        "before": percent(before),
        "after": percent(after),
        "gained": int(run.gained().sum()),
        "lost": int(run.lost().sum()),
        "chance": math.isnan(error) or abs(change) <= 1.96 * error,
    }


def smoothed(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of some that follow each other."""
    size = max(1, math.ceil(len(points) / most))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part)) for part in parts]
