"""What reasoning gained and lost, counted over regions: accuracies with their errors, classes, pairs of classes.

Takes plain arrays; draws nothing.
"""

import math
import statistics
from dataclasses import dataclass, field

import numpy as np
import torch

from ..metrics import confusions
from ..models.predictions import CONV, FINAL, PredictionKey
from .table import number, percent

FEWEST = 10  # images from which on an interval is told
PAIRS = 200  # of each list: nobody reads on, and with 3,000 classes there may be millions


@dataclass
class RunAnswers:
    """What one run answers for the R regions of a data set, in the order of its images.

    classes  C names
    labels   int64 [R], the true classes
    image    int64 [R], the image of every region
    images   how many were looked at, those without regions among them
    best     for every prediction of the run, the final one among them, its answers: int [R]
    metrics  for every prediction the metrics of results.json
    seeds    the same of runs with other seeds
    """

    classes: list[str]
    labels: np.ndarray
    image: np.ndarray
    images: int
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


def mean_and_half(
    values: np.ndarray, image: np.ndarray, groups: np.ndarray | None = None
) -> tuple[float, float | None]:
    """The mean of `mean_and_error`, and half of its 95% interval by Student's t; None for fewer than FEWEST images."""
    mean, error = mean_and_error(values, image, groups)
    images = len(np.unique(image))
    return mean, None if images < FEWEST else t_quantile(images - 1) * error


def t_quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t, by the first terms of its expansion about the normal one: from 9 degrees of
    freedom on within 0.2%."""
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


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
        halves = {name: mean_and_half(run.right(key), run.image, g)[1] for name, g in groups.items()}
        values = [(number(run.metrics[str(key)].get(name)), halves.get(name)) for name, _ in METRICS]
        rows.append(Row(str(key), [(percent(value), _points(half)) for value, half in values]))
    if len(run.best) > 2:  # the ConvNet's is not the final one
        change = run.right(FINAL).astype(np.float64) - run.right(CONV)
        gains = [mean_and_half(change, run.image, groups) for groups in (None, run.labels)]
        ap = run.metrics[str(FINAL)]["class_ap"] - run.metrics[str(CONV)]["class_ap"]
        rows.append(Row("gain", [(f"{100 * gain:+.1f}", _points(half)) for gain, half in [*gains, (ap, None)]]))
    return rows


def _points(half: float | None) -> str:
    return "" if half is None else f"{100 * half:.1f}"


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
    """The confusions that reasoning resolved and made, as lists [true class, wrong answer, regions, of].

    "resolved": of the regions that the ConvNet takes for the wrong class, how many the final answer names rightly.
    "made": of those that the final answer takes for it, how many the ConvNet names rightly. What occurs most stands
    first; of each list there are the first PAIRS. `metrics.confusions` counts, as for confusion.csv.
    """
    labels, before, after = (torch.from_numpy(a) for a in (run.labels, run.best[CONV], run.best[FINAL]))
    wrong = [row for row in confusions(labels, before, after) if row.true != row.predicted]
    resolved = [[row.true, row.predicted, row.resolved, row.before] for row in wrong if row.resolved]
    introduced = [[row.true, row.predicted, row.introduced, row.regions] for row in wrong if row.introduced]
    order = lambda row: (-row[2], row[:2])  # noqa: E731
    return {"resolved": sorted(resolved, key=order)[:PAIRS], "made": sorted(introduced, key=order)[:PAIRS]}


def headline(run: RunAnswers) -> dict[str, str | int | bool]:
    """What reasoning did, in figures for a sentence."""
    before, after = (float(run.right(key).mean()) for key in (CONV, FINAL))
    change, half = mean_and_half(run.right(FINAL).astype(np.float64) - run.right(CONV), run.image)
    return {
        "regions": len(run.labels),
        "images": run.images,
        "before": percent(before),
        "after": percent(after),
        "gained": int(run.gained().sum()),
        "lost": int(run.lost().sum()),
        "chance": half is None or abs(change) <= half,
    }
