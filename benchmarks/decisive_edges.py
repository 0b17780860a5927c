"""Are the edges shown as decisive decisive? Removes the three strongest of each held-out region, and three random ones.

    python benchmarks/decisive_edges.py --output-dir runs/decisive

Trains `global` and `full` on generated scenes, where that has not been done, and writes benchmarks/results/
decisive_edges.json. Exits with 1 where the strongest do not change the answer at least five times as often, of all
regions and of those `corrected`: the final answer is right, and is not the ConvNet's. Random edges come from two pools:
`reaching`, all edges of the image's graph with a gradient other than 0, which can reach the region at all; `alike`, for
each of the strongest an edge of its kind, and between regions one with the same end: the region itself, or another. The
strongest are in both pools. RUN/decisive_edges.jsonl keeps every scene: delete it to measure anew.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from irnet import files
from irnet.config import small
from irnet.data.dataset import RegionDataset
from irnet.data.registry import open_dataset
from irnet.data.transforms import prepare
from irnet.engine import checkpoint
from irnet.engine.build import restore_model
from irnet.engine.explain import CANDIDATES, EdgeStudy
from irnet.experiments.demo import run_variant
from irnet.models.irnet import IRNet
from irnet.progress import tracked
from irnet.scenes.generator import generate
from irnet.scenes.rules import clue
from reasoning import machine

RESULT = Path(__file__).parent / "results/decisive_edges.json"
COUNT, DRAWS, TARGET = 3, 5, 5.0
EXHAUSTIVE = 20  # of every so many scenes, all edges are removed one by one
POOLS = ("reaching", "alike")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/decisive"))
    parser.add_argument("--variants", nargs="+", choices=("global", "full"), default=["global", "full"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    config = small()
    config.train.seed, config.data.root = options.seed, str(options.output_dir / f"scenes-{options.seed}")
    generate(Path(config.data.root), seed=options.seed)
    variants = {}
    for variant in options.variants:
        run = options.output_dir / f"{variant}-{options.seed}"
        run_variant(run, variant, config, torch.device("cpu"))
        variants[variant] = summary(measure(run))
    record = {
        "what": f"held-out scenes; how often removing {COUNT} edges of the graph changes the final answer of a region",
        "command": " ".join(["python", "benchmarks/decisive_edges.py", *sys.argv[1:]]),
        "seed": options.seed,
        "draws": DRAWS,
        "candidates": CANDIDATES,
        "target": TARGET,
        "variants": variants,
        "machine": machine(),
    }
    files.write_json(RESULT, record)
    print(json.dumps(variants, indent=1))
    missed = [(v, g) for v, s in variants.items() for g in ("corrected", "all") if not s["regions"][g]["met"]]
    print("missed:", missed or "nothing")
    return 1 if missed else 0


def measure(run: Path) -> list[dict]:
    """A row for every region of the held-out scenes of a run, as its file keeps them."""
    saved = checkpoint.find(run)
    model = restore_model(saved.config.model, len(saved.classes), saved.model)
    data = open_dataset(saved.config.data, "val")
    kept = run / "decisive_edges.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    with kept.open("a", buffering=1) as file:
        for index in tracked(range(len(rows), len(data)), f"edges of {run.name}", "scene"):
            rows.append(scene(model, data, index))
            file.write(json.dumps(rows[-1]) + "\n")
    return [row for of_scene in rows for row in of_scene]


def scene(model: IRNet, data: RegionDataset, index: int) -> list[dict]:
    """A row for every region of one scene."""
    sample = prepare(data[index], 0, 0)
    study = EdgeStudy(model, sample.image, sample.boxes)
    generator = torch.Generator().manual_seed(index)
    names = [data.classes[label] for label in sample.labels]
    rows = []
    for region, kind in enumerate(sample.attributes["kind"]):
        answer, conv = int(study.final[region].argmax()), int(study.conv[region].argmax())
        row = {"kind": kind, "corrected": answer == int(sample.labels[region]) and answer != conv}
        first, strongest = study.first_order(region), study.strongest(region, COUNT)[0]
        reaching = first.nonzero()[:, 0]
        pools = {"reaching": [reaching] * len(strongest), "alike": alike(study, region, strongest)}
        drawn = [draw(pools[pool], generator) for pool in POOLS for _ in range(DRAWS)]
        removals = [strongest[:1], strongest, *drawn]
        changed = (study.without(region, removals).argmax(1) != answer).tolist()
        clues = clue(names, sample.boxes.tolist(), region)
        labels = sample.labels[clues].tolist()
        row |= {"edges": len(first), "reached_by": len(reaching), "removed": len(strongest)}
        row |= {"strongest": changed[1], "single": changed[0], "of_classes": study.edges.of_classes[strongest].tolist()}
        row |= {pool: changed[2 + DRAWS * i :][:DRAWS] for i, pool in enumerate(POOLS)}
        if clues:
            row["clue"] = [from_clue(study, edges, clues, labels) for edges in [strongest, *drawn[:DRAWS]]]
        if index % EXHAUSTIVE == 0:
            row |= agreement(study, region, first)
        rows.append(row)
    return rows


def alike(study: EdgeStudy, region: int, strongest: Tensor) -> list[Tensor]:
    """For each of the strongest edges those of its kind; of regions, those with the same end."""
    ends = torch.where(study.edges.of_classes, 2, (study.edges.target == region).long())
    return [(ends == ends[edge]).nonzero()[:, 0] for edge in strongest]


def draw(pools: list[Tensor], generator: torch.Generator) -> Tensor:
    """One edge of each pool, none twice."""
    edges: list[int] = []
    for pool in pools:
        left = [edge for edge in pool.tolist() if edge not in edges]
        edges += [left[int(torch.randint(len(left), (), generator=generator))]] if left else []
    return torch.tensor(edges, dtype=torch.int64)


def from_clue(study: EdgeStudy, edges: Tensor, clues: list[int], labels: list[int]) -> bool:
    """Whether one of the edges comes from an object that decides by the scenes' rules, or from its class."""
    rows = [study.edges.row(int(edge)) for edge in edges]
    return any(row.source in (labels if row.kind == "class" else clues) for row in rows)


def agreement(study: EdgeStudy, region: int, first: Tensor) -> dict:
    """How well the gradients rank the edges, beside the removal of each."""
    effects = study.effects(region, list(torch.arange(len(first))[:, None]))
    rank = lambda values: values.argsort(stable=True).argsort().double()  # noqa: E731
    best = effects.topk(COUNT).indices
    candidates, top = first.topk(min(CANDIDATES, len(first))).indices, first.topk(COUNT).indices
    return {
        "spearman": float(torch.corrcoef(torch.stack([rank(effects), rank(first)]))[0, 1]),
        "best_among_candidates": torch.isin(best, candidates).double().mean().item(),
        "best_among_largest_gradients": torch.isin(best, top).double().mean().item(),
    }


def summary(rows: list[dict]) -> dict:
    """Counts and shares of the regions of each group."""
    groups: dict[str, Callable[[dict], bool]] = {
        "corrected": lambda row: row["corrected"],
        "all": lambda row: True,
    } | {kind: lambda row, kind=kind: row["kind"] == kind for kind in ("near", "far", "presence")}
    checked = [row for row in rows if "spearman" in row]
    ways = ("spearman", "best_among_candidates", "best_among_largest_gradients")
    return {
        "regions": {name: rates([row for row in rows if chosen(row)]) for name, chosen in groups.items()},
        "gradient_against_removal": {"regions": len(checked)}
        | {way: share(row[way] for row in checked) for way in ways},
    }


def rates(rows: list[dict]) -> dict:
    """How often the answer changed in these rows, and whether the target is met against both pools."""
    strongest = fmean(row["strongest"] for row in rows)
    random = {pool: fmean(fmean(row[pool]) for row in rows) for pool in POOLS}
    hits = [row["clue"] for row in rows if "clue" in row]
    clues = {"strongest": share(c[0] for c in hits), "random": share(fmean(c[1:]) for c in hits)} if hits else None
    return {
        "count": len(rows),
        "edges": share(row["edges"] for row in rows),
        "reached_by": share(row["reached_by"] for row in rows),
        "removed": share(row["removed"] for row in rows),
        "of_classes": share(fmean(row["of_classes"] or [0]) for row in rows),
        "changed_by_the_strongest": share(row["single"] for row in rows),
        "changed_by_three_strongest": round(strongest, 4),
        "changed_by_three_random": {pool: round(value, 4) for pool, value in random.items()},
        "ratio": {pool: round(strongest / value, 1) if value else None for pool, value in random.items()},
        "met": strongest > 0 and all(strongest >= TARGET * value for value in random.values()),
        "from_clue": clues,
    }


def share(values: Iterable[float]) -> float:
    return round(fmean(values), 4)


if __name__ == "__main__":
    sys.exit(main())
