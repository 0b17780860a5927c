"""Images, answers and folders of a run's page that tests make up."""

from collections.abc import Iterator

import numpy as np

from irnet.models.predictions import CONV, FINAL
from irnet.report.draw import Reasoning
from irnet.report.gains import RunAnswers
from irnet.report.run_page import Cause, Shown
from tests.report.made_up import CLASSES, keys_of, softmax


def made_up_images(
    count: int, classes: list[str] = CLASSES, variant: str = "full", regions: int = 4, seed: int = 0
) -> Iterator[Shown]:
    """Images in which the ConvNet is often wrong and the final answer seldom; the last has no region."""
    rng = np.random.default_rng(seed)
    keys = keys_of(variant)
    for i in range(count):
        n = 0 if i == count - 1 and count > 1 else regions
        labels = rng.integers(0, len(classes), n)
        logits = rng.normal(size=(len(keys) + 1, n, len(classes))).astype(np.float32)
        for k, chance in enumerate([0.5, *[0.8] * (len(keys) - 1), 0.9]):
            told = np.where(rng.random(n) < chance, labels, (labels + 1) % len(classes))
            logits[k, np.arange(n), told] += 6
        scores = softmax(logits)
        if variant == "conv":
            scores[1] = scores[0]
        size, corner = rng.uniform(8, 20, (n, 2)), rng.uniform(0, 28, (n, 2))
        reasoning = Reasoning(
            image=rng.integers(60, 200, (48, 64, 3), dtype=np.uint8),
            boxes=np.concatenate([corner, corner + size], axis=1),
            classes=classes,
            keys=keys,
            scores=scores[:-1],
            attention=softmax(rng.normal(size=(len(keys), n)), axis=0),
            final=scores[-1],
            memory=rng.uniform(0, 1, (2, 3, 4)) if variant in ("local", "full") else None,
            labels=labels,
            variant=variant,
        )
        causes = {}
        if variant in ("global", "full") and n > 1:
            changed = np.flatnonzero(scores[0].argmax(1) != scores[-1].argmax(1)).tolist()
            region = lambda r, n=n: Cause("region", "left", (r + 1) % n, r, 1.5)  # noqa: E731
            causes = {r: [region(r), Cause("class", "part_of", 0, 1, 0.25)] for r in changed}
        yield Shown(f"{i:05d}.jpg", reasoning, {"kind": ["near"] * n}, causes)


def answers_of(images: list[Shown]) -> RunAnswers:
    """The answers that these images are parts of, with metrics for every prediction."""
    reasonings = [shown.reasoning for shown in images]
    keys = reasonings[0].keys
    best = {key: np.concatenate([r.scores[k].argmax(1) for r in reasonings]) for k, key in enumerate(keys)}
    best[FINAL] = np.concatenate([r.final.argmax(1) for r in reasonings])
    labels = np.concatenate([r.labels for r in reasonings])
    image = np.repeat(np.arange(len(images)), [len(r.boxes) for r in reasonings])
    accuracy = {key: float((answers == labels).mean()) for key, answers in best.items()}
    metrics = {
        str(key): {"instance_accuracy": a, "class_accuracy": a, "class_ap": a / 2} for key, a in accuracy.items()
    }
    return RunAnswers(reasonings[0].classes, labels, image, len(images), best, metrics)


def of_answers(labels: list[int], conv: list[int], final: list[int], image: list[int], classes: int = 3) -> RunAnswers:
    """Two predictions given outright; of images as many as the last one says."""
    images = 1 + max(image)
    arrays = [np.array(values) for values in (labels, conv, final, image)]
    metrics = {name: {"instance_accuracy": 0.5, "class_accuracy": 0.5, "class_ap": 0.5} for name in ("conv", "final")}
    names = [f"class {c}" for c in range(classes)]
    return RunAnswers(names, arrays[0], arrays[3], images, {CONV: arrays[1], FINAL: arrays[2]}, metrics)
