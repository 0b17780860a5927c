"""The demonstration: generate scenes, train the four variants, evaluate them, and write the page that compares them."""

import copy
import dataclasses
import json
import platform
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__, files
from ..config import VARIANTS, Config, load
from ..data.dataset import RegionDataset
from ..data.registry import open_dataset
from ..engine import checkpoint, evaluate, predict
from ..engine.build import restore_model
from ..engine.train import train
from ..errors import InputError
from ..models.irnet import IRNet
from ..report.draw import Reasoning
from ..report.page import page
from ..report.table import table_text
from ..scenes.generator import generate
from ..scenes.rules import RULES, clue

NO_EFFECT = ("data.root", "train.workers", "train.checkpoint_every", "train.vis")  # on what comes out
NO_EFFECT += ("train.curve", "train.tensorboard", "train.wandb")


def demo(output: Path, config: Config, device: torch.device, train_scenes: int = 1500, val_scenes: int = 300) -> Path:
    """Run everything into the folder `output` with the seed and settings of `config`; returns the page's path.

    A variant whose run has finished there is not trained again; one that was interrupted goes on. InputError where
    `output` holds runs or scenes made with other settings.
    """
    start = time.perf_counter()
    config.data.name, config.data.root = "scenes", str(output / "scenes")
    facts = generate(output / "scenes", train_scenes, val_scenes, seed=config.train.seed)
    runs = []
    for variant in VARIANTS:
        print(f"{variant}: training for {config.train.steps} steps of {config.train.batch_size} scenes", flush=True)
        runs.append(run_variant(output / variant, variant, config, device))
    bounds = facts["val"]["bounds"]
    about = {
        "bounds": bounds,
        "data": f"{train_scenes} training and {val_scenes} held-out scenes of {facts['size']} pixels",
        "machine": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
        "versions": f"irnet {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "seed": config.train.seed,
    }
    if device.type == "cuda":
        about["machine"] = torch.cuda.get_device_name(device)
    path = output / "index.html"
    answers = held_out_answers(output, config, runs)
    files.write(path, page("Reasoning about regions", runs, gallery(answers), about, puzzles=puzzles(answers)))
    print(table_text(runs, about))
    print(f"{time.perf_counter() - start:.0f} s in all; the page: {path}")
    return path


def run_variant(output: Path, variant: str, config: Config, device: torch.device, progress: bool = True) -> dict:
    """Train one variant, or take up its finished or interrupted run; the plain values that the page wants.

    InputError where `output` holds a run with other settings.
    """
    config = copy.deepcopy(config)
    config.model.variant = variant
    same_settings(output, config)
    return {"variant": variant, **finish_run(output, config, device, progress)}


def finish_run(output: Path, config: Config, device: torch.device, progress: bool = True) -> dict:
    """Train in the folder `output`, or take up its finished or interrupted run, which has the same settings.

    Returns plain values: the content of results.json, the lines of metrics.jsonl, seconds of training and parameters.
    """
    summary = output / "summary.json"  # written last: where it is, the run has finished
    if not summary.exists():
        resume = checkpoint.find(output) if checkpoint.exists(output) else None
        results = train(config, output, device, resume, progress)
        seconds = checkpoint.find(output).extra["seconds"]
        files.write_json(summary, {"seconds": seconds, "parameters": results["parameters"], "results": results})
    history = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {"history": history, **json.loads(summary.read_text())}


def same_settings(run: Path, config: Config, no_effect: Collection[str] = NO_EFFECT) -> None:
    """InputError where the folder `run` holds a run with other settings than `config`, but for those without effect."""
    if not checkpoint.exists(run):
        return
    for section, settings in dataclasses.asdict(config).items():
        run_settings = dataclasses.asdict(load(run / "config.yaml"))[section]
        for key in settings:
            if run_settings[key] != settings[key] and f"{section}.{key}" not in no_effect:
                trouble = f"holds a run with {section}.{key} = {run_settings[key]}, not {settings[key]}"
                raise InputError(run, trouble, "name another --output-dir, or delete this one")


@dataclass
class Answers:
    """What the trained variants make of the held-out scenes.

    models  variant -> its model
    right   variant -> bool [N], whether it names each of the N held-out boxes rightly
    kinds   N strings, the kind of every box
    owner   N pairs, the image of every box and its place among that image's boxes
    """

    data: RegionDataset
    config: Config
    models: dict[str, IRNet]
    right: dict[str, Tensor]
    kinds: list[str]
    owner: list[tuple[int, int]]

    def entry(self, row: int) -> dict:
        """One held-out box as the page wants it: the reasoning of every variant on its image, and its place there."""
        image, region = self.owner[row]
        sample = self.data[image]
        reasonings: dict[str, Reasoning] = {
            name: predict.explain(model, sample, self.data.classes, self.config.data)
            for name, model in self.models.items()
        }
        for reasoning in reasonings.values():
            reasoning.kinds = sample.attributes["kind"]
        return {"reasonings": reasonings, "region": region}


def held_out_answers(output: Path, config: Config, runs: list[dict]) -> Answers:
    """Let every variant whose run is in `output` answer all held-out boxes."""
    data, device = open_dataset(config.data, "val"), torch.device("cpu")
    models, right, kinds = {}, {}, []
    for run in runs:
        saved = checkpoint.find(output / run["variant"])
        model = models[run["variant"]] = restore_model(saved.config.model, len(saved.classes), saved.model)
        with evaluate.progress_of(data, config) as progress:
            scores = evaluate.collect(model, evaluate.held_out(data, config, device), device, progress)
        right[run["variant"]] = scores.right
        kinds = scores.attributes["kind"]
    owner = [(image, region) for image, labels in enumerate(data.image_labels()) for region in range(len(labels))]
    return Answers(data, config, models, right, kinds, owner)


def gallery(answers: Answers, most: int = 12) -> list[dict]:
    """Held-out boxes that the ConvNet got wrong and the full model right, those that all others got wrong first.

    At most `most`, kinds of region taking turns.
    """
    right = answers.right
    others = sum(right[variant].int() for variant in VARIANTS if variant != "full")
    rows_by_kind: dict[str, list[int]] = {}
    for row in (right["full"] & ~right["conv"]).nonzero()[:, 0].tolist():
        rows_by_kind.setdefault(answers.kinds[row], []).append(row)
    for rows in rows_by_kind.values():
        rows.sort(key=lambda row: int(others[row]))
    turns = [rows[i] for i in range(most) for rows in rows_by_kind.values() if i < len(rows)]
    return [answers.entry(row) for row in sorted(turns, key=lambda row: int(others[row]))[:most]]


def puzzles(answers: Answers) -> list[dict]:
    """One held-out box for every kind of puzzle that occurs, with the rule of its world and its clue.

    It is the first that the full model names rightly and the ConvNet does not, where there is one.
    """
    entries = []
    for kind, rule in RULES.items():
        rows = [row for row, row_kind in enumerate(answers.kinds) if row_kind == kind]
        corrected = [row for row in rows if answers.right["full"][row] and not answers.right["conv"][row]]
        for row in (corrected or rows)[:1]:
            entry = answers.entry(row)
            shown = entry["reasonings"]["full"]
            names = [shown.truth(region) for region in range(len(shown.boxes))]
            entries.append({**entry, "kind": kind, "rule": rule, "clue": clue(names, shown.boxes, entry["region"])})
    return entries
