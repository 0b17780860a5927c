"""`irnet predict`: a trained model's answers for boxes in images of one's own."""

import argparse
import json
import os
from pathlib import Path

from .. import options as shared

HELP = "name the object in every box of images; writes annotated pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files; settings such as data.orientation=turned, too"
    )
    parser.add_argument(
        "--boxes",
        required=True,
        action="append",
        metavar="FILE",
        help="JSON list, or lines, of x1 y1 x2 y2 in pixels, one FILE for each image; or one FILE in COCO's format",
    )
    parser.add_argument(
        "--output", metavar="PATH", help="a .png or .jpg file, of several images a folder; here if not given"
    )
    parser.add_argument("--json", action="store_true", help="print the answers as a JSON object on each image's line")
    shared.add_checkpoint(parser)
    shared.add_device(parser)
    parser.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> None:
    """Draw the pictures and print the answers."""
    from ..data.boxes import boxes_of
    from ..engine import checkpoint, predict
    from ..engine.build import choose_device, restore_model
    from ..progress import tracked
    from ..report.draw import trail

    pairs = [word for word in options.images if shared.SETTING.match(word) and not os.path.exists(word)]
    options.overrides += pairs
    images = [Path(word) for word in options.images if word not in pairs]
    saved = checkpoint.find(options.checkpoint, checkpoint.BEST if options.best else checkpoint.LAST)
    config = shared.read_settings_of_run(options, saved.config)
    pictures = predict.picture_paths(images, options.output)
    boxes = boxes_of(images, options.boxes)
    model = restore_model(saved.config.model, len(saved.classes), saved.model, saved.source)
    model = model.to(choose_device(options.device))
    jobs = list(zip(images, pictures, boxes, strict=True))
    for image, picture, given in tracked(jobs, "prediction", "image", bar=False):  # its own lines show how far it is
        reasoning = predict.explain_given(model, image, given, saved.classes, config.data)
        pages = [str(page) for page in predict.save_pages(picture, reasoning)]
        if options.json:
            print(json.dumps({"image": str(image), "pictures": pages, "regions": predict.as_plain(reasoning)}))
            continue
        if len(images) > 1:
            print(f"{image}:")
        for index in range(len(reasoning.boxes)):
            name, score = reasoning.answer(index)
            given_name = f"; given as {given.names[index]}" if given.names and given.names[index] else ""
            print(
                f"{index + 1}: {name} {score:.2f}  ({trail(reasoning, index) or 'the same at every step'}{given_name})"
            )
        if not len(reasoning.boxes):
            print(f"{given.where} holds no boxes: no regions to name")
        print("\n".join(pages))
