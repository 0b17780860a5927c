"""The ablations: runs that differ from one run by a setting or two, their table, and what missing boxes cost.

What a question changes is a set of KEY=VALUE settings, so that every row is a run of `irnet train`. Trains by `demo`'s
functions, evaluates by engine's, draws by report's.
"""

import copy
import dataclasses
import json
import math
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from .. import files
from ..config import Config, ModelConfig, dump, override, validate
from ..data.registry import open_dataset
from ..data.sample import Batch
from ..engine import checkpoint, evaluate
from ..engine.build import restore_model
from ..engine.fit import scene_of
from ..engine.memory import Scene
from ..errors import InputError
from ..metrics import METRICS
from ..models.irnet import IRNet
from ..models.predictions import CONV, FINAL
from ..progress import Progress
from ..report import html
from ..report.table import WIDTH
from .demo import NO_EFFECT, finish_run, same_settings

ITERATIONS = range(1, 6)
DEEP = 3  # layers of conv-deep's head
MISSING = "missing.json"  # in a run folder: what missing boxes cost that run
MODULES = ("local", "global")


# --------------------------------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Ablation:
    """A row of the table: its name, what it asks in words, and the settings (SECTION.NAME) in which it differs."""

    name: str
    about: str
    changes: dict[str, Any]

    def words(self) -> list[str]:
        """The changes as KEY=VALUE."""
        return [f"{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in self.changes.items()]

    def settings(self, base: Config, seed: int) -> Config:
        """The settings of its run with a seed."""
        config = copy.deepcopy(base)
        for key, value in {**self.changes, "train.seed": seed}.items():
            override(config, key, value)
        validate(config)
        return config


# (name, what it asks, changes, modules that it takes for there to be a question)
PATHS: list[tuple[str, str, dict[str, Any], tuple[str, ...]]] = [
    ("no-spatial", "no edges between regions", {"model.spatial_edges": False}, ("global",)),
    ("no-class-edges", "no edges between classes", {"model.class_edges": False}, ("global",)),
    ("no-class-path", "regions and classes exchange nothing", {"model.class_path": False}, ("global",)),
    ("no-cross-feed", "each module reads its own predictions alone", {"model.cross_feed": False}, MODULES),
    ("mean", "no attention: the mean of all predictions' logits", {"model.attention": "mean"}, ()),
    ("last", "no attention: the mean of the last predictions' logits", {"model.attention": "last"}, ()),
    ("no-weights", "all regions weigh the same in the loss", {"loss.beta": 1.0}, ()),
]
ALONE: list[tuple[str, str, dict[str, Any]]] = [
    ("local", "the local module alone", {"model.variant": "local"}),
    ("global", "the global module alone", {"model.variant": "global"}),
    (
        "region-edges",
        "the global module alone, edges between regions its only path",
        {"model.variant": "global", "model.spatial_edges": True, "model.class_path": False},
    ),
    (
        "class-path",
        "the global module alone, the exchange with classes its only path",
        {"model.variant": "global", "model.spatial_edges": False, "model.class_path": True},
    ),
    (
        "no-exchange",
        "the global module alone, without a path between regions",
        {"model.variant": "global", "model.spatial_edges": False, "model.class_path": False},
    ),
]


def ablations(base: Config, scene: Scene) -> list[Ablation]:
    """The questions that can be asked of a run, in the order of the table; the first is the run as it is.

    Args:
        base: Settings of the run.
        scene: Of its data: the numbers of classes and of edge types decide how many weights there are.
    """
    modules = {"conv": (), "local": ("local",), "global": ("global",), "full": MODULES}[base.model.variant]
    questions = [Ablation("base", "the run as it is", {})]
    if modules:
        questions += [
            Ablation(name, about, changes) for name, about, changes, needs in PATHS if set(needs) <= set(modules)
        ]
        questions += [
            Ablation(f"iterations-{i}", f"{i} iteration{'s' * (i > 1)}", {"model.iterations": i}) for i in ITERATIONS
        ]
    questions += [Ablation(*entry) for entry in ALONE]
    wide, deep = conv_heads(base.model, scene)
    conv = {"model.variant": "conv"}
    questions.append(Ablation("conv", "the ConvNet alone", conv))
    if wide:
        questions.append(Ablation("conv-wide", "the ConvNet, a wide layer more", {**conv, "model.conv_head": [wide]}))
    if deep:
        about = f"the ConvNet, {DEEP} layers more"
        questions.append(Ablation("conv-deep", about, {**conv, "model.conv_head": [deep] * DEEP}))
    return questions


def choose(questions: list[Ablation], names: str) -> list[Ablation]:
    """The questions that `names` lists between commas, in the table's order, or all. InputError for an unknown name."""
    chosen = names.split(",") if names else [a.name for a in questions]
    known = [a.name for a in questions]
    for name in chosen:
        if name not in known:
            raise InputError("--variants", f"there is no {name!r} of this run", f"choose among {', '.join(known)}")
    return [a for a in questions if a.name in chosen]


def conv_heads(model: ModelConfig, scene: Scene) -> tuple[int, int]:
    """The widths of one layer, and of each of DEEP layers, that give the ConvNet as many weights as the whole model.

    0 where the ConvNet has no fewer.
    """
    conv = dataclasses.replace(model, variant="conv", conv_head=[])
    spare = parameters(whole_of(model), scene) - parameters(conv, scene)
    features, classes = skeleton(conv, scene).classifier.in_features, scene.classes
    # The classifier reads w in place of `features` numbers; n layers of w have w (features + 1) + (n - 1) (w + 1) w.
    room = spare + features * classes
    linear, square = features + classes + DEEP, DEEP - 1
    deep = (math.sqrt(linear**2 + 4 * square * room) - linear) / (2 * square)
    return (round(room / (features + classes + 1)), round(deep)) if spare > 0 else (0, 0)


def whole_of(model: ModelConfig) -> ModelConfig:
    """The model that a larger ConvNet is held against: the run's own, of the variant `conv` the full one."""
    return dataclasses.replace(model, variant="full") if model.variant == "conv" else model


def skeleton(model: ModelConfig, scene: Scene) -> IRNet:
    """The model without numbers in its tensors."""
    with torch.device("meta"):
        vectors = torch.empty(scene.classes, scene.vector_size) if scene.vector_size else None
        return IRNet(dataclasses.replace(model, backbone_weights=""), scene.classes, scene.edges, vectors)


def parameters(model: ModelConfig, scene: Scene) -> int:
    """How many weights a model has."""
    return sum(p.numel() for p in skeleton(model, scene).parameters())


# ------------------------------------------------------------------------------------------------------ missing boxes


def missing(batches: Iterable[Batch], share: float, seed: int) -> Iterator[Batch]:
    """Show every region again with a share of the other boxes of its image gone.

    An image comes as often as it takes for each of its regions to be asked once, with as many others as are left; the
    attribute "asked" says "yes" of those regions. Which others are left is drawn by the seed, image by image, whatever
    the batches. With a share of 0 the batches are as they were, with 1 every region is by itself.

    Args:
        batches: Images in order.
        share: Part of the other boxes, from 0 to 1.
        seed: Another one takes other boxes away.

    Yields:
        Batches of no more images than those given.
    """
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        size, images, names, rows, asked, counts = len(batch.images), [], [], [], [], [0]
        for index, (start, stop) in enumerate(zip(batch.ptr[:-1].tolist(), batch.ptr[1:].tolist(), strict=True)):
            for members, targets in _windows(stop - start, share, generator):
                images.append(batch.images[index])
                names.append(batch.names[index])
                rows += [start + member for member in members]
                asked += ["yes" if member in targets else "no" for member in members]
                counts.append(len(members))
        attributes = {name: [values[row] for row in rows] for name, values in batch.attributes.items()}
        ptr, at = torch.tensor(counts).cumsum(0), torch.tensor(rows, dtype=torch.int64)
        shown = Batch(images, batch.boxes[at], ptr, batch.labels[at], names, {**attributes, "asked": asked})
        yield from shown.split(-(-len(images) // size))


def _windows(count: int, share: float, generator: torch.Generator) -> Iterator[tuple[list[int], set[int]]]:
    """Sets of equally many of `count` regions, sorted, and which of them are asked: each region in one set."""
    order = torch.randperm(count, generator=generator).tolist()
    left = count - round(share * max(count - 1, 0))
    if not count:
        yield [], set()
    for start in range(0, count, max(left, 1)):
        members = [order[i % count] for i in range(start, start + left)]
        yield sorted(members), set(order[start : start + left])


def resilience(run: Path, steps: int, seed: int, device: torch.device) -> dict:
    """Accuracies of a finished run with 0 to 100% of the other boxes missing; kept in its folder as MISSING.

    Args:
        run: Folder of the run.
        steps: Number of steps from 0 to 100%.
        seed: Decides which boxes are missing.
        device: Device on which the model runs.
    """
    saved = checkpoint.find(run)
    asked = {"steps": steps, "seed": seed, "trained": saved.step}
    path = run / MISSING
    if path.exists() and asked.items() <= (known := json.loads(path.read_text())).items():
        return known
    config = saved.config
    data = open_dataset(config.data, "val")
    model = restore_model(config.model, len(saved.classes), saved.model).to(device)
    curve: dict[str, Any] = {**asked, "shares": [], "accuracy": [], "by_kind": {}}
    with Progress(f"missing boxes, {run.name}", steps + 1, "share") as progress:
        for share in (step / steps for step in range(steps + 1)):
            stream = missing(evaluate.held_out(data, config, device), share, seed)
            scores = evaluate.collect(model, stream, device)
            hits = accuracies(scores)
            if not share:
                curve["conv"] = scores.metrics[CONV]["instance_accuracy"]
            curve["shares"].append(share)
            curve["accuracy"].append(hits.pop("all"))
            for kind, accuracy in hits.items():
                curve["by_kind"].setdefault(kind, []).append(accuracy)
            progress.update()
    files.write_json(path, curve)
    return curve


def accuracies(scores: evaluate.Scores) -> dict[str, float]:
    """Of the regions that are asked: the accuracy of the final prediction of "all", and of each kind, if they have."""
    asked = torch.tensor([value == "yes" for value in scores.attributes["asked"]])
    accuracy = {"all": scores.right[asked].double().mean().item()}
    kinds = scores.attributes.get("kind", [])
    for kind in sorted(set(kinds)):
        of_kind = torch.tensor([value == kind for value in kinds])
        accuracy[kind] = scores.right[asked & of_kind].double().mean().item()
    return accuracy


# --------------------------------------------------------------------------------------------------------------- runs


def ablate(
    output: Path, base: Config, device: torch.device, names: str = "", seeds: int = 1, missing_steps: int = 10
) -> dict:
    """Train what is not there yet, and write ablations.md, ablations.json and the pictures of the curve.

    A run that has finished is known by its settings and not repeated, one that was interrupted goes on. Rows of equal
    settings share a run.

    Args:
        output: Folder of all runs, one for each row and seed.
        base: Settings of the run of which the questions are asked.
        device: Device on which to train.
        names: Of the rows, between commas; empty: all.
        seeds: Number of runs of each row, with train.seed and those after it.
        missing_steps: Steps of the curve from 0 to 100% of missing boxes; 0: no curve.

    Returns:
        The content of ablations.json.

    Raises:
        InputError: A name is unknown, the data cannot be used, or the folder holds runs with other settings.
    """
    data = open_dataset(base.data, "train")
    whole = dataclasses.replace(base, model=whole_of(base.model))
    chosen = choose(ablations(base, scene_of(data, whole)), names)
    folders, planned = {}, []
    for seed in range(base.train.seed, base.train.seed + seeds):
        for ablation in chosen:
            config = ablation.settings(base, seed)
            # The first row with these settings has the run.
            folder = folders.setdefault(dump(config), output / f"{ablation.name}-{seed}")
            same_settings(folder, config, [key for key in NO_EFFECT if key != "data.root"])
            planned.append((ablation, seed, folder, config))
    files.write(output / "config.yaml", dump(base))
    rows: dict[str, list[dict]] = {ablation.name: [] for ablation in chosen}
    for number, (ablation, seed, folder, config) in enumerate(planned, 1):
        print(f"{number} of {len(planned)}: {ablation.name}, seed {seed} ({ablation.about})", flush=True)
        run = finish_run(folder, config, device)
        kept = {key: value for key, value in run.items() if key != "history"}
        rows[ablation.name].append({"seed": seed, "folder": str(folder), **kept})
    record: dict[str, Any] = {
        "what": "final predictions of the held-out images; spread is the standard deviation over the seeds",
        "seeds": [base.train.seed + i for i in range(seeds)],
        "base": dataclasses.asdict(base),
        "rows": [row_of(ablation, rows[ablation.name], output / "config.yaml") for ablation in chosen],
    }
    if missing_steps and "base" in rows and base.model.variant != "conv":
        curves = [resilience(Path(run["folder"]), missing_steps, base.train.seed, device) for run in rows["base"]]
        record["missing"] = curve_of(curves, record["rows"])
        picture = figure_of(record["missing"])
        for name in ("missing.png", "missing.svg"):
            files.write(output / name, html.file(picture, name[-3:]))
    files.write_json(output / "ablations.json", record)
    files.write(output / "ablations.md", markdown(record))
    return record


def row_of(ablation: Ablation, runs: list[dict], base: Path) -> dict:
    """A row of ablations.json: mean and spread of each metric and kind, its runs, and the command of its first run.

    base  the file of the settings in which the row does not differ
    """
    final = [run["results"]["metrics"][str(FINAL)] for run in runs]
    figures = {key: [metrics[key] for metrics in final] for key in METRICS}
    kinds = [run["results"].get("accuracy_by_kind", {}) for run in runs]
    figures |= {f"kind:{kind}": [values[kind] for values in kinds] for kind in kinds[0]}
    words = ["irnet", "train", "--resume", "--output-dir", runs[0]["folder"], "--config", str(base)]
    words += ablation.words()
    return {
        "name": ablation.name,
        "about": ablation.about,
        "command": shlex.join(words),
        "mean": {key: fmean(values) for key, values in figures.items()},
        "spread": {key: stdev(values) if len(values) > 1 else None for key, values in figures.items()},
        "parameters": runs[0]["parameters"],
        "seconds": fmean(run["seconds"] for run in runs),
        "runs": runs,
    }


def curve_of(curves: list[dict], rows: list[dict]) -> dict:
    """Mean and spread of the curves of several seeds, and the ConvNet's line: of row `conv`, else the run's own."""
    conv = next((row["mean"]["instance_accuracy"] for row in rows if row["name"] == "conv"), None)
    points = list(zip(*(curve["accuracy"] for curve in curves), strict=True))
    return {
        "shares": curves[0]["shares"],
        "mean": [fmean(values) for values in points],
        "spread": [stdev(values) if len(values) > 1 else 0.0 for values in points],
        "by_kind": {
            kind: [fmean(values) for values in zip(*(curve["by_kind"][kind] for curve in curves), strict=True)]
            for kind in curves[0]["by_kind"]
        },
        "conv": fmean(curve["conv"] for curve in curves) if conv is None else conv,
        "conv_is": "the base's own ConvNet" if conv is None else "the ConvNet alone",
    }


# ------------------------------------------------------------------------------------------------------------- output


def cell(row: dict, key: str) -> str:
    """A mean with its spread, in per cent."""
    if key not in row["mean"]:
        return "-"
    spread = row["spread"][key]
    return f"{100 * row['mean'][key]:.1f}" + ("" if spread is None else f" ±{100 * spread:.1f}")


def kinds_of(record: dict) -> list[str]:
    """The keys of the kinds of region that the data set tells apart."""
    return [key for key in record["rows"][0]["mean"] if key.startswith("kind:")]


def table_text(record: dict) -> str:
    """The table and the curve for a terminal of WIDTH columns, then each row's command; kinds stay out for width."""
    from tabulate import SEPARATING_LINE, tabulate

    columns = ["class_ap", "instance_accuracy", *kinds_of(record)]
    while True:
        heads = ["row", *(c.removeprefix("kind:").replace("instance", "inst").replace("_", " ") for c in columns)]
        lines = [
            [row["name"], *(cell(row, c) for c in columns), f"{row['parameters']:,}", f"{row['seconds']:.0f}"]
            for row in record["rows"]
        ]
        sides = ["left"] + ["right"] * (len(columns) + 2)
        table = tabulate([[*heads, "weights", "s"], SEPARATING_LINE, *lines], disable_numparse=True, colalign=sides)
        if max(map(len, table.splitlines())) <= WIDTH or len(columns) <= 2:
            break
        columns.pop()
    note = f"Per cent of the held-out images, final answers, {spread_text(record)}; s: seconds of training."
    parts = [table, textwrap.fill(note, WIDTH)]
    if "missing" in record:
        parts += ["", curve_text(record["missing"])]
    return "\n".join([*parts, "", "Each row's command:", *(row["command"] for row in record["rows"])])


def spread_text(record: dict) -> str:
    seeds = record["seeds"]
    numbers = ", ".join(map(str, seeds))
    return f"mean ± standard deviation of the seeds {numbers}" if len(seeds) > 1 else f"seed {numbers}"


def curve_text(curve: dict) -> str:
    """The curve as lines of a share each."""
    lines = [
        f"Instance accuracy with a share of the other boxes missing ({curve['conv_is']}: {100 * curve['conv']:.1f}):"
    ]
    for share, mean, spread in zip(curve["shares"], curve["mean"], curve["spread"], strict=True):
        lines.append(f"  {100 * share:5.1f}% missing  {100 * mean:5.1f}" + (f" ±{100 * spread:.1f}" if spread else ""))
    return "\n".join(lines)


def markdown(record: dict) -> str:
    """The record as a page."""
    kinds = kinds_of(record)
    heads = ["row", "asks", *METRICS, *(key.removeprefix("kind:") for key in kinds), "weights", "training, s"]
    lines = ["# Ablations", "", f"Held-out images, final predictions, per cent; {spread_text(record)}.", ""]
    lines += [f"| {' | '.join(head.replace('_', ' ') for head in heads)} |"]
    lines += ["|---|---|" + "---:|" * (len(heads) - 2)]
    for row in record["rows"]:
        cells = [row["name"], row["about"], *(cell(row, key) for key in (*METRICS, *kinds))]
        lines.append(f"| {' | '.join(cells)} | {row['parameters']:,} | {row['seconds']:.0f} |")
    lines += ["", "Each row's command, of its first seed; `train.seed=N` and another folder give the others:", ""]
    lines += ["```", *(row["command"] for row in record["rows"]), "```", ""]
    if "missing" in record:
        curve = record["missing"]
        heads = ["missing, %", "all", *curve["by_kind"], curve["conv_is"]]
        lines += ["## Missing boxes", "", "![Accuracy over the share of missing boxes](missing.svg)", ""]
        lines += ["Instance accuracy of every held-out region where a share of the others of its image is gone.", ""]
        lines += [f"| {' | '.join(heads)} |", "|" + "---:|" * len(heads)]
        for i, share in enumerate(curve["shares"]):
            values = [curve["mean"][i], *(values[i] for values in curve["by_kind"].values()), curve["conv"]]
            lines.append(f"| {100 * share:.0f} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
        lines.append("")
    return "\n".join(lines)


def figure_of(curve: dict) -> Any:
    """The curve as a chart."""
    figure, axes = html.chart(5.5)
    shares = [100 * share for share in curve["shares"]]
    mean, spread = ([100 * value for value in curve[key]] for key in ("mean", "spread"))
    axes.plot(shares, mean, color="#2a78c8", marker="o", markersize=4, label="base")
    low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(shares, low, high, color="#2a78c8", alpha=0.2, linewidth=0)
    label = curve["conv_is"]
    axes.axhline(100 * curve["conv"], color=html.INK, linewidth=1, linestyle=(0, (4, 2)), label=label)
    axes.set_xlabel("other boxes missing, %")
    axes.set_ylabel("instance accuracy, %")
    html.legend_above(figure, axes)
    return figure
