"""The generated scenes: valid files, exact twins, labels that follow from context, bounds that come from pixels."""

import contextlib
import io
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.mask import area as mask_area

from irnet.errors import InputError
from irnet.scenes import generator
from irnet.scenes.generator import World, bounds, class_graph, generate
from irnet.scenes.layout import LOOKALIKES, THEMES, far_distance, near_margin, visible_region
from tests.scenes.tools import AMBIGUOUS, FIELD, OTHER, STRIDE, apart, distance, read, rebound, view


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict, list[dict]]:
    root = tmp_path_factory.mktemp("scenes") / "set"
    facts = generate(root, train=40, val=12, seed=5, progress=False)
    return root, facts, read(root, "train") + read(root, "val")


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_coco_loads_what_was_written(made):
    root, facts, _ = made
    for split, count in (("train", 40), ("val", 12)):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
        assert len(coco.imgs) == count == facts[split]["images"] == len(list((root / "images" / split).iterdir()))
        assert len(coco.anns) == facts[split]["objects"] == sum(facts[split]["kinds"].values())
        assert [coco.cats[k]["name"] for k in sorted(coco.cats)] == generator.NAMES and min(coco.cats) == 1
        for a in coco.anns.values():
            x, y, w, h = a["bbox"]
            assert mask_area(coco.annToRLE(a)) == w * h == a["area"] and a["iscrowd"] == 0
            assert x >= 4 and y >= 4 and x + w <= 188 and y + h <= 188 and min(w, h) >= 20 and max(w, h) <= 44
    assert json.loads((root / "scenes.json").read_text()) == facts
    assert {p.name for p in root.iterdir()} == {"images", "annotations", "class_graph.json", "scenes.json"}


def test_the_same_parameters_give_the_same_bytes_and_counts_do_not_matter(made, tmp_path):
    root, _, _ = made
    generate(tmp_path / "again", train=40, val=12, seed=5, progress=False)
    assert files(tmp_path / "again") == files(root)
    generate(tmp_path / "few", train=4, val=2, seed=5, progress=False)
    generate(tmp_path / "other", train=4, val=2, seed=6, progress=False)
    few, other, many = files(tmp_path / "few"), files(tmp_path / "other"), files(root)
    pictures = [name for name in few if name.endswith(".png")]
    assert len(pictures) == 6 and len({few[name] for name in pictures}) == 6
    assert all(few[name] == many[name] != other[name] for name in pictures)


def test_twins_show_the_same_to_a_convnet_and_have_the_other_class(made):
    _, _, images = made
    seen = set()
    for first, second in zip(images[::2], images[1::2], strict=True):
        assert len(first["objects"]) == len(second["objects"])
        differs = np.zeros(first["pixels"].shape[:2], bool)
        for (name, kind, box), (twin_name, twin_kind, twin_box) in zip(
            first["objects"], second["objects"], strict=True
        ):
            assert kind == twin_kind
            if kind in AMBIGUOUS:
                assert box == twin_box and twin_name == OTHER[name]
                x1, y1, x2, y2 = view(box, first["pixels"])
                assert np.array_equal(first["pixels"][y1:y2, x1:x2], second["pixels"][y1:y2, x1:x2])
                seen.add((kind, name))
            elif (name, box) != (twin_name, twin_box):
                for x1, y1, x2, y2 in (np.array(box, int), np.array(twin_box, int)):
                    differs[y1:y2, x1:x2] = True
        changed = (first["pixels"] != second["pixels"]).any(2)
        assert changed.any() == differs.any() and not (changed & ~differs).any()
    assert len(seen) == 6  # otherwise this set proves too little


def test_bounds_are_exact(made):
    _, facts, images = made
    expected = {"near": 0.5, "far": 0.5, "presence": 0.5, "plain": 1.0}
    for split, part in (("train", images[:40]), ("val", images[40:])):
        found = facts[split]["bounds"]
        kinds = facts[split]["kinds"]
        assert found["by_kind"] == expected and found == rebound(part)
        ambiguous = sum(kinds[k] for k in AMBIGUOUS)
        assert found["instance_accuracy"] == (kinds["plain"] + ambiguous / 2) / facts[split]["objects"]
        classes = sum(count > 0 for count in facts[split]["classes"].values())
        assert found["class_accuracy"] == pytest.approx((classes - 3) / classes, abs=1e-12)
        assert found["class_ap"] == pytest.approx((classes - 3) / classes, abs=1e-12)
        for a, b in LOOKALIKES:
            assert facts[split]["classes"][a] == facts[split]["classes"][b] > 0


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_a_leaked_pixel_raises_the_bound(made, kind):
    _, _, images = made
    part = [{**image, "pixels": image["pixels"].copy()} for image in images[:40]]
    number, box = next((k, o[2]) for k, image in enumerate(part) for o in image["objects"] if o[1] == kind)
    pixels, (x1, y1, x2, y2) = part[number]["pixels"], view(box, part[number]["pixels"])
    hidden = np.ones(pixels.shape[:2], bool)
    for left, top, right, bottom in (view(o[2], pixels) for o in part[number]["objects"]):
        hidden[top:bottom, left:right] = False
    pixels[hidden] += 1
    assert hidden.any() and rebound(part) == rebound(images[:40])
    for x, y in ((x1, y1), (x2 - 1, y2 - 1)):  # the outermost pixels of the view
        pixels[y, x, 0] ^= 1
        assert rebound(part)["by_kind"][kind] > 0.5
        pixels[y, x, 0] ^= 1


def test_bounds_of_a_case_done_by_hand():
    plain, marked = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 9, np.uint8)
    box = np.array([[8.0, 8.0, 24.0, 24.0]])
    found = bounds([plain, plain, marked], [box] * 3, [[0], [1], [0]], [["a"], ["a"], ["b"]], STRIDE, FIELD)
    # Class 0: the sure one first (1/1), then the undecided pair (2/3). Class 1: the pair alone (1/2).
    assert found["class_ap"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert found["class_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["instance_accuracy"] == pytest.approx(2 / 3) and found["by_kind"] == {"a": 0.5, "b": 1.0}
    with pytest.raises(ValueError, match="no boxes"):
        bounds([plain], [np.zeros((0, 4))], [[]], [[]], STRIDE, FIELD)


def test_visible_region_is_what_a_convolution_sees():
    assert visible_region(np.array([[84, 50, 108, 78]]), (192, 192), 16, 31).tolist() == [[65, 33, 128, 96]]
    rng = np.random.default_rng(0)
    for stride, field, size in ((16, 31, 192), (8, 15, 100), (16, 47, 170)):
        last = -(-size // stride) - 1
        for _ in range(10):
            start = rng.uniform(0, stride * last - 20)
            end = start + rng.uniform(5, 20)
            line = torch.zeros(1, 1, size, dtype=torch.float64, requires_grad=True)
            cells = torch.nn.functional.conv1d(
                line, torch.ones(1, 1, field).double(), stride=stride, padding=field // 2
            )
            at = torch.linspace(start / stride, end / stride, 7, dtype=torch.float64)
            weights = (1 - (at[:, None] - torch.arange(cells.shape[-1])).abs()).clamp(min=0)
            (weights @ cells[0, 0]).sum().backward()
            touched = line.grad[0, 0].nonzero()
            region = visible_region(np.array([[start, 3, end, 9]]), (50, size), stride, field)[0]
            assert (touched.min().item(), touched.max().item() + 1) == (region[0], region[2])


def test_labels_follow_from_the_annotations(made):
    _, _, images = made
    mixed = 0
    for image in images:
        objects = image["objects"]
        names = {name for name, _, _ in objects}
        boxes = {name: [box for other, _, box in objects if other == name] for name in names}
        mixed += {"hen", "turtle"} <= names
        for name, kind, box in objects:
            if kind == "near":
                partners = [(distance(box, p), n) for n in ("hen", "turtle") for p in boxes.get(n, [])]
                assert name == min(partners)[1] + "_egg"
                assert sorted(partners)[1][0] - min(partners)[0] >= near_margin(192) == 24
            elif kind == "far":
                (sun,) = boxes["sun"]
                gap = (sun[0] + sun[2] - box[0] - box[2]) / 2
                assert name == ("morning_flower" if gap < 0 else "evening_flower")
                assert abs(gap) >= far_distance(192) == 80
                # beyond three 3x3 convolutions on the map: no cell that the sun covers is within three of the flower's
                first, last = int(box[0] // STRIDE), int(-(-box[2] // STRIDE))
                assert sun[2] // STRIDE < first - 3 or -(-sun[0] // STRIDE) > last + 3
            elif kind == "presence":
                beach, snow = (bool(names & set(theme)) for theme in THEMES)
                assert beach != snow and name == ("beach_ball" if beach else "snow_ball")
            else:
                assert kind == "plain" and name not in OTHER
    assert mixed >= 4  # the scenes where both are present are the ones that ask for the place


def test_context_stays_out_of_every_view_and_partners_close_by(made):
    _, _, images = made
    context = {"hen", "turtle", "sun", *THEMES[0], *THEMES[1]}
    for image in images:
        objects = image["objects"]
        for (_, _, a), (_, _, b) in combinations(objects, 2):
            assert apart(a, b, space=2)
        for _, kind, box in objects:
            if kind not in AMBIGUOUS:
                continue
            assert all(apart(view(box, image["pixels"]), b) for n, _, b in objects if n in context)
            if kind == "near":
                p = min((b for n, _, b in objects if n in ("hen", "turtle")), key=lambda b: distance(b, box))
                gaps = [max(p[k] - box[k + 2], box[k] - p[k + 2], 0) for k in (0, 1)]
                assert 15 <= max(gaps) <= 3 * STRIDE
                v = view(box, image["pixels"])
                assert max(max(p[k] - v[k + 2], v[k] - p[k + 2]) for k in (0, 1)) <= 4  # as close as the view allows
                assert min(p[2] - p[0], p[3] - p[1]) >= 24


def test_the_order_of_annotations_and_twins_tells_nothing(made):
    _, _, images = made
    first_kinds = {image["objects"][0][1] for image in images}
    assert first_kinds == {"plain", *AMBIGUOUS}
    for pair in LOOKALIKES:
        assert {o[0] for image in images[::2] for o in image["objects"]} >= set(pair)


def test_class_graph(made):
    root, _, _ = made
    graph = json.loads((root / "class_graph.json").read_text())
    assert graph == class_graph() and graph["classes"] == generator.NAMES
    edges = {
        r["name"]: {(graph["classes"][a], graph["classes"][b]) for a, b, _ in r["edges"]} for r in graph["relations"]
    }
    assert set(edges) == {"belongs_together", "looks_like", "same_kind"}
    assert all(w > 0 for r in graph["relations"] for _, _, w in r["edges"])
    for pairs in edges.values():
        assert all((b, a) in pairs and a != b for a, b in pairs)
    assert len(edges["looks_like"]) == 6 and ("hen_egg", "turtle_egg") in edges["looks_like"]
    assert {("hen", "hen_egg"), ("parasol", "bucket"), ("mitten", "snow_ball")} <= edges["belongs_together"]
    assert not {("hen", "turtle_egg"), ("parasol", "snow_ball"), ("parasol", "sled")} & edges["belongs_together"]
    assert ("cat", "hen") in edges["same_kind"]


@pytest.mark.parametrize("size", [160, 257])
def test_other_sizes(tmp_path, size):
    facts = generate(tmp_path / "set", train=6, val=2, world=World(size), progress=False)
    assert facts["train"]["bounds"]["by_kind"] == {k: 1.0 if k == "plain" else 0.5 for k in facts["train"]["kinds"]}
    for image in read(tmp_path / "set", "train"):
        assert image["pixels"].shape == (size, size, 3)
        assert all(min(b[2] - b[0], b[3] - b[1]) >= 20 for _, _, b in image["objects"])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"train": 3}, "pairs"),
        ({"val": 0}, "pairs"),
        ({"world": World(159)}, "160 to 1024"),
        ({"world": World(255, apart=True)}, "256 to 1024"),
        ({"world": World(stride=2)}, "4 to 32"),
        ({"seed": -1}, "out of range"),
        ({"world": World(receptive_field=66)}, "1 to 65"),
        ({"world": World(160, stride=32, receptive_field=129)}, "no room"),
    ],
)
def test_bad_parameters_are_refused(tmp_path, wrong, says):
    with pytest.raises(InputError, match=says):
        generate(tmp_path / "set", **({"train": 12, "val": 2, "progress": False} | wrong))
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept(tmp_path, capsys):
    out = tmp_path / "set"
    out.mkdir()  # an empty one is fine
    facts = generate(out, train=2, val=2, progress=False)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    capsys.readouterr()
    assert generate(out, train=2, val=2) == facts and "nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    with pytest.raises(InputError, match="other parameters"):
        generate(out, train=2, val=2, seed=1, progress=False)
    (out / "scenes.json").unlink()
    with pytest.raises(InputError, match="not empty"):
        generate(out, train=2, val=2, progress=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        generate(tmp_path / "file", train=2, val=2, progress=False)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop() -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(generator, "class_graph", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", train=2, val=2, progress=False)
    assert not list(tmp_path.iterdir())
