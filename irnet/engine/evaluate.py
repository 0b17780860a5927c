"""Evaluation: a model's scores on a data set, every figure per step of its reasoning, and the files that hold them."""

import csv
import io
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import files, metrics
from ..config import Config
from ..data.loader import batches
from ..data.sample import Batch
from ..errors import InputError
from ..model import IRNet
from ..progress import Progress
from .build import sizes


@dataclass
class Scores:
    """Soft-max scores of all regions of a data set, on the CPU.

    steps   name -> float32 [R, C]: "final", then every prediction of the roll-out
    labels  int64 [R]
    kinds   R strings, or empty
    images  their number
    """

    steps: dict[str, Tensor]
    labels: Tensor
    kinds: list[str]
    images: int


class NotFinite(InputError):
    """A model's scores are infinite or NaN."""


def held_out(dataset, config: Config, device: torch.device) -> Iterable[Batch]:
    """The data set's batches in order, at the size that the run was trained at."""
    return batches(
        dataset,
        config.train.batch_size,
        seed=0,
        epoch=0,
        train=False,
        workers=config.train.workers,
        flip=False,
        limit=config.train.limit_batches or None,
        pin_memory=device.type == "cuda",
        **sizes(config.data),
    )


def progress_of(dataset, config: Config, hidden: bool = False) -> Progress:
    """The progress over the images that `held_out` gives."""
    images = len(dataset)
    if config.train.limit_batches:
        images = min(images, config.train.limit_batches * config.train.batch_size)
    return Progress("evaluation", images, "image", hidden=hidden)


def finite_scores(step: str, logits: Tensor, images: list[str], where: str) -> Tensor:
    """float32 [R, C] on the CPU: the softmax of the logits of one step of the reasoning about `images`.

    where  what NotFinite, raised where the model has diverged, is about
    """
    scores = logits.float().softmax(1).cpu()
    if not scores.isfinite().all():
        trouble = f"the model's scores for {', '.join(images)[:80]} are not finite ({step})"
        raise NotFinite(where, trouble, "train again with a lower train.lr or with train.clip_norm")
    return scores


@torch.no_grad()
def collect(model: IRNet, batches: Iterable[Batch], device: torch.device, progress: Progress | None = None) -> Scores:
    """Run the model over all batches. InputError where they hold no region, NotFinite where the model has diverged."""
    was_training = model.training
    model.eval()
    steps: dict[str, list[Tensor]] = {}
    labels, kinds, images, begin = [], [], 0, time.perf_counter()
    for batch in batches:
        predictions = model(batch.to(device))
        for name, logits in {"final": predictions.final, **predictions.logits}.items():
            steps.setdefault(name, []).append(finite_scores(name, logits, batch.names, "evaluation"))
        labels.append(batch.labels)
        kinds += batch.kinds
        images += len(batch.images)
        if progress is not None:
            progress.update(len(batch.images))
            rate = sum(map(len, labels)) / max(time.perf_counter() - begin, 1e-9)
            progress.note(f"{rate:.0f} regions/s")
    model.train(was_training)
    if not sum(map(len, labels)):
        raise InputError("evaluation", f"{images} images hold no region", "choose a split with annotated boxes")
    return Scores({name: torch.cat(parts) for name, parts in steps.items()}, torch.cat(labels), kinds, images)


def results(model: IRNet, step: int, split: str, scores: Scores) -> dict:
    """The content of results.json: whose it is, and every figure of metrics.FIGURES for every step of the reasoning."""
    weights = sum(p.numel() for p in model.parameters())
    with Progress(f"figures of {len(scores.labels)} regions"):
        return {"step": step, "split": split, "parameters": weights, **summarise(scores)}


def summarise(scores: Scores) -> dict:
    """The figures of metrics.FIGURES for every step, and the accuracy by kind of region."""
    results = {
        "images": scores.images,
        "regions": len(scores.labels),
        "metrics": {name: metrics.evaluate(values, scores.labels) for name, values in scores.steps.items()},
    }
    if scores.kinds:
        right = scores.steps["final"].argmax(1) == scores.labels
        kinds = sorted(set(scores.kinds))
        rows = {kind: torch.tensor([k == kind for k in scores.kinds]) for kind in kinds}
        results["accuracy_by_kind"] = {kind: right[rows[kind]].double().mean().item() for kind in kinds}
    return results


def write(folder: Path, results: dict, scores: Scores, classes: list[str]) -> None:
    """results.json, and per_class.csv with every class's regions, score, accuracy and AP in the final prediction."""
    table = metrics.per_class(scores.steps["final"], scores.labels)
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["class", "regions", "score", "accuracy", "ap"])
    for c, row in table.items():
        figures = [f"{row[key]:.6f}" if row["regions"] else "" for key in ("score", "accuracy", "ap")]
        rows.writerow([classes[c], row["regions"], *figures])
    files.write_json(folder / "results.json", results)
    files.write(folder / "per_class.csv", text.getvalue())


def table_text(results: dict) -> str:
    """The figures of every step as aligned text, in per cent."""
    names = [key.replace("_", " ") for key in metrics.FIGURES]
    lines = ["".join(["step".ljust(12), *(name.rjust(len(name) + 2) for name in names)])]
    for step, figures in results["metrics"].items():
        cells = (
            f"{100 * figures[key]:.2f}".rjust(len(name) + 2) for key, name in zip(metrics.FIGURES, names, strict=True)
        )
        lines.append("".join([step.ljust(12), *cells]))
    return "\n".join(lines)
