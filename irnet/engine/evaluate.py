"""Evaluation: a model's scores on a data set, every metric of every prediction, and the files that hold them."""

import contextlib
import csv
import io
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import files, metrics
from ..config import Config
from ..data.dataset import RegionDataset
from ..data.loader import batches, images_of_any_size
from ..data.sample import Batch
from ..errors import InputError, is_out_of_memory
from ..interrupts import Request
from ..models.irnet import IRNet
from ..models.predictions import CONV, FINAL, PredictionKey
from ..progress import Progress
from . import distributed
from .score_file import ScoreFile

# The columns of per_class.csv and confusion.csv.
PER_CLASS = ("class", "regions", "score", "accuracy", "ap", "conv_accuracy", "conv_ap", "accuracy_gain", "ap_gain")
CONFUSION = ("true", "predicted", "regions", "conv_regions", "resolved", "made")
log = logging.getLogger("irnet")


@dataclass
class Scores:
    """What is kept of a model's predictions for the R regions of a data set.

    metrics     all of metrics.METRICS for every prediction, the final one first
    attention   for every prediction that the final one mixes, its mean weight
    per_class   the tables of metrics.per_class for the final prediction and for the ConvNet's
    predicted   int32 [R], the best class in every prediction, the final one first
    labels      int64 [R]
    attributes  by name, R values
    images      their number
    """

    metrics: dict[PredictionKey, dict[str, float]]
    attention: dict[PredictionKey, float]
    per_class: dict[PredictionKey, dict[int, dict[str, float]]]
    predicted: dict[PredictionKey, Tensor]
    labels: Tensor
    attributes: dict[str, list[str]]
    images: int

    @property
    def right(self) -> Tensor:
        """bool [R], whether the final prediction is the true class."""
        return self.predicted[FINAL] == self.labels


class NotFinite(InputError):
    """A model's scores are infinite or NaN."""


def images_at_once(dataset: RegionDataset, config: Config) -> int:
    """How many images of a data set an evaluation lets through the model together where no plan says.

    As many of the largest as a step of one process does, whatever the number of processes, so that the results have the
    same bits.
    """
    return max(1, images_of_any_size(dataset, config) // config.train.grad_accum_steps)


def held_out(
    dataset: RegionDataset, config: Config, device: torch.device, at_once: int | None = None
) -> Iterable[Batch]:
    """The data set's images in order, in batches of `at_once`, those of this process in a group; None: of
    `images_at_once`."""
    size = at_once or images_at_once(dataset, config)
    pinned = device.type == "cuda"
    return batches(dataset, config, train=False, size=size, pin_memory=pinned, share=distributed.share())


def progress_of(dataset: RegionDataset, config: Config, hidden: bool = False) -> Progress:
    """The progress over the images that `held_out` gives."""
    images = len(dataset)
    if config.train.limit_batches:
        images = min(images, config.train.limit_batches * config.train.batch_size)
    return Progress("evaluation", images, "image", hidden=hidden)


def finite_scores(key: PredictionKey, logits: Tensor, images: list[str], where: str) -> Tensor:
    """float32 [R, C] on the CPU: the softmax of the logits of one prediction for `images`.

    where  what NotFinite, raised where the model has diverged, is about
    """
    scores = logits.float().softmax(1).cpu()
    if not scores.isfinite().all():
        trouble = f"the model's scores for {', '.join(images)[:80]} are not finite ({key})"
        raise NotFinite(where, trouble, "train again with a lower train.lr or with train.clip_norm")
    return scores


@dataclass
class _Piece:
    """What is kept of the predictions for one batch, as of `Scores`."""

    scores: dict[PredictionKey, Tensor]  # float32 [R, C] on the CPU
    attention: Tensor  # float32 [K, R] on the CPU
    labels: Tensor
    attributes: dict[str, list[str]]
    images: int


@torch.no_grad()
def collect(
    model: IRNet,
    batches: Iterable[Batch],
    device: torch.device,
    progress: Progress | None = None,
    stop: Request | None = None,
) -> Scores | None:
    """Run the model over all batches and compute every metric; None on other ranks than 0, which gathers the scores.

    Where memory ends, the batch is halved, and so are those that follow: a model predicts for each image by itself, up
    to the rounding of its products.

    Ranking the regions by a class takes the scores of all of them, so these wait on the disk; in memory is what one
    batch needs, then a few numbers for each region and a bounded part of the scores of one prediction.
    InputError where the batches hold no region, NotFinite where the model has diverged, Stopped where `stop` asks.
    """
    was_training = model.training
    model.eval()
    labels, attention, images, begin = [], [], 0, time.perf_counter()
    attributes: defaultdict[str, list[str]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        score_files: dict[PredictionKey, ScoreFile] = {}
        for piece in distributed.gathered(_pieces(model, batches, device), stop):
            for key, scores in piece.scores.items():
                if key not in score_files:
                    score_files[key] = stack.enter_context(ScoreFile(scores.shape[1]))
                score_files[key].append(scores)
            labels.append(piece.labels)
            attention.append(piece.attention)
            for name, values in piece.attributes.items():
                attributes[name] += values
            images += piece.images
            if progress is not None:
                progress.update(piece.images)
                rate = sum(map(len, labels)) / max(time.perf_counter() - begin, 1e-9)
                progress.note(f"{rate:.0f} regions/s")
        model.train(was_training)
        if distributed.rank():
            return None
        if not sum(map(len, labels)):
            raise InputError("evaluation", f"{images} images hold no region", "choose a split with annotated boxes")
        first_fields = _measure(score_files, torch.cat(labels), torch.cat(attention, 1))
        return Scores(*first_fields, torch.cat(labels), attributes, images)


def _pieces(model: IRNet, batches: Iterable[Batch], device: torch.device) -> Iterator[_Piece]:
    most = None  # images at once, since memory has ended
    for batch in batches:
        parts, most = _predicted(model, batch, device, most)
        scores, attention = parts[0]
        if len(parts) > 1:
            scores = {key: torch.cat([part[key] for part, _ in parts]) for key in scores}
            attention = torch.cat([part for _, part in parts], 1)
        yield _Piece(scores, attention, batch.labels, batch.attributes, len(batch.images))


def _predicted(
    model: IRNet, batch: Batch, device: torch.device, most: int | None
) -> tuple[list[tuple[dict[PredictionKey, Tensor], Tensor]], int | None]:
    """What `_scores` gives for the parts of a batch that memory is enough for, and how many images have room.

    most  images at once, as an earlier batch has found; None: all
    """
    done, waiting = [], _at_most(most, batch)
    while waiting:
        part = waiting.pop(0)
        try:
            scores = _scores(model, part, device)
        except (RuntimeError, MemoryError) as error:
            if len(part.images) == 1 or not is_out_of_memory(error):
                raise
            scores = None
        if scores is not None:
            done.append(scores)
            continue
        # The error is gone by now, and with it the tensors that its traceback held.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        most = -(-len(part.images) // 2)
        log.warning("evaluation: too little memory for %d images at once; goes on with %d", len(part.images), most)
        waiting = [piece for rest in (part, *waiting) for piece in _at_most(most, rest)]
    return done, most


def _at_most(images: int | None, batch: Batch) -> list[Batch]:
    """A batch in parts of at most so many images."""
    return [batch] if images is None else batch.split(-(-len(batch.images) // images))


def _scores(model: IRNet, batch: Batch, device: torch.device) -> tuple[dict[PredictionKey, Tensor], Tensor]:
    """float32 [R, C] on the CPU for every prediction, the final one first, and the attention [K, R]."""
    predictions = model(batch.to(device))
    scores = {
        key: finite_scores(key, logits, batch.names, "evaluation") for key, logits in predictions.with_final().items()
    }
    return scores, predictions.attention.float().cpu()


def _measure(score_files: dict[PredictionKey, ScoreFile], labels: Tensor, attention: Tensor) -> tuple[dict, ...]:
    """The first fields of `Scores`, of one prediction after the other."""
    figures, tables, predicted = {}, {}, {}
    with Progress(f"figures of {len(labels)} regions"):
        for key, file in score_files.items():
            parts = [metrics.region_scores(rows, labels[which]) for which, rows in file.rows()]
            regions = metrics.RegionScores(*map(torch.cat, zip(*parts, strict=True)))
            table = metrics.class_table(file.columns(), regions, labels)
            figures[key] = metrics.means(regions, table)
            predicted[key] = regions.best.int()
            if key in (FINAL, CONV):
                tables[key] = table
    mixed = [key for key in score_files if key != FINAL]
    weights = dict(zip(mixed, attention.double().mean(1).tolist(), strict=True))
    return figures, weights, tables, predicted


def results(model: IRNet, step: int, split: str, scores: Scores) -> dict:
    """The content of results.json: whose it is, and every metric of metrics.METRICS for every prediction."""
    weights = sum(p.numel() for p in model.parameters())
    return {"step": step, "split": split, "parameters": weights, **summarise(scores)}


def summarise(scores: Scores) -> dict:
    """The metrics of metrics.METRICS for every prediction, and the accuracy for every value of each attribute."""
    results = {
        "images": scores.images,
        "regions": len(scores.labels),
        "metrics": {str(key): figures for key, figures in scores.metrics.items()},
        "attention": {str(key): weight for key, weight in scores.attention.items()},
    }
    for name, values in scores.attributes.items():
        hits = defaultdict(list)
        for value, hit in zip(values, scores.right.tolist(), strict=True):
            hits[value].append(hit)
        results[f"accuracy_by_{name}"] = {value: sum(right) / len(right) for value, right in sorted(hits.items())}
    return results


def write(folder: Path, results: dict, scores: Scores, classes: list[str]) -> None:
    """results.json, per_class.csv and confusion.csv; docs/formats/runs.rst says what stands there."""
    rows = []
    for c, row in scores.per_class[FINAL].items():
        before = scores.per_class[CONV][c]
        figures = [row["score"], row["accuracy"], row["ap"], before["accuracy"], before["ap"]]
        figures += [row["accuracy"] - before["accuracy"], row["ap"] - before["ap"]]
        rows.append([classes[c], row["regions"], *(f"{value:.6f}" if row["regions"] else "" for value in figures)])
    pairs = metrics.confusions(scores.labels, scores.predicted[CONV], scores.predicted[FINAL])
    named = [[classes[true], classes[predicted], *counts] for true, predicted, *counts in pairs]
    files.write_json(folder / "results.json", results)
    _write_csv(folder / "per_class.csv", PER_CLASS, rows)
    _write_csv(folder / "confusion.csv", CONFUSION, named)


def _write_csv(path: Path, head: tuple[str, ...], rows: list[list]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    files.write(path, text.getvalue())


def table_text(results: dict) -> str:
    """The metrics of every prediction as aligned text, in per cent."""
    names = [key.replace("_", " ") for key in metrics.METRICS]
    lines = ["".join(["step".ljust(12), *(name.rjust(len(name) + 2) for name in names)])]
    for step, figures in results["metrics"].items():
        cells = (
            f"{100 * figures[key]:.2f}".rjust(len(name) + 2) for key, name in zip(metrics.METRICS, names, strict=True)
        )
        lines.append("".join([step.ljust(12), *cells]))
    return "\n".join(lines)
