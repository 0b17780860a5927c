"""Reasonings, runs and galleries that tests of pictures and pages make up."""

import numpy as np

from irnet.models.predictions import CONV, FINAL, PredictionKey
from irnet.report.draw import (
    Reasoning,
)

CLASSES = ["mug", "cup", "bowl", "lamp", "keyboard"]

VARIANTS = ["conv", "local", "global", "full"]


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return (e / e.sum(axis=axis, keepdims=True)).astype(np.float32)


def keys_of(variant: str, iterations: int = 2) -> list[PredictionKey]:
    modules = {"conv": [], "full": ["local", "global"]}.get(variant, [variant])
    return [CONV, *(PredictionKey(m, i + 1) for m in modules for i in range(iterations))]


def made_up(regions=4, height=96, width=128, variant="full", seed=0, boxes=None, classes=CLASSES) -> Reasoning:
    rng = np.random.default_rng(seed)
    keys = keys_of(variant)
    if boxes is None:
        size = rng.uniform(0.1, 0.4, (regions, 2)) * (width, height)
        corner = rng.uniform(0, 1, (regions, 2)) * ((width, height) - size)
        boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    return Reasoning(
        image=rng.integers(60, 200, (height, width, 3), dtype=np.uint8),
        boxes=boxes,
        classes=list(classes),
        keys=keys,
        scores=softmax(2 * rng.normal(size=(len(keys), regions, len(classes)))),
        attention=softmax(rng.normal(size=(len(keys), regions)), axis=0),
        final=softmax(2 * rng.normal(size=(regions, len(classes)))),
        memory=rng.uniform(0, 1, (2, 6, 8)).astype(np.float32) if variant in ("local", "full") else None,
        stride=16,
        labels=rng.integers(0, len(classes), regions),
        kinds=[["near", "far", "presence", "plain"][r % 4] for r in range(regions)],
        variant=variant,
    )


def made_up_runs() -> list[dict]:
    runs = []
    for i, variant in enumerate(VARIANTS):
        metrics = {
            str(key): {
                "class_ap": 0.511 + 0.1 * i + 0.01 * k,
                "class_accuracy": 0.422 + 0.1 * i,
                "instance_accuracy": 0.463 + 0.1 * i,
            }
            for k, key in enumerate([*keys_of(variant), FINAL])
        }
        history = [{"step": s, "loss": 3 / s + i, "loss_conv": 2 / s, "lr": 0.1} for s in range(1, 30)]
        results = {"split": "held-out", "images": 300, "regions": 2000, "metrics": metrics}
        results["accuracy_by_kind"] = {
            "near": 0.334 + 0.1 * i,
            "far": 0.235,
            "presence": 0.136,
            "plain": 0.957 - 0.01 * i,
        }
        runs.append(
            {
                "variant": variant,
                "results": results,
                "history": history,
                "seconds": 61 * (i + 1),
                "parameters": 1234567 + i,
            }
        )
    return runs


FACTS = {
    "bounds": {
        "instance_accuracy": 0.608,
        "class_accuracy": 0.519,
        "class_ap": 0.597,
        "by_kind": {"near": 0.5, "plain": 1.0},
    },
    "data": "1500 training and 300 held-out scenes of 192 pixels",
    "machine": "two cores",
    "versions": {"torch": "2.13"},
    "seed": 7,
}


def made_up_gallery(count: int = 2, classes=CLASSES) -> list[dict]:
    shown = lambda seed: {v: made_up(variant=v, seed=seed, classes=classes) for v in VARIANTS}  # noqa: E731
    return [{"reasonings": shown(seed), "region": seed % 4} for seed in range(count)]


def made_up_puzzles() -> list[dict]:
    kinds = {"near": "The nearest decides.", "far": "The side decides.", "presence": "What is there decides."}
    gallery = made_up_gallery(3)
    return [{**entry, "kind": k, "rule": kinds[k], "clue": [3]} for entry, k in zip(gallery, kinds, strict=True)]
