"""Prediction: one image, its boxes and a model, to a `Reasoning` that the report can draw."""

from pathlib import Path

import torch

from .. import files
from ..backbone import STRIDE
from ..config import DataConfig
from ..data.sample import Sample, collate, prepare
from ..model import IRNet
from ..report.draw import Reasoning, annotate
from .setup import sizes


def draw(folder: Path, model: IRNet, dataset, config: DataConfig, count: int) -> None:
    """An annotated PNG of each of the data set's first `count` images, named after the image."""
    for index in range(min(count, len(dataset))):
        sample = dataset[index]
        picture = annotate(explain(model, sample, dataset.classes, **sizes(config)))
        name = "_".join(Path(sample.name).with_suffix(".png").parts)
        files.write_with(folder / name, lambda path, picture=picture: picture.save(path, format="PNG"))


@torch.no_grad()
def explain(model: IRNet, sample: Sample, classes: list[str], short: int | None, long: int | None) -> Reasoning:
    """Run the model on one sample (labels may be meaningless) and keep every step of its reasoning.

    short, long  the sides to which the image is resized, as in training; boxes stay in pixels of `sample.image`
    """
    device = next(model.parameters()).device
    batch = collate([prepare(sample, short, long)])
    predictions = model.eval()(batch.to(device))
    memory = None
    if predictions.memories:
        memory = torch.stack([m[0].float().square().mean(0).sqrt() for m in predictions.memories[1:]]).cpu().numpy()
    ratio = sample.image.shape[2] / batch.images[0].shape[2]
    return Reasoning(
        image=sample.image.permute(1, 2, 0).numpy(),
        boxes=sample.boxes.numpy(),
        classes=classes,
        steps=list(predictions.logits),
        scores=torch.stack([logits.float().softmax(1) for logits in predictions.logits.values()]).cpu().numpy(),
        attention=predictions.attention.float().cpu().numpy(),
        final=predictions.final.float().softmax(1).cpu().numpy(),
        memory=memory,
        stride=STRIDE * ratio,
        labels=sample.labels.numpy(),
        kinds=sample.kinds,
        variant=model.config.variant,
    )
