"""What the page of a run shows, collected: the answers for all held-out regions, and images with their causes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from ..models.predictions import CONV, FINAL, PredictionKey
from ..progress import tracked
from ..report import run_page as page
from ..report.draw import Reasoning
from ..report.gains import RunAnswers
from ..report.run_page import Cause, Shown
from . import checkpoint, evaluate, predict
from .build import restore_model, same_classes, some_regions
from .checkpoint import Checkpoint
from .explain import EdgeStudy, edge_kinds
from .run_folder import read_lines

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
        images: How many can be looked at, those in which reasoning corrected or broke most; 0: all.
        edges: Edges that are measured for every region whose answer reasoning changed.
        other_seeds: Folders of runs with other seeds, for the spread of the metrics.

    Raises:
        InputError: The data or a run cannot be read, or the folder holds something else or cannot be written.
    """
    page.check(folder)
    run_folder = checkpoint.folder_of_run(saved.source)
    data = open_dataset(config.data, "val")
    same_classes(data.classes, saved.classes, data.path)
    some_regions(data)
    model = restore_model(saved.config.model, len(saved.classes), saved.model, saved.source).to(device)
    seeds = _seeds(run_folder, other_seeds, _expected(model, data, config))
    kinds = edge_kinds(model)
    relations = relation_names(model, data, config.data) if edges and kinds else None
    run = answers(model, data, config, device, seeds)
    facts = {
        "data": f"{config.data.name}, {data.path}",
        "split": data.split,
        "model": f"{saved.config.model.variant} on {saved.config.model.backbone}",
        "weights": f"{sum(p.numel() for p in model.parameters()):,}",
        "checkpoint": f"step {saved.step:,}, {saved.source}",
        "versions": f"irnet {__version__}, torch {torch.__version__}",
    }
    pictures = shown(model, data, config.data, most_changed(run, images), relations, edges)
    title = f"{run_folder.resolve().name}: {config.data.name}, {data.split}"
    history = read_lines(run_folder / "metrics.jsonl")
    return page.write(folder, title, run, pictures, history, facts, kinds, MEASURED if edges else 0)


def _expected(model: IRNet, data: RegionDataset, config: Config) -> dict[str, Any]:
    """What results.json says of an evaluation of this model's like on this data."""
    modules, iterations = model.reasoning_modules(), range(1, model.config.iterations + 1)
    keys = [CONV, *(PredictionKey(name, i) for name in modules for i in iterations), FINAL]
    images = config.train.limit_batches * config.train.batch_size or len(data)
    regions = sum(map(len, data.image_labels()[:images]))
    return {"split": data.split, "regions": regions, "predictions": sorted(map(str, keys))}


def _seeds(run: Path, others: Sequence[str], expected: dict[str, Any]) -> list[dict]:
    """The metrics in results.json of other runs.

    InputError where one is given twice, is `run`, has none, or is of other data or predictions than expected.
    """
    cure = "name the folder of another run, which irnet eval has evaluated on the same split"
    seen, seeds = [run.resolve()], []
    for folder in map(checkpoint.folder_of_run, others):
        if folder.resolve() in seen:
            trouble = "is the run of the page itself" if folder.resolve() == seen[0] else "is given twice"
            raise InputError(folder, trouble, "name each run with another seed once")
        seen.append(folder.resolve())
        path = folder / "results.json"
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            metrics = results["metrics"]
            stated = {"split": results["split"], "regions": results["regions"], "predictions": sorted(metrics.keys())}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(path, f"cannot be used ({error!r})", cure) from error
        for name, value in expected.items():
            if stated[name] != value:
                raise InputError(path, f"has other {name}: {stated[name]!r}, not {value!r}", cure)
        seeds.append(metrics)
    return seeds


def answers(
    model: IRNet, data: RegionDataset, config: Config, device: torch.device, seeds: Sequence[dict] = ()
) -> RunAnswers:
    """The answers of every prediction for all regions, and the metrics.

    seeds  the metrics in results.json of runs with other seeds
    """
    with evaluate.progress_of(data, config) as progress:
        scores = evaluate.collect(model, evaluate.held_out(data, config, device), device, progress)
    counts = [len(labels) for labels in data.image_labels()[: scores.images]]
    return RunAnswers(
        classes=data.classes,
        labels=scores.labels.numpy(),
        image=np.repeat(np.arange(len(counts)), counts),
        images=scores.images,
        best={key: best.numpy() for key, best in scores.predicted.items()},
        metrics={str(key): metrics for key, metrics in scores.metrics.items()},
        seeds=list(seeds),
    )


def most_changed(run: RunAnswers, count: int) -> list[int]:
    """The images in which reasoning corrected or broke most regions, in the data's order; all for a `count` of 0."""
    if not count or count >= run.images:
        return list(range(run.images))
    changed = np.bincount(run.image[run.gained() | run.lost()], minlength=run.images)
    return sorted(np.argsort(-changed, kind="stable")[:count].tolist())


def shown(
    model: IRNet,
    data: RegionDataset,
    config: DataConfig,
    images: Sequence[int],
    relations: list[str] | None = None,
    edges: int = 3,
) -> Iterator[Shown]:
    """What the page shows of each image.

    relations  the names of `relation_names`; None: no edges are measured
    edges      how many are told for each of the first MEASURED regions whose answer reasoning changed
    """
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
    study, names = EdgeStudy(model, sample.image, sample.boxes), {"region": REGION_TYPES, "class": relations}
    return {
        region: [
            Cause(e.kind, names[e.kind][e.type], e.source, e.target, effect)
            for e, effect in study.strongest_rows(region, count)
        ]
        for region in changed[:MEASURED]
    }


def relation_names(model: IRNet, data: RegionDataset, config: DataConfig) -> list[str]:
    """The names of the relations in a model's class graph, which it does not keep: those of the file that it is from.

    Where that has gone, or now has another number of relations or of edges, they are numbered.
    """
    path = Path(config.class_graph or data.root / "class_graph.json")
    names, edges, count = list(RELATIONS), len(model.graph.graph_indices), model.graph.num_types
    same_edges = True
    if path.exists():
        relations = read_class_graph(path).relations
        names, same_edges = list(relations), edges == sum(len(src) for src, _, _ in relations.values())
    return names if len(names) == count and same_edges else [f"relation {k + 1}" for k in range(count)]
