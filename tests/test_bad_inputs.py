"""Bad inputs of every kind, generated: each is one line with file, trouble and cure, exit code 2, and nothing is lost.

Tables of mutations, each applied to a sound input: annotation files, image files, settings, boxes, class graphs,
checkpoints, places to write to.
"""

import copy
import dataclasses
import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from irnet import config as settings
from irnet.cli import main
from irnet.engine import checkpoint


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------------------------- annotation files


def sound_table() -> dict:
    names = ("a.jpg", "b.png")
    return {
        "images": [{"id": 1 + i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)],
        "annotations": [
            {"id": 5 + i, "image_id": 1 + i % 2, "category_id": 1 + i // 2, "bbox": [1, 2, 30, 20], "iscrowd": 0}
            for i in range(4)
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}],
    }


def data_set(root: Path, table: object) -> Path:
    """A data set whose training annotations are `table`; returns that file's path."""
    for split, content in (("train2017", table), ("val2017", sound_table())):
        path = root / f"annotations/instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        folder = root / split
        folder.mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        for name in ("a.jpg", "b.png"):
            Image.fromarray(pixels).save(folder / name)
    return root / "annotations/instances_train2017.json"


NO_IDS = ["one", "01", " 1", "1.0", "", True, 1.5, None, [], {}, math.nan, math.inf, 2**70, 1e30]
NO_NAMES = [7, True, None, "", "  ", "\ud800", [], "a\0b"]
NO_BOXES = [
    [[1], 2, 3, 4],
    "1 2 3 4",
    True,
    5,
    {},
    None,
    [],
    [1, 2, 3],
    [1, 2, 3, 4, 5],
    [1, 2, "3", 4],
    [1, 2, True, 4],
    [[1], 2, 3, 4],
]
VALUES = [
    *(("images", key, value) for key in ("id", "width", "height") for value in NO_IDS),
    *(("annotations", key, value) for key in ("id", "image_id", "category_id", "iscrowd") for value in NO_IDS),
    *(("categories", "id", value) for value in NO_IDS),
    *((table, key, "1") for table, key in (("images", "width"), ("images", "height"), ("annotations", "iscrowd"))),
    *(("images", "file_name", value) for value in NO_NAMES),
    *(("categories", "name", value) for value in NO_NAMES),
    *(("annotations", "bbox", value) for value in NO_BOXES),
    *(("images", key, value) for key in ("width", "height") for value in (0, -5)),
    ("images", "id", 2),  # as the other one
    ("categories", "id", 2),
    ("categories", "name", "dog"),
    ("annotations", "id", 6),
    ("annotations", "image_id", 99),
    ("annotations", "category_id", 99),
]
KEYS = {"images": ("id", "width", "height", "file_name"), "annotations": ("id", "image_id", "category_id", "bbox")}
MISSING = [(table, key) for table, keys in (KEYS | {"categories": ("id", "name")}).items() for key in keys]
NO_TABLES = [None, {}, "x", 7, [1], [None]]
TABLES = [(key, value) for key in ("images", "annotations", "categories") for value in NO_TABLES]
TABLES += [("images", []), ("categories", []), ("annotations", [])]
WHOLE = {
    "empty": b"",
    "blank": b" \n",
    "cut short": json.dumps(sound_table()).encode()[:200],
    "null": b"null",
    "a number": b"7",
    "a list": b"[]",
    "a text": b'"x"',
    "binary": bytes(range(256)),
    "Latin-1": '{"images": "café"}'.encode("latin-1"),
    "deep": b"[" * 100_000,
    "two values": b"{} {}",
}


@pytest.fixture
def check(refused, tmp_path):
    """Runs `data check` on tmp_path/data, which must be refused and stay as it is."""

    def run(*words, arguments: tuple = ()) -> str:
        root = tmp_path / "data"
        before = contents(root)
        message = refused(["data", "check", "--data", "coco", "--data-root", root, "-j", "0", *arguments], *words)
        assert contents(root) == before
        return message

    return run


@pytest.mark.parametrize(("table", "key", "value"), VALUES)
def test_values_in_annotation_files(table, key, value, check, tmp_path):
    content = sound_table()
    content[table][0][key] = value
    path = data_set(tmp_path / "data", content)
    message = check(path)
    assert table.rstrip("s") in message or "categor" in message or "size" in message


@pytest.mark.parametrize(("table", "key"), MISSING)
def test_keys_missing_in_annotation_files(table, key, check, tmp_path):
    content = sound_table()
    del content[table][1][key]
    check(data_set(tmp_path / "data", content), f"has no {key}")


@pytest.mark.parametrize(("key", "value"), TABLES)
def test_tables_of_annotation_files(key, value, check, tmp_path):
    path = data_set(tmp_path / "data", sound_table() | {key: value})
    check(path, "hold no region" if value == [] and key == "annotations" else key)


@pytest.mark.parametrize("case", WHOLE)
def test_annotation_files_that_are_none(case, check, tmp_path):
    check(data_set(tmp_path / "data", WHOLE[case]))


def test_whole_floats_stay_welcome(tmp_path):
    content = sound_table()
    for table, keys in {**KEYS, "categories": ("id",)}.items():
        for row in content[table]:
            row |= {key: float(row[key]) for key in keys if isinstance(row[key], int)}
    data_set(tmp_path / "data", content)
    assert main(["data", "check", "--data", "coco", "--data-root", str(tmp_path / "data"), "-j", "0"]) == 0


# ------------------------------------------------------------------------------------------------------ image files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def tiff(values: np.ndarray):
    return lambda path: Image.fromarray(np.resize(values, (48, 64))).save(path, format="TIFF")


IMAGES = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
    "cut short": cut,
    "a page of an error": lambda path: path.write_text("<html>404</html>"),
    "another size": lambda path: Image.new("RGB", (48, 64)).save(path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "float": tiff(np.linspace(0, 1, 64).astype(np.float32)),
    "int32": tiff(np.arange(256, dtype=np.int32)),
    "12 bits": tiff(np.arange(4096, dtype=np.uint16)),
    "a claim": lambda path: path.write_bytes(path.read_bytes()[:16] + b"\0\0\xff\xff" * 2 + path.read_bytes()[24:]),
}


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
@pytest.mark.parametrize("case", IMAGES)
def test_image_files(case, name, check, tmp_path):
    data_set(tmp_path / "data", sound_table())
    path = tmp_path / "data/train2017" / name
    IMAGES[case](path)
    check(path, arguments=("--images",))


@pytest.mark.parametrize("case", ["float", "int32", "12 bits"])
def test_images_whose_white_cannot_be_known_are_found_without_decoding_all(case, check, tmp_path):
    data_set(tmp_path / "data", sound_table())
    IMAGES[case](path := tmp_path / "data/train2017/b.png")
    check(path, "white cannot be known")


def test_all_findings_are_listed(capsys, tmp_path):
    data_set(tmp_path / "data", sound_table())
    folder = tmp_path / "data/train2017"
    cut(folder / "a.jpg")
    (folder / "b.png").unlink()
    Image.new("RGB", (48, 64)).save(tmp_path / "data/val2017/b.png")
    words = ["data", "check", "--data", "coco", "--data-root", str(tmp_path / "data"), "-j", "0"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "the first of 3 findings, all listed above" in captured.err
    for file in (folder / "a.jpg", folder / "b.png", tmp_path / "data/val2017/b.png"):
        assert sum(line.startswith(f"  {file}: ") for line in captured.out.splitlines()) == 1


def test_images_over_the_limit(check, tmp_path):
    data_set(tmp_path / "data", sound_table())
    check("more than the 3000 pixels that are allowed", "data.max_pixels", arguments=("data.max_pixels=3000",))


# --------------------------------------------------------------------------------------------------------- settings

DEFAULTS = settings.Config()
FIELDS = [
    (f"{section.name}.{field.name}", getattr(getattr(DEFAULTS, section.name), field.name))
    for section in dataclasses.fields(DEFAULTS)
    for field in dataclasses.fields(getattr(DEFAULTS, section.name))
]
PAIRS = [
    *((key, value) for key, old in FIELDS if type(old) is int for value in ("many", "1.5", "", "nan", "[1]", "true")),
    *((key, value) for key, old in FIELDS if type(old) is float for value in ("many", "nan", "inf", "[1]", "true")),
    *((key, value) for key, old in FIELDS if type(old) is bool for value in ("2", "maybe", "[]")),
    *((key, value) for key, old in FIELDS if type(old) is list for value in ("1", "[a]", "[1.5]", "[-1]", "{}")),
    *((key, "-1") for key, old in FIELDS if type(old) in (int, float) and key != "train.seed"),
    *((key, "fast") for key in ("model.variant", "model.backbone", "model.assignment", "model.region_start")),
    *((key, "fast") for key in ("data.name", "data.orientation", "train.optimizer", "train.amp")),
    ("model.colour", "red"),
    ("modl.variant", "full"),
    ("data", "coco"),
    ("train.", "1"),
]
YAMLS = {
    "a list": "- 1",
    "a number": "7",
    "a text": "train",
    "no sections": "lr: 1",
    "a section that is a list": "train: [1]",
    "an unknown section": "optimiser: {lr: 1}",
    "an unknown key": "train: {rate: 1}",
    "a wrong type": "train: {steps: few}",
    "open": "train: {lr: 1",
    "tabs": "train:\n\tlr: 1",
    "an object": "train: !!python/object/apply:os.getcwd []",
    "binary": "\x00\x01",
    "out of range": "data: {val_share: 1.5}",
}


@pytest.mark.parametrize(("key", "value"), PAIRS)
def test_settings(key, value, refused, tmp_path):
    refused(["train", "--output-dir", tmp_path / "run", "--data-root", tmp_path / "none", f"{key}={value}"], key)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", YAMLS)
def test_settings_files(case, refused, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(YAMLS[case])
    refused(["train", "--output-dir", tmp_path / "run", "--data-root", tmp_path / "none", "--config", path])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        *(["bench", "kernels", "--device", "cpu", "--seconds", value] for value in ("nan", "inf", "-1")),
        *(["bench", "kernels", "--device", "cpu", "--threads", value] for value in ("0", "-2", "99999999999")),
        ["bench", "kernels", "--device", "cpu", "--seed", "-1"],
        ["bench", "kernels", "--device", "cpu", "--sweep", "regions=-1"],
        ["bench", "kernels", "--device", "cpu", "--sweep", "regions"],
        ["bench", "compare", "none.jsonl", "none.jsonl", "--time-limit", "nan"],
        ["eval", "--checkpoint", "none", "--vis", "-3"],
        ["graph", "build", "--data-root", "none", "--show", "-1"],
        ["data", "scenes", "--output-dir", "none", "--train-scenes", "-2"],
        ["data", "scenes", "--output-dir", "none", "--size", "5"],
        ["data", "scenes", "--output-dir", "none", "--size", "0"],
        ["data", "scenes", "--output-dir", "none", "--apart", "--size", "192"],
        ["data", "scenes", "--output-dir", "none", "--seed", "-1"],
        ["data", "check", "--data-root", "none", "-j", "-1"],
        ["train", "--output-dir", "none", "--device", "gpu"],
    ],
)
def test_options(words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(words, words[-2] if words[-2].startswith("--") and words[0] in ("bench", "eval", "graph") else "")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- boxes and images

BOXES = {
    "cut.json": "[[1, 2, 3, 4]",
    "number.json": "7",
    "dict.json": '{"boxes": []}',
    "three.json": "[[1, 2, 3]]",
    "text.json": '[[1, 2, 3, "4"]]',
    "bool.json": "[[1, 2, 3, true]]",
    "nan.json": "[[1, 2, NaN, 4]]",
    "huge.json": f"[[1, 2, {10**400}, 4]]",
    "name.json": '[{"box": [1, 2, 30, 40], "name": 7}]',
    "some.json": '[{"box": [1, 2, 30, 40], "name": "a"}, [1, 2, 30, 40]]',
    "swapped.json": "[[30, 40, 1, 2]]",
    "outside.json": "[[1, 2, 300, 400]]",
    "three.txt": "1 2 3",
    "words.txt": "one two three four",
    "semicolons.csv": "1;2;3;4",
    "binary.txt": "",
    "no_image_id.json": '[{"bbox": [1, 2, 3, 4]}]',
    "bbox.json": '[{"image_id": 1, "bbox": [1, 2, 3]}]',
    "category.json": '[{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": [1]}]',
    "fraction.json": '[{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 1.5}]',
    "tables.json": '{"images": [], "annotations": [], "categories": []}',
    "other_image.json": json.dumps(sound_table()),
    "no_area.json": '[{"image_id": 1, "bbox": [1, 2, 0, 4]}]',
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_files(name, trained, scenes_root, refused, tmp_path):
    path = tmp_path / name
    path.write_text(BOXES[name], errors="surrogateescape") if name != "binary.txt" else path.write_bytes(
        b"\xff\xfe\x81"
    )
    image = next(scenes_root.rglob("*val/000001.png"))
    refused(["predict", image, "--boxes", path, "--checkpoint", trained, "--output", tmp_path / "x.png"], path)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("output", ["x.gif", "x", "x.jpg.txt", "IMAGE", "IMAGE/x.png"])
def test_names_of_pictures(output, trained, scenes_root, refused, tmp_path):
    image = shutil.copy(next(scenes_root.rglob("*val/000001.png")), tmp_path / "image.png")
    (tmp_path / "boxes.txt").write_text("1 2 30 40")
    before = contents(tmp_path)
    output = output.replace("IMAGE", str(image)) if "IMAGE" in output else tmp_path / output
    refused(["predict", image, "--boxes", tmp_path / "boxes.txt", "--checkpoint", trained, "--output", output], output)
    assert contents(tmp_path) == before


# ------------------------------------------------------------------------------------------------------ class graphs

GRAPHS = {
    "cut": '{"classes": [',
    "list": [],
    "no relations": {"classes": ["cup", "dog"]},
    "other classes": {"classes": ["cup", "cat"], "relations": []},
    "no classes": {"classes": [], "relations": []},
    "edge out of range": {"classes": ["cup", "dog"], "relations": [{"name": "on", "edges": [[0, 2, 1]]}]},
    "fraction": {"classes": ["cup", "dog"], "relations": [{"name": "on", "edges": [[0, 1.5, 1]]}]},
    "boolean": {"classes": ["cup", "dog"], "relations": [{"name": "on", "edges": [[False, True, 1]]}]},
    "NaN": {"classes": ["cup", "dog"], "relations": [{"name": "on", "edges": [[0, 1, math.nan]]}]},
    "negative": {"classes": ["cup", "dog"], "relations": [{"name": "on", "edges": [[0, 1, -1]]}]},
    "text": {"classes": ["cup", "dog"], "relations": [{"name": "on", "edges": [[0, 1, "1"]]}]},
    "no edges": {"classes": ["cup", "dog"], "relations": [{"name": "on", "edges": []}]},
    "numbers for classes": {"classes": [1, 2], "relations": []},
    "lists for classes": {"classes": [["cup"], ["dog"]], "relations": []},
    "unnamed": {"classes": ["cup", "dog"], "relations": [{"edges": [[0, 1, 1]]}]},
}


@pytest.mark.parametrize("case", GRAPHS)
def test_class_graphs(case, check, tmp_path):
    data_set(tmp_path / "data", sound_table())
    path = tmp_path / "graph.json"
    path.write_text(GRAPHS[case] if isinstance(GRAPHS[case], str) else json.dumps(GRAPHS[case]))
    check(path, arguments=(f"data.class_graph={path}",))


# ------------------------------------------------------------------------------------------------------- checkpoints


def edited(**fields):
    """Write a checkpoint anew, with its checksum, after each of the named fields went through a function."""

    def change(path: Path) -> None:
        saved = checkpoint.load(path)
        for name, edit in fields.items():
            setattr(saved, name, edit(copy.deepcopy(getattr(saved, name))))
        checkpoint.save(path, saved)

    return change


def with_tensor(name: str, tensor: torch.Tensor | None):
    """A state dict in which the first tensor whose name ends so is another one, or missing."""

    def edit(state: dict) -> dict:
        found = next(key for key in sorted(state) if key.endswith(name))
        return {key: value for key, value in state.items() if key != found} | (
            {} if tensor is None else {found: tensor}
        )

    return edit


CHECKPOINTS = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint"),
    "cut short": cut,
    "header cut short": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "a huge header": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "another file": lambda path: save_file({"a": torch.ones(1)}, path),
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes()[:-5000] + b"\x55" + path.read_bytes()[-4999:]),
    "another format": lambda path: save_file(
        {"a": torch.ones(1)}, path, {"irnet": '{"format": "irnet checkpoint 99"}'}
    ),
    "a text for the step": edited(step=str),
    "a negative step": edited(step=lambda step: -1),
    "a fraction of a step": edited(step=lambda step: 1.5),
    "a number for the classes": edited(classes=len),
    "numbers for the classes": edited(classes=lambda names: list(range(len(names)))),
    "no classes": edited(classes=lambda names: []),
    "fewer classes": edited(classes=lambda names: names[:-1]),
    "a list of extras": edited(extra=list),
    "no tensors": edited(model=lambda state: {}),
    "a tensor missing": edited(model=with_tensor("weight", None)),
    "a tensor more": edited(model=lambda state: state | {"more": torch.ones(2)}),
    "a misshapen tensor": edited(model=with_tensor("weight", torch.ones(2, 3))),
    "NaN": edited(
        model=lambda state: {name: t * math.nan if t.is_floating_point() else t for name, t in state.items()}
    ),
    "no class graph": edited(model=with_tensor("graph.graph_indptr", None)),
    "a class graph of nothing": edited(model=with_tensor("graph.graph_indptr", torch.zeros(1).long())),
}


@pytest.mark.parametrize("command", ["eval", "predict", "train"])
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case, command, trained, train_arguments, scenes_root, refused, tmp_path):
    path = Path(shutil.copy(trained / "checkpoints" / checkpoint.LAST, tmp_path / "some.safetensors"))
    CHECKPOINTS[case](path)
    (tmp_path / "boxes.txt").write_text("1 2 30 40")
    before = contents(tmp_path)
    image, boxes = next(scenes_root.rglob("*val/000001.png")), tmp_path / "boxes.txt"
    commands = {
        "eval": ["eval", "--checkpoint", path, "-j", "0"],
        "predict": ["predict", image, "--boxes", boxes, "--checkpoint", path, "--output", tmp_path / "x.png"],
        "train": train_arguments(tmp_path / "run", "--resume", str(path)),
    }
    refused(commands[command], "classes" if case == "fewer classes" else path)
    assert before.items() <= contents(tmp_path).items()  # a new run's log may be there, too


# ------------------------------------------------------------------------------------------------------ environments


@pytest.mark.parametrize("place", ["a file", "under a file", "a name too long", "no permission"])
@pytest.mark.parametrize("command", ["train", "eval", "predict", "graph", "scenes"])
def test_places_that_cannot_be_written(
    place, command, trained, train_arguments, scenes_root, refused, refused_process, tmp_path
):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "boxes.txt").write_text("1 2 30 40")
    (tmp_path / "locked").mkdir(mode=0o555)
    folder = {
        "a file": tmp_path / "file",
        "under a file": tmp_path / "file/run",
        "a name too long": tmp_path / ("x" * 300),
        "no permission": tmp_path / "locked/run",
    }[place]
    image, boxes = next(scenes_root.rglob("*val/000001.png")), tmp_path / "boxes.txt"
    commands = {
        "train": train_arguments(folder),
        "eval": ["eval", "--checkpoint", trained, "--output-dir", folder, "-j", "0"],
        "predict": ["predict", image, "--boxes", boxes, "--checkpoint", trained, "--output", folder / "x.png"],
        "graph": ["graph", "build", "--data", "scenes", "--data-root", scenes_root, "--output", folder / "graph.json"],
        "scenes": ["data", "scenes", "--output-dir", folder, "--train-scenes", "2", "--val-scenes", "2"],
    }
    before = contents(tmp_path)
    if place == "no permission":
        os.chmod(tmp_path, 0o755)
        # What is imported later must be there already: nobody may be kept from the folder of this Python.
        nobody = "import concurrent.futures.process, os\nif os.getuid() == 0:\n    os.setuid(65534)"
        refused_process(commands[command], first=nobody)
    else:
        refused(commands[command], folder)
    assert contents(tmp_path) == before


def test_there_are_two_hundred():
    tables = (VALUES, MISSING, TABLES, WHOLE, IMAGES, PAIRS, YAMLS, BOXES, GRAPHS, CHECKPOINTS)
    assert sum(map(len, tables)) >= 200
