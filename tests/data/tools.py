"""What the tests of data share: annotation files in COCO's format with their images, samples, what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from irnet.data.coco import CocoDataset
from irnet.data.sample import Sample
from irnet.errors import InputError


def image_row(number, width=60, height=40, name=None):
    return {"id": number, "file_name": name or f"{number:06d}.png", "width": width, "height": height}


def box_row(number, image, box, category=1, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **more}


def tables(annotations=(), images=None, categories=None):
    categories = [(7, "dog", "animal"), (1, "cup", "kitchen")] if categories is None else categories
    return {
        "images": [image_row(1)] if images is None else images,
        "annotations": list(annotations),
        "categories": [{"id": n, "name": name, "supercategory": group} for n, name, group in categories],
    }


def make(root, data, split="train", folder=None):
    """Writes an annotation file and its images under `root`, and returns the annotation file's path."""
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    folder = root / (folder or f"images/{split}")
    folder.mkdir(parents=True, exist_ok=True)
    for row in data["images"] if isinstance(data, dict) else []:
        if isinstance(row.get("file_name"), str) and row.get("width", 0) > 0 and row.get("height", 0) > 0:
            (folder / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full(
                (row["height"], row["width"], 3),
                int(row["id"]) % 256 if str(row["id"]).isdecimal() else 0,
                dtype=np.uint8,
            )
            Image.fromarray(pixels).save(folder / row["file_name"])
    return path


def refused(root, split="train"):
    with pytest.raises(InputError) as caught:
        CocoDataset(root, split)[0]
    assert "\n" not in str(caught.value)
    return caught.value


def make_sample(height=40, width=60, boxes=((3.0, 4.0, 20.0, 30.0), (10.0, 0.0, 60.0, 40.0)), seed=0, name="a.png"):
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(image, boxes, torch.arange(len(boxes)), name)
