"""The demonstration: generate scenes, train the four variants, evaluate them, and write the page that compares them."""

import copy
import json
import platform
import time
from pathlib import Path

import torch
from tqdm import tqdm

from . import __version__, files
from .config import VARIANTS, Config, small
from .data import scenes
from .data.coco import CocoDataset
from .engine import checkpoint, predict
from .engine.setup import restore_model, sizes
from .engine.train import train
from .report.page import table_text, write_page


def demo(output: Path, config: Config, device: torch.device, train_scenes: int = 1500, val_scenes: int = 300) -> Path:
    """Run everything into the folder `output` with the seed and settings of `config`; returns the page's path.

    A variant whose run has finished there is not trained again; one that was interrupted goes on.
    """
    start = time.perf_counter()
    config.data.root = str(output / "scenes")
    facts = scenes.generate(output / "scenes", train_scenes, val_scenes, seed=config.train.seed)
    runs = []
    for variant in VARIANTS:
        tqdm.write(f"{variant}: training for {config.train.steps} steps of {config.train.batch_size} scenes")
        runs.append(run_variant(output / variant, variant, config, device))
    bounds = facts["val"]["bounds"]
    about = {
        "bounds": bounds,
        "data": f"{train_scenes} training and {val_scenes} held-out scenes of {facts['size']} pixels",
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}"
        if device.type == "cpu"
        else torch.cuda.get_device_name(),
        "versions": f"irnet {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "seed": config.train.seed,
    }
    page = output / "index.html"
    write_page(page, "Reasoning about regions", runs, gallery(output, config, runs), about)
    print(table_text(runs, about))
    print(f"{time.perf_counter() - start:.0f} s in all; the page: {page}")
    return page


def run_variant(output: Path, variant: str, config: Config, device: torch.device, progress: bool = True) -> dict:
    """Train one variant, or take up its finished or interrupted run; the plain values that the page wants."""
    config = copy.deepcopy(config)
    config.model.variant = variant
    summary = output / "summary.json"
    if not (summary.exists() and json.loads(summary.read_text())["steps"] == config.train.steps):
        resume = checkpoint.find(output) if (output / "checkpoints").exists() else None
        start = time.perf_counter()
        train(config, output, device, resume, progress)
        seconds = time.perf_counter() - start
        weights = sum(t.numel() for t in checkpoint.find(output).model.values() if t.is_floating_point())
        files.write_json(summary, {"steps": config.train.steps, "seconds": seconds, "parameters": weights})
    history = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((output / "results.json").read_text())
    return {"variant": variant, "results": results, "history": history, **json.loads(summary.read_text())}


def gallery(output: Path, config: Config, runs: list[dict], most: int = 12) -> list[dict]:
    """Held-out boxes that only the full model named rightly, kinds taking turns."""
    data = CocoDataset(config.data.root, "val")
    models = {}
    for run in runs:
        saved = checkpoint.find(output / run["variant"])
        models[run["variant"]] = restore_model(saved.config.model, len(saved.classes), saved.model)
    found: dict[str, list[dict]] = {}
    for index in range(len(data)):
        sample = data[index]
        reasonings = {
            name: predict.explain(m, sample, data.classes, **sizes(config.data)) for name, m in models.items()
        }
        for region in range(len(sample.labels)):
            right = {name for name, r in reasonings.items() if r.final[region].argmax() == sample.labels[region]}
            if right == {"full"}:
                kind = sample.kinds[region] if sample.kinds else ""
                found.setdefault(kind, []).append({"reasonings": reasonings, "region": region})
        if sum(min(len(items), most) for items in found.values()) >= 2 * most:
            break
    turns = [items[i] for i in range(most) for items in found.values() if i < len(items)]
    return turns[:most]


def default_config(seed: int = 0, steps: int = 400) -> Config:
    """The demonstration's settings: the small model on scenes."""
    config = small()
    config.train.seed, config.train.steps = seed, steps
    return config
