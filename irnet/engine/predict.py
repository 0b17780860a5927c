"""Prediction: one image, its boxes and a model, to a `Reasoning` that the report can draw."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from .. import files
from ..config import DataConfig
from ..data.boxes import Boxes, check_boxes
from ..data.dataset import RegionDataset
from ..data.images import read_header, read_image
from ..data.sample import Sample, collate
from ..data.transforms import prepare
from ..errors import InputError
from ..models.backbone import STRIDE
from ..models.irnet import IRNet
from ..progress import tracked
from ..report.draw import Reasoning, annotate_pages
from .evaluate import finite_scores

log = logging.getLogger("irnet")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}  # of pictures, by the end of their name
TAIL = 100  # bytes of an image's name in that of its picture: folders and names in CJK outgrow a file's name


def draw(folder: Path, model: IRNet, dataset: RegionDataset, config: DataConfig, count: int) -> None:
    """Annotated PNGs of each of the data set's first `count` images, named after the image."""
    for index in tracked(range(min(count, len(dataset))), "pictures", "image"):
        sample = dataset[index]
        reasoning = explain(model, sample, dataset.classes, config)
        save_pages(folder / picture_name(index, sample.name), reasoning)


def pictures(model: IRNet, dataset: RegionDataset, config: DataConfig, count: int) -> Iterator[tuple[str, Image.Image]]:
    """The first page of each of the data set's first `count` images, and a name for it."""
    for index in range(min(count, len(dataset))):
        sample = dataset[index]
        reasoning = explain(model, sample, dataset.classes, config)
        yield picture_name(index, sample.name).removesuffix(".png"), next(annotate_pages(reasoning))


def picture_name(index: int, name: str) -> str:
    """A file name for the picture of image `index`: its number and the end of its name, which may be any text."""
    stem = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in os.path.splitext(name)[0])
    tail = stem.encode(errors="replace")[-TAIL:].decode(errors="ignore").lstrip("._")
    return f"{index + 1:06d}_{tail}.png"


def picture_paths(images: list[Path], output: str | None) -> list[Path]:
    """Where the picture of each image goes: the file `output`, or into a folder. InputError where that is no picture.

    Without `output`, and in a folder, one image gives NAME.irnet.png and several are numbered.
    """
    if len(images) > 1 or output is None or Path(output).is_dir():
        folder = Path(output or ".")
        if len(images) > 1 and folder.suffix.lower() in FORMATS:
            raise InputError("--output", f"{output} is one picture for {len(images)} images", "name a folder")
        names = [picture_name(i, image.name) for i, image in enumerate(images)]
        return [folder / (name if len(images) > 1 else f"{name[7:-4]}.irnet.png") for name in names]
    picture = Path(output)
    if picture.suffix.lower() not in FORMATS:
        raise InputError("--output", f"{output} is no picture's name", "let it end in .png or .jpg")
    if picture.exists() and any(image.exists() and picture.samefile(image) for image in images):
        raise InputError("--output", f"{output} is the image itself", "choose another name")
    return [picture]


def explain_given(model: IRNet, image: Path, given: Boxes, classes: list[str], config: DataConfig) -> Reasoning:
    """The reasoning on an image file and the boxes that the user gives for it, whose classes nobody knows."""
    pixels = read_image(image, annotated=given.annotated, orientation=config.orientation, max_pixels=config.max_pixels)
    header = read_header(image, config.max_pixels)
    if header.orientation != 1:
        as_viewed = header.is_turned(config.orientation, given.annotated)
        sizes_of = [f"{width} x {height}" for width, height in (header.size(as_viewed), header.size(not as_viewed))]
        how = ("as viewers turn it", "stored") if as_viewed else ("as stored", "turned")
        log.warning(
            "%s: boxes are read in pixels of the image %s, %s; its EXIF orientation is %d; data.orientation=%s reads "
            "them in the image of %s",
            *(image, how[0], sizes_of[0], header.orientation, how[1], sizes_of[1]),
        )
    size = (pixels.shape[2], pixels.shape[1])
    if given.annotated not in (None, size):
        trouble = "is {} x {}, but {} says {} x {}".format(*size, Path(given.where).name, *given.annotated)
        cure = "give the image that the boxes were made for"
        raise InputError(image, trouble, cure if header.orientation == 1 else f"{cure}, or choose data.orientation")
    boxes = check_boxes(given.boxes, pixels.shape[1], pixels.shape[2], given.where)
    sample = Sample(pixels, boxes, torch.zeros(len(boxes), dtype=torch.int64), image.name)
    reasoning = explain(model, sample, classes, config)
    reasoning.labels, reasoning.given = None, given.names
    return reasoning


def save_pages(picture: Path, reasoning: Reasoning) -> list[Path]:
    """The pages of `annotate_pages` as PICTURE, PICTURE with .2 before its suffix, and so on; returns their paths."""
    paths = []
    for number, page in enumerate(annotate_pages(reasoning), 1):
        path = picture if number == 1 else picture.with_suffix(f".{number}{picture.suffix}")
        save = lambda temporary, page=page: page.save(temporary, format=FORMATS[picture.suffix.lower()], quality=92)  # noqa: E731
        files.write_with(path, save)
        paths.append(path)
    return paths


def as_plain(reasoning: Reasoning) -> list[dict]:
    """What the model made of each box, as values that JSON can hold."""
    answers = []
    for index, box in enumerate(reasoning.boxes.tolist()):
        name, score = reasoning.answer(index)
        best = reasoning.scores[:, index].argmax(axis=1).tolist()
        top = reasoning.final[index].argsort()[::-1][:5].tolist()
        answers.append(
            {
                "box": box,
                "given": reasoning.given[index] if reasoning.given else None,
                "class": name,
                "score": round(score, 6),
                "top": [
                    {"class": reasoning.classes[c], "score": round(float(reasoning.final[index, c]), 6)} for c in top
                ],
                "steps": {
                    str(key): {
                        "class": reasoning.classes[c],
                        "score": round(float(reasoning.scores[k, index, c]), 6),
                        "attention": round(float(reasoning.attention[k, index]), 6),
                    }
                    for k, (key, c) in enumerate(zip(reasoning.keys, best, strict=True))
                },
            }
        )
    return answers


@torch.no_grad()
def explain(model: IRNet, sample: Sample, classes: list[str], config: DataConfig) -> Reasoning:
    """Run the model on one sample (labels may be meaningless) and keep every prediction.

    config  how the image is resized, as in training; boxes stay in pixels of `sample.image`
    InputError where the model has diverged: its scores are not finite.
    """
    device = next(model.parameters()).device
    batch = collate([prepare(sample, config.short_side, config.long_side)])
    predictions = model.eval()(batch.to(device))
    final, *scores = (
        finite_scores(key, logits, [sample.name], "prediction") for key, logits in predictions.with_final().items()
    )
    memory = None
    if predictions.memories:
        memory = torch.stack([m[0].float().square().mean(0).sqrt() for m in predictions.memories[1:]]).cpu().numpy()
    ratio = sample.image.shape[2] / batch.images[0].shape[2]
    return Reasoning(
        image=sample.image.permute(1, 2, 0).numpy(),
        boxes=sample.boxes.numpy(),
        classes=classes,
        keys=list(predictions.logits),
        scores=torch.stack(scores).numpy(),
        attention=predictions.attention.float().cpu().numpy(),
        final=final.numpy(),
        memory=memory,
        stride=STRIDE * ratio,
        labels=sample.labels.numpy(),
        variant=model.config.variant,
    )
