"""Where labelling tools put annotation files and images, so that their exports are read as they come.

COCO, CVAT      ROOT/annotations/instances_SPLIT.json, images in ROOT/images/SPLIT, ROOT/SPLIT or ROOT/images
Roboflow        ROOT/SPLIT/_annotations.coco.json, images beside it
Label Studio    ROOT/result.json, images in ROOT/images
labelme2coco    ROOT/dataset.json, or ROOT/train.json and ROOT/val.json; names relative to ROOT
LVIS            ROOT/lvis_v1_train.json (or in ROOT/annotations), images in ROOT/train2017 and ROOT/val2017
FiftyOne        ROOT/labels.json or ROOT/SPLIT/labels.json, images in data/ beside it
"""

import hashlib
import mmap
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import InputError

# Names of splits, those that are preferred first; also behind a prefix, as in "lvis_v1_train".
ROLES = {
    "train": ("train2017", "train", "train2014", "training"),
    "val": ("val2017", "val", "valid", "validation", "val2014", "dev", "test"),
}
_LAYOUT = "lay the data out as ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/*.jpg (or ROOT/images/SPLIT/*.jpg)"
# Files that stand beside annotations of instances and hold no boxes to learn from.
_OTHER = re.compile(r"captions_|person_keypoints_|stuff_|panoptic_|image_info_|class_graph|package|.*image_info")


@dataclass(frozen=True)
class Share:
    """The part of a file's images that one split takes: `fraction` is held out by `seed`, the rest is trained on."""

    held_out: bool
    fraction: float
    seed: int

    def select(self, names: list[str]) -> np.ndarray:
        """bool [N]: which images. It follows from each image's name alone, so added images move few of the others."""
        ranks = np.argsort([hashlib.blake2b(f"{self.seed} {name}".encode()).digest() for name in names])
        held_out = np.zeros(len(names), dtype=bool)
        held_out[ranks[: min(len(names) - 1, max(1, round(self.fraction * len(names))))]] = True
        return held_out if self.held_out else ~held_out

    def __str__(self) -> str:
        part = f"the {self.fraction:.3g} held out" if self.held_out else f"all but the {self.fraction:.3g} held out"
        return f"{part} by seed {self.seed}"


def annotation_files(root: Path) -> dict[str, Path]:
    """Every annotation file under `root` by the name of its split. InputError where `root` is no folder."""
    if not root.is_dir():
        raise InputError(root, "no such folder", "give --data-root the folder that holds annotations/")
    files = {}
    for path in _files(root / "annotations", "instances_*.json"):
        files[path.stem.removeprefix("instances_")] = path
    for path in _files(root, "*/_annotations.coco.json"):
        files.setdefault(path.parent.name, path)
    if files:
        return files
    for path in [*_files(root / "annotations", "*.json"), *_files(root, "*.json")]:
        if not _OTHER.match(path.name) and _holds_tables(path):
            files.setdefault(path.stem, path)
    if files:
        return files
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        paths = [path for path in _files(folder, "*.json") if not _OTHER.match(path.name) and _holds_tables(path)]
        if len(paths) == 1:
            files[folder.name] = paths[0]
    return files


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _holds_tables(path: Path) -> bool:
    """Whether a JSON file mentions COCO's tables: reading a large file in full takes half a minute."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(word) >= 0 for word in (b'"images"', b'"categories"', b'"annotations"'))
    except (OSError, ValueError):  # unreadable, or empty, which cannot be mapped
        return False


def annotation_file(root: Path, split: str) -> Path:
    """The annotation file of `split`: a split's name, or a path relative to `root`. InputError where there is none."""
    files = annotation_files(root)
    if split in files:
        return files[split]
    if split.endswith(".json") and (root / split).is_file():
        return root / split
    path = root / "annotations" / f"instances_{split}.json"
    if files:
        cure = f"choose one of the splits there by data.train_split and data.val_split: {', '.join(sorted(files))}"
        raise InputError(path, "no such annotation file", cure)
    raise InputError(path, "no such annotation file, nor any other of a known layout", _LAYOUT)


def choose_split(root: Path, part: str, train: str, val: str) -> tuple[str, bool]:
    """The split that is the `part` "train" or "val", and whether it is one file with the other part.

    train, val  the splits that the user names; "" leaves the choice to what is there
    InputError where nothing tells which file is for training.
    """
    if part == "val" and val:
        return val, False
    files = annotation_files(root)
    train, val = _name(files, root, train), _name(files, root, val)
    held_out = val or _by_role(files, "val", train)
    if part == "val" and held_out:
        return held_out, False
    chosen = train or _by_role(files, "train", val)
    if not chosen and len(files) == 1 and not held_out:
        (chosen,) = files
    if not chosen and files:
        cure = f"name the one to train on by data.train_split: {', '.join(sorted(files))}"
        raise InputError(root, "no such annotation file as one for training", cure)
    return chosen or ROLES["train"][0], not held_out


def _name(files: dict[str, Path], root: Path, split: str) -> str:
    """The name of a split that the user may have named by the path of its file."""
    if split in files or not split.endswith(".json"):
        return split
    file = (root / split).resolve()
    return next((name for name, path in files.items() if path.resolve() == file), split)


def _by_role(files: dict[str, Path], role: str, other_split: str) -> str:
    """The split of that role that is preferred, or ""."""
    for name in ROLES[role]:
        for split in sorted(files, key=lambda split: (len(split), split)):
            if split != other_split and re.split(r"[_\-. ]", split.lower())[-1] == name:
                return split
    return ""


def image_folder(
    root: Path, split: str, names: list[str], annotations: Path, refuse: bool = True
) -> tuple[Path, list[str], list[str]]:
    """The first folder that holds every image, the names under which it does, and those it lacks: none, if `refuse`.

    A name is looked for as it stands, then with its backslashes as slashes, with its accents composed or not (as other
    systems write them), and by its last part alone. InputError, about the folder that holds most, where none holds all.
    """
    folders = [folder for folder in _folders(root, split, names[0], annotations) if folder.is_dir()]
    best = None
    for spelling in _spellings(names):
        for folder in folders:
            missing = missing_images(folder, spelling)
            if best is None or len(missing) < len(best[2]):
                best = folder, spelling, missing
            if not missing:
                return best
    folder, _, missing = best
    if refuse:
        trouble = f"no such image file ({len(missing)} of the {len(names)} in {annotations.name} are missing)"
        cure = "unpack the images there, or remove them from the annotation file"
        raise InputError(folder / missing[0], trouble, cure)
    return best


def _folders(root: Path, split: str, name: str, annotations: Path) -> list[Path]:
    match = re.match(r"COCO_(\w+)_\d+", PurePosixPath(name).name)  # minival2014's images lie in val2014
    own = split if not split.endswith(".json") else Path(split).stem.removeprefix("instances_")
    folders = [root / "images" / own, root / own, root / "images", root / "data"]
    folders += [root / "images" / match[1], root / match[1]] if match else []
    here = annotations.parent
    return list(dict.fromkeys([*folders, root, here / "images", here / "data", here]))


def _spellings(names: list[str]) -> list[list[str]]:
    slashes = [name.replace("\\", "/") for name in names]
    forms = [[unicodedata.normalize(form, name) for name in slashes] for form in ("NFC", "NFD")]
    last = [PurePosixPath(name).name for name in slashes]
    spellings = [names, slashes, *forms]
    if len(set(last)) == len(set(names)):  # or one image would stand for several
        spellings.append(last)
    return [spelling for i, spelling in enumerate(spellings) if spelling not in spellings[:i]]


def missing_images(folder: Path, names: list[str]) -> list[str]:
    """Those of the names that are no files below `folder`."""
    # One listing per folder: asking the file system for 118,000 files one by one takes minutes on a network disk.
    present: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in present:
            try:
                with os.scandir(folder / parent) as entries:
                    present[parent] = {entry.name for entry in entries}
            except OSError:
                present[parent] = set()
        if base not in present[parent]:
            missing.append(name)
    return missing
