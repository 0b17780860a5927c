"""A small tree in each format: six images of 48 x 40 pixels in each of two splits, in which classes are colours."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 200, 30)}
SPLITS = {"train": range(1, 7), "val": range(7, 13)}
WIDTH, HEIGHT = 48, 40


def regions(number: int) -> list[tuple[str, tuple[int, int, int, int]]]:
    """The name and box, x1 y1 x2 y2, of what is in an image."""
    names = list(COLOURS)
    boxes = [(1 + number % 5, 2, 20, 18), (24, 4, 44 - number % 3, 38), (2, 22, 18, 38)]
    return [(names[(number + i) % 3], box) for i, box in enumerate(boxes)]


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for name, (x1, y1, x2, y2) in regions(number):
        pixels[y1:y2, x1:x2] = COLOURS[name]
    Image.fromarray(pixels).save(path)


def ade20k_2016(root: Path) -> None:
    for split, folder in (("train", "training"), ("val", "validation")):
        for number in SPLITS[split]:
            path = root / f"images/{folder}/a/{number}.png"
            picture(path, number)
            blue = np.zeros((HEIGHT, WIDTH), np.uint8)
            for j, (_, (x1, y1, x2, y2)) in enumerate(regions(number), 1):
                blue[y1:y2, x1:x2] = int(255 * j / 3 + 0.5)
            Image.fromarray(np.stack([blue * 0, blue * 0, blue], -1)).save(path.with_name(f"{number}_seg.png"))
            lines = [f"{j:03d} # 0 # 0 # {n} # {n} # \n" for j, (n, _) in enumerate(regions(number), 1)]
            path.with_name(f"{number}_atr.txt").write_text("".join(lines))


def ade20k_2021(root: Path) -> None:
    for split, folder in (("train", "training"), ("val", "validation")):
        for number in SPLITS[split]:
            path = root / f"images/ADE/{folder}/a/{number}.png"
            picture(path, number)
            objects = [
                {
                    "id": i,
                    "name": name,
                    "raw_name": name,
                    "occluded": "no",
                    "crop": "0",
                    "parts": {"hasparts": [], "ispartof": [], "part_level": 0},
                    "polygon": {"x": [x1, x2, x2, x1], "y": [y1, y1, y2, y2], "click_date": []},
                }
                for i, (name, (x1, y1, x2, y2)) in enumerate(regions(number))
            ]
            content = {"annotation": {"imsize": [HEIGHT, WIDTH, 3], "object": objects}}
            path.with_suffix(".json").write_text(json.dumps(content))


def vg(root: Path) -> None:
    numbers = [number for split in SPLITS.values() for number in split]
    entries = [
        {
            "image_id": number,
            "objects": [
                {"object_id": 10 * number + i, "names": [name], "synsets": [f"{name}.n.01"]}
                | {"x": x1, "y": y1, "w": x2 - x1, "h": y2 - y1}
                for i, (name, (x1, y1, x2, y2)) in enumerate(regions(number))
            ],
        }
        for number in numbers
    ]
    urls = {number: f"https://cs.stanford.edu/people/rak248/VG_100K/{number}.jpg" for number in numbers}
    rows = [{"image_id": n, "url": url, "width": WIDTH, "height": HEIGHT} for n, url in urls.items()]
    for number in numbers:
        picture(root / f"VG_100K/{number}.jpg", number)
    (root / "objects.json").write_text(json.dumps(entries))
    (root / "image_data.json").write_text(json.dumps(rows))
    for split, own in SPLITS.items():
        (root / f"{split}.txt").write_text("".join(f"{number}\n" for number in own))


def voc(root: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, numbers in SPLITS.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{number:06d}\n" for number in numbers))
        for number in numbers:
            picture(root / f"JPEGImages/{number:06d}.jpg", number)
            objects = "".join(
                f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for name, (x1, y1, x2, y2) in regions(number)
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            path = root / f"Annotations/{number:06d}.xml"
            path.write_text(f"<annotation><filename>{number:06d}.jpg</filename>{size}{objects}</annotation>")


def _coco(root: Path, name: str, folder: str, row) -> None:
    ids = {colour: i for i, colour in enumerate(COLOURS, 1)}
    for split, numbers in SPLITS.items():
        images, annotations = [], []
        for number in numbers:
            picture(root / folder.format(split) / f"{number:012d}.jpg", number)
            images.append({"id": number, "width": WIDTH, "height": HEIGHT} | row(split, number))
            for name_, (x1, y1, x2, y2) in regions(number):
                own = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[name_]}
                annotations.append(own | {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [], "iscrowd": 0})
        categories = [{"id": i, "name": colour, "supercategory": "colour"} for colour, i in ids.items()]
        path = root / name.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def coco(root: Path) -> None:
    name = lambda split, number: {"file_name": f"{number:012d}.jpg"}  # noqa: E731
    _coco(root, "annotations/instances_{}2017.json", "{}2017", name)


def lvis(root: Path) -> None:
    url = "http://images.cocodataset.org/{}2017/{:012d}.jpg"
    _coco(root, "lvis_v1_{}.json", "{}2017", lambda split, number: {"coco_url": url.format(split, number)})


FORMATS = {
    "coco": ("coco", coco),
    "lvis": ("coco", lvis),
    "ade20k 2016": ("ade20k", ade20k_2016),
    "ade20k 2021": ("ade20k", ade20k_2021),
    "vg": ("vg", vg),
    "voc": ("voc", voc),
}


if __name__ == "__main__":  # python -m tests.data.formats FOLDER: all of them, for a hundred steps by hand
    for form, (_, make) in FORMATS.items():
        make(Path(sys.argv[1]) / form.replace(" ", "_"))
