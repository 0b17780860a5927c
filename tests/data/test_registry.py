"""The registry: a further data set is one file and one entry, whatever the program then does with it."""

import json
import pkgutil
import shutil
import sys
from pathlib import Path

import pytest

from irnet.cli import main
from irnet.config import DataConfig
from irnet.data import registry
from irnet.data.dataset import RegionDataset
from irnet.engine import checkpoint
from irnet.errors import InputError
from tests.conftest import TINY
from tests.data.formats import COLOURS, FORMATS, SPLITS, regions

MEMBERS = {name for name in vars(RegionDataset) if not name.startswith("_")} | set(RegionDataset.__annotations__)
# Nothing but the protocol. Of each image the second region is the lighter one; a file in ROOT says which are too dark.
TOY = """
from pathlib import Path
import torch
from irnet.data.sample import Sample
from irnet.errors import InputError

class Toy:
    classes, supercategories, skipped = ["dark", "light"], ["", ""], {"doubtful": 3}

    def __init__(self, config, part):
        self.root, self.split = Path(config.root), config.train_split if part == "train" else config.val_split
        self.path, self.count = self.root / "bad.txt", 6 if part == "train" else 3

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        i = range(self.count)[i]
        image = torch.full((3, 64, 64), 20 * i, dtype=torch.uint8)
        image[:, :, 32:] += 100
        boxes = torch.tensor([[0.0, 0, 30, 64], [34, 0, 64, 64]])
        return Sample(image, boxes, torch.tensor([0, 1]), f"{i}.toy", {"side": ["left", "right"]})

    def image_sizes(self):
        return torch.full((self.count, 2), 64)

    def image_labels(self):
        return [torch.tensor([0, 1])] * self.count

    def image_boxes(self):
        return [torch.tensor([[0.0, 0, 30, 64], [34, 0, 64, 64]])] * self.count

    def fingerprint(self):
        return f"{self.split} {self.count}"

    def examine(self, i, decode):
        bad = self.path.exists() and str(i) in self.path.read_text().split()
        return InputError(self.root / f"{i}.toy", "is too dark", "light a lamp") if bad else None, False

def open_toy(config, part, require_images=True):
    return Toy(config, part)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The root of a data set that is one new file and one entry of the registry."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    entry = registry.Entry("toy:open_toy", root=str(tmp_path), train_split="days", val_split="nights")
    monkeypatch.setitem(registry.DATASETS, "toy", entry)
    yield tmp_path
    sys.modules.pop("toy", None)


def test_a_new_data_set_is_checked(toy, capsys):
    assert main(["data", "check", "--data", "toy", "-j", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["days: 6 images, 12 regions, 2 classes", "  doubtful: 3"]
    assert lines[2] == "nights: 3 images, 6 regions, 2 classes"
    (toy / "bad.txt").write_text("2 4")
    assert main(["data", "check", "--data", "toy", "-j", "0"]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.out.splitlines() if "too dark" in line]
    assert errors == [f"  {toy / name}: is too dark; light a lamp" for name in ("2.toy", "4.toy")]  # both splits have 2
    assert "the first of 2 findings" in captured.err


def test_a_new_data_set_is_trained_on_evaluated_and_gone_on_with(toy, capsys):
    run = toy / "run"
    words = ["train", "--small", "--data", "toy", "--output-dir", str(run), "-b", "2", *TINY, "train.vis=2"]
    assert main([*words, "--steps", "2", "train.workers=1"]) == 0
    saved = checkpoint.find(run)
    assert saved.step == 2 and saved.classes == ["dark", "light"]
    results = json.loads((run / "results.json").read_text())
    assert (results["split"], results["images"], results["regions"]) == ("nights", 3, 6)
    shares = results["accuracy_by_side"]
    assert list(shares) == ["left", "right"]
    assert sum(shares.values()) / 2 == pytest.approx(results["metrics"]["final"]["instance_accuracy"])
    assert len(list((run / "vis").iterdir())) == 2
    assert main([*words, "--steps", "3", "--resume"]) == 0 and checkpoint.find(run).step == 3
    assert main(["eval", "--checkpoint", str(run), "--output-dir", str(toy / "eval")]) == 0
    assert json.loads((toy / "eval/results.json").read_text())["step"] == 3
    capsys.readouterr()
    assert main(["graph", "build", "--data", "toy"]) == 0
    assert "dark -> light  1.000" in capsys.readouterr().out
    own = {"classes": saved.classes, "relations": [{"name": "mine", "edges": [[1, 0, 0.25]]}]}
    (toy / "class_graph.json").write_text(json.dumps(own))
    assert main(["graph", "build", "--data", "toy"]) == 0
    assert capsys.readouterr().out == "mine: 1 edges\n  light -> dark  0.250\n"


def test_settings_outrank_the_registry(toy):
    config = DataConfig(name="toy")
    assert registry.open_dataset(config, "val").split == "nights" and config.root == ""
    data = registry.open_dataset(DataConfig(name="toy", root="elsewhere", train_split="weeks"), "train")
    assert (str(data.root), data.split) == ("elsewhere", "weeks")


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(toy, refused, capsys):
    with pytest.raises(InputError, match=r"no data set is called 'imagenet'; choose one of coco, .*scenes, toy"):
        registry.open_dataset(DataConfig(name="imagenet", root="x"), "train")
    refused(["data", "check", "data.name=imagenet"], "data.name is 'imagenet'", "choose one of coco, ", "scenes, toy")
    with pytest.raises(SystemExit):
        main(["data", "check", "--data", "imagenet"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "invalid choice: 'imagenet'" in line and all(name in line for name in ("coco", "scenes", "toy"))


@pytest.mark.parametrize("name", registry.DATASETS)
def test_what_is_registered_keeps_the_protocol(name, scenes_root, tmp_path):
    assert callable(pkgutil.resolve_name(registry.DATASETS[name].opener))
    makers = [make for own, make in FORMATS.values() if own == name]
    for make in makers[:1]:
        make(tmp_path)
    data = registry.open_dataset(DataConfig(name=name, root=str(tmp_path if makers else scenes_root)), "val")
    assert {"classes", "fingerprint", "examine"} < MEMBERS and not [key for key in MEMBERS if not hasattr(data, key)]
    assert len(data) and data.image_sizes().shape == (len(data), 2)
    if name == "scenes":
        assert set(data[0].attributes) == {"kind"}


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_gives_the_same_images(tmp_path, form):
    name, make = FORMATS[form]
    make(tmp_path)
    for part, numbers in SPLITS.items():
        data = registry.open_dataset(DataConfig(name=name, root=str(tmp_path)), part)
        assert {text.removesuffix(".n.01") for text in data.classes} == set(COLOURS) and len(data) == len(numbers)
        for sample in data:
            number = int(Path(sample.name).stem)
            names = [data.classes[label].removesuffix(".n.01") for label in sample.labels.tolist()]
            boxes = sample.boxes.tolist()
            assert list(zip(names, boxes, strict=True)) == [(own, list(box)) for own, box in regions(number)]
            assert number in numbers and sample.image.shape == (3, 40, 48)
        assert len({sample.name for sample in data}) == len(numbers) and data.skipped == {}


@pytest.mark.parametrize("form", ["ade20k 2016", "ade20k 2021", "vg", "voc", "lvis"])
def test_each_format_is_trained_on_evaluated_and_predicted_from(tmp_path, form, capsys):
    name, make = FORMATS[form]
    make(tmp_path / "data")
    run = str(tmp_path / "run")
    words = ["train", "--small", "--data", name, "--data-root", str(tmp_path / "data"), "--output-dir", run, "-b", "3"]
    assert main([*words, "--steps", "2", *TINY, "data.min_count=2"]) == 0
    assert main(["eval", "--checkpoint", run]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["images"], results["regions"]) == (6, 18)
    (tmp_path / "boxes.txt").write_text("1 2 20 18\n")
    images = [path for path in (tmp_path / "data").rglob("*7.*") if path.suffix in (".jpg", ".png")]
    capsys.readouterr()
    words = ["predict", str(images[0]), "--boxes", str(tmp_path / "boxes.txt"), "--checkpoint", run, "--json"]
    assert main([*words, "--output", str(tmp_path / "x.png")]) == 0
    assert any(colour in capsys.readouterr().out for colour in COLOURS)


def test_scenes_lie_where_the_generator_writes_them(scenes_root, tmp_path, monkeypatch, capsys):
    shutil.copytree(scenes_root, tmp_path / "data/scenes")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "--data", "scenes", "-j", "0"]) == 0
    assert "train: 8 images" in capsys.readouterr().out
