"""What the page of a run shows, collected: the answers for all held-out regions, and images with their causes."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from irnet_kernels.graph import REGION_TYPES

from .. import __version__
from ..class_graphs.annotations import RELATIONS
from ..class_graphs.format import read_class_graph
from ..config import Config, DataConfig
from ..data.dataset import RegionDataset
from ..data.registry import open_dataset
from ..data.sample import Sample
from ..data.transforms import prepare
from ..errors import InputError
from ..models.irnet import IRNet
from ..models.predictions import CONV, PredictionKey
from ..progress import tracked
from ..report import run_page as page
from ..report.draw import Reasoning
from ..report.gains import RunAnswers
from ..report.run_page import Cause, Shown
from . import evaluate, predict
from .build import restore_model, same_classes, some_regions
from .checkpoint import Checkpoint
from .explain import EdgeStudy, edge_kinds

MEASURED = 12  # regions of an image: with thousands of classes each takes seconds


def write(
    folder: Path,
    saved: Checkpoint,
    config: Config,
    device: torch.device,
    images: int = 200,
    edges: int = 3,
    other_seeds: Sequence[str] = (),
) -> Path:
    """Evaluate a run on its held-out split and write its page; returns the path of index.html.

    Args:
        folder: The page's folder, which may hold an earlier page and nothing else.
        saved: The run's weights.
        config: Its settings; those of the data may differ.
        device: Where it is evaluated.
        images: How many can be looked at, those in which reasoning changed most; 0: all.
        edges: Edges that are measured for every region whose answer reasoning changed.
        other_seeds: Folders of runs with other seeds, for the spread of the metrics.

    Raises:
        InputError: The data or a run cannot be read, or the folder holds something else or cannot be written.
    """
    page.check(folder)
    data = open_dataset(config.data, "val")
    same_classes(data.classes, saved.classes, data.path)
    some_regions(data)
    seeds = [_results(Path(run), data.split) for run in other_seeds]
    model = restore_model(saved.config.model, len(saved.classes), saved.model, saved.source).to(device)
    run, evaluated = answers(model, data, config, device, seeds)
    run_folder = saved.source.parent.parent if saved.source.parent.name == "checkpoints" else saved.source.parent
    facts = {
        "data": f"{config.data.name}, {data.path}",
        "split": data.split,
        "model": f"{saved.config.model.variant} on {saved.config.model.backbone}",
        "weights": f"{sum(p.numel() for p in model.parameters()):,}",
        "checkpoint": f"step {saved.step:,}, {saved.source}",
        "versions": f"irnet {__version__}, torch {torch.__version__}",
    }
    chosen = most_changed(run, images, evaluated)
    pictures = shown(model, data, config.data, chosen, edges)
    title = f"{run_folder.resolve().name}: {config.data.name}, {data.split}"
    return page.write(folder, title, run, pictures, _history(run_folder / "metrics.jsonl"), facts)


def _results(run: Path, split: str) -> dict:
    """The results.json of a run. InputError where there is none, or it is of another split."""
    path, cure = run / "results.json", "name the folder of a run, which irnet eval has evaluated on the same split"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        found, metrics = results["split"], results["metrics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(path, f"cannot be used ({error!r})", cure) from error
    if found != split:
        raise InputError(path, f"is of the split {found!r}, not {split!r}", cure)
    return metrics


def _history(path: Path) -> list[dict]:
    """The lines of metrics.jsonl; a half-written last one is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def answers(
    model: IRNet, data: RegionDataset, config: Config, device: torch.device, seeds: Sequence[dict] = ()
) -> tuple[RunAnswers, int]:
    """The answers of every prediction for all regions, the metrics, and the number of images.

    seeds  the metrics in results.json of runs with other seeds
    """
    best: dict[PredictionKey, list[Tensor]] = {}

    def watch(scores: dict[PredictionKey, Tensor]) -> None:
        for key, rows in scores.items():
            best.setdefault(key, []).append(rows.argmax(1).int())

    with evaluate.progress_of(data, config) as progress:
        scores = evaluate.collect(model, evaluate.held_out(data, config, device), device, progress, watch=watch)
    counts = [len(labels) for labels in data.image_labels()[: scores.images]]
    run = RunAnswers(
        classes=data.classes,
        labels=scores.labels.numpy(),
        image=np.repeat(np.arange(len(counts)), counts),
        best={key: torch.cat(parts).numpy() for key, parts in best.items()},
        metrics={str(key): metrics for key, metrics in scores.metrics.items()},
        seeds=list(seeds),
    )
    return run, scores.images


def most_changed(run: RunAnswers, count: int, images: int) -> list[int]:
    """The images in which reasoning corrected or broke most regions, in the data's order; all for a `count` of 0."""
    if not count or count >= images:
        return list(range(images))
    changed = np.bincount(run.image[run.gained() | run.lost()], minlength=images)
    return sorted(np.argsort(-changed, kind="stable")[:count].tolist())


def shown(
    model: IRNet, data: RegionDataset, config: DataConfig, images: Sequence[int], edges: int = 3
) -> Iterator[Shown]:
    """What the page shows of each image.

    edges  how many are measured for each of the first MEASURED regions whose answer reasoning changed
    """
    relations = relation_names(model, data, config) if edges and edge_kinds(model) else None
    for i in tracked(images, "images of the page", "image"):
        sample = data[i]
        reasoning = predict.explain(model, sample, data.classes, config)
        causes = (
            {}
            if relations is None
            else _causes(model, prepare(sample, config.short_side, config.long_side), reasoning, relations, edges)
        )
        yield Shown(sample.name, reasoning, sample.attributes, causes)


def _causes(
    model: IRNet, sample: Sample, reasoning: Reasoning, relations: list[str], count: int
) -> dict[int, list[Cause]]:
    """The decisive edges of the regions whose answer reasoning changed, those that it corrected or broke first."""
    before, after = (scores.argmax(1) for scores in (reasoning.scores[reasoning.keys.index(CONV)], reasoning.final))
    right = (before == reasoning.labels) | (after == reasoning.labels)
    changed = sorted(np.flatnonzero(before != after).tolist(), key=lambda region: not right[region])
    if not changed:
        return {}
    study, causes = EdgeStudy(model, sample.image, sample.boxes), {}
    for region in changed[:MEASURED]:
        found = [
            (study.edges.row(int(i)), float(effect)) for i, effect in zip(*study.strongest(region, count), strict=True)
        ]
        names = {"region": REGION_TYPES, "class": relations}
        causes[region] = [Cause(e.kind, names[e.kind][e.type], e.source, e.target, effect) for e, effect in found]
    return causes


def relation_names(model: IRNet, data: RegionDataset, config: DataConfig) -> list[str]:
    """The names of the relations in a model's class graph, which it does not keep: those of the file that it is from.

    Where that has gone, or now has another number of relations, they are numbered.
    """
    path = Path(config.class_graph or data.root / "class_graph.json")
    names = list(read_class_graph(path).relations) if path.exists() else list(RELATIONS)
    count = model.graph.num_types
    return names if len(names) == count else [f"relation {k + 1}" for k in range(count)]
