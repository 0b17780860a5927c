"""What is in a data set: how often each class occurs, the sizes of boxes, images to look at. Finds nothing wrong."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from .. import files
from ..data.dataset import RegionDataset
from ..errors import InputError
from ..progress import Progress

MOST = 15  # classes that are listed
BAR = 30  # letters of the longest bar


def describe(data: RegionDataset) -> Iterator[str]:
    """Lines about the regions of one split."""
    labels, boxes = data.image_labels(), data.image_boxes()
    if not sum(map(len, labels)):
        return
    counts = class_counts(data)
    sides = torch.cat(boxes).double()
    sides = ((sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])).sqrt().numpy()
    yield f"{data.split}: regions of each image: {_spread(np.array([len(own) for own in labels]), '.0f')}"
    yield f"{data.split}: sides of boxes, the root of their area in pixels: {_spread(sides, '.1f')}"
    order = np.argsort(-counts, kind="stable")
    listed = order[:MOST].tolist()
    width = max(len(data.classes[i]) for i in listed)
    yield f"{data.split}: regions of each class" + (f", the {MOST} most frequent:" if len(order) > MOST else ":")
    for i in listed:
        bar = "#" * round(BAR * counts[i] / counts.max())
        yield f"  {data.classes[i]:{width}} {counts[i]:>8,} {bar}".rstrip()
    if len(order) > MOST:
        rest = counts[order[MOST:]]
        yield f"  {len(rest)} others: {rest.max():,} to {rest.min():,} each, {(rest == 0).sum()} of them none"


def _spread(values: np.ndarray, form: str) -> str:
    names = ("least", "a tenth below", "half below", "nine tenths below", "most")
    points = np.quantile(values, (0, 0.1, 0.5, 0.9, 1))
    return ", ".join(f"{name} {format(point, form)}" for name, point in zip(names, points, strict=True))


def class_counts(data: RegionDataset) -> np.ndarray:
    """int64 [C]: how many regions each class has."""
    return np.bincount(torch.cat(data.image_labels()).numpy(), minlength=len(data.classes))


def write_counts(opened: Mapping[str, RegionDataset], path: str) -> None:
    """Write how many regions each class has in each split, as a CSV file."""
    classes = list(dict.fromkeys(name for data in opened.values() for name in data.classes))
    counts = {part: dict(zip(data.classes, class_counts(data).tolist(), strict=True)) for part, data in opened.items()}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", *counts])
    rows.writerows([name, *(own.get(name, 0) for own in counts.values())] for name in classes)
    files.write(path, text.getvalue())


def write_sheet(opened: Mapping[str, RegionDataset], path: str, images: int = 24) -> None:
    """Draw images of all splits with their regions into one picture: of each split some from its begin to its end.

    Images that cannot be read are left out, for they are findings of their own.
    """
    from ..report.sheet import contact_sheet

    if Path(path).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError("--sheet", f"{path} is no picture's name", "give a name that ends in .png or .jpg")
    samples = []
    with Progress("contact sheet"):
        for data in opened.values():
            count = min(len(data), images // len(opened))
            for i in np.unique(np.linspace(0, len(data) - 1, count).astype(int)).tolist():
                try:
                    sample = data[i]
                except InputError:
                    continue
                names = [data.classes[label] for label in sample.labels.tolist()]
                title = f"{data.split}: {sample.name}"
                samples.append((sample.image.permute(1, 2, 0).numpy(), sample.boxes.numpy(), names, title))
        if not samples:
            raise InputError("--sheet", "no image can be read", "see what is found above")
        picture = contact_sheet(samples)
        files.write_with(path, lambda temporary: picture.save(temporary, Path(path).suffix[1:].replace("jpg", "jpeg")))
