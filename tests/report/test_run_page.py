"""The folder of a run's page as files: their sizes, what they hold, and what becomes of an earlier folder."""

import errno
import json
import re
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from irnet.errors import InputError
from irnet.report import run_page
from irnet.report.draw import Reasoning
from irnet.report.run_page import Cause, Shown
from tests.report.made_up import CLASSES, made_up
from tests.report.made_up_run import answers_of, made_up_images
from tests.report.reader import Reader

NASTY = ["<b>bold</b>", '"quoted" & co', "</script><script>alert(1)</script>", "a'b\u2028c", "\ud800", "猫"]


def calls(path) -> list:
    """The arguments of the one call that a script of data is."""
    return json.loads(re.fullmatch(r"irnetPage\.\w+\((.*)\);\n", path.read_text("ascii"), re.DOTALL)[1].join("[]"))


def records(folder) -> list[dict]:
    """The records of all images, in the order of the index."""
    index = [entry for part in sorted(folder.glob("data/index-*.js")) for entry in calls(part)[1]]
    chunks = [calls(folder / f"data/chunk-{i}.js")[1] for i in range(len(list(folder.glob("data/chunk-*.js"))))]
    return [
        chunks[chunk][place] | {"name": name, "rise": rise, "after": after}
        for name, _, chunk, place, _, _, after, rise in index
    ]


def near(whole: list, scores: np.ndarray) -> bool:
    """Whether whole numbers are these scores, rounded."""
    return np.array_equal(np.array(whole).reshape(scores.shape), np.rint(scores * run_page.SCALE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    images = list(made_up_images(30))
    path = tmp_path_factory.mktemp("page") / "page"
    history = [{"step": s, "loss_conv": 2 / s, "loss_final": 1 / s} for s in range(1, 900)]
    run_page.write(path, "a run", answers_of(images), images, [*history, {"step": 900}], {"split": "val", "x": None})
    return path


def test_the_folder_is_complete(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(run_page.NAMES)
    assert [path.name for path in folder.parent.iterdir()] == ["page"]
    reader = Reader((folder / "index.html").read_text())
    scripts = ["page.js", "data/run.js", "data/index-0.js"]
    assert [link for link in reader.links if not link.startswith("#")] == scripts  # the others are within the chart
    assert all((folder / script).exists() for script in scripts)
    found = records(folder)
    assert len(found) == 30
    for record in found:
        with Image.open(folder / record["picture"]) as picture:
            assert picture.format == "JPEG" and picture.size == (record["width"], record["height"]) == (64, 48)
        names, across, down, stride, top = record["memory"]
        assert len(names) == 2 and (across, down, stride) == (5, 4, 16.0) and 0 < top <= 1
        for name in names:
            with Image.open(folder / name) as picture:
                assert picture.size == (5, 4) and picture.mode == "P" and "transparency" in picture.info
                levels = np.asarray(picture)
            assert levels.max() <= 255 and np.array_equal(levels[:, 3], levels[:, 4])  # on to the image's edge
    assert "val" in reader.words and "x" not in reader.words


def test_records_hold_what_the_model_said(folder):
    for shown, record in zip(made_up_images(30), records(folder), strict=True):
        r = shown.reasoning
        assert record["name"] == shown.name and record["attributes"] == shown.attributes
        assert record["best"] == r.scores.argmax(2).T.tolist()
        assert near(record["scores"], r.scores.max(2).T) and near(record["attention"], r.attention.T)
        assert record["top"] == r.final.argsort(1)[:, ::-1].tolist()
        assert [top[0] for top in record["top"]] == record["after"]
        rows = np.arange(len(r.boxes))
        rise = r.final[rows, r.labels] - r.scores[0, rows, r.labels]
        assert near(record["rise"], rise)
        causes = {int(region): [Cause(*cause) for cause in found] for region, found in record["causes"].items()}
        assert causes == shown.causes


def test_the_energy_is_the_mean_over_the_cells_of_a_box():
    memory = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    shape = {"keys": made_up(variant="local").keys, "classes": CLASSES, "labels": [0, 0], "stride": 10}
    scores = np.zeros((len(shape["keys"]), 2, 5))
    boxes = [[9, 0, 21, 10], [11, 16, 14, 19]]  # cells 1 and 2 of rows 0 and 1; none, row 2 and column 1 are nearest
    reasoning = Reasoning(
        np.zeros((30, 40, 3), np.uint8),
        boxes,
        scores=scores,
        attention=scores[..., 0],
        final=scores[0],
        memory=memory,
        **shape,
    )
    assert run_page._energies(reasoning)[:, 0].tolist() == [np.mean([1, 2, 5, 6]), 9]


def test_large_images_are_shrunk(tmp_path):
    images = [Shown("wide.jpg", made_up(height=300, width=2400, variant="conv"))]
    run_page.write(tmp_path / "page", "t", answers_of(images), images)
    (record,) = records(tmp_path / "page")
    assert (record["width"], record["height"]) == (2400, 300) and "memory" not in record  # boxes are in these pixels
    with Image.open(tmp_path / "page" / record["picture"]) as picture:
        assert picture.size == (1000, 125)


@pytest.mark.parametrize("variant", ["conv", "local", "global", "full"])
def test_variants_say_what_they_have(variant, tmp_path):
    images = list(made_up_images(3, variant=variant))
    words = Reader(run_page.write(tmp_path / "page", "t", answers_of(images), images).read_text()).words
    assert ("What each class gained and lost" in words) == (variant != "conv")
    ((facts,),) = [calls(tmp_path / "page/data/run.js")]
    assert facts["variant"] == {m: variant in (m, "full") for m in ("local", "global")}
    assert "Training" not in words and "Over" not in " ".join(words)


def test_without_images_there_are_the_tables(tmp_path):
    run = answers_of(list(made_up_images(5)))
    run.seeds = [run.metrics]
    reader = Reader(run_page.write(tmp_path / "page", "t", run, []).read_text())
    assert "How much is right" in reader.words and "Over 2 seeds" in reader.words
    assert "viewer" not in reader.ids and reader.links == ["page.js", "data/run.js"]


def test_text_from_data_is_escaped(tmp_path):
    images = list(made_up_images(4, NASTY))
    images[0].name, images[1].name = "<img src=x onerror=alert(1)>.jpg", "\udcff.jpg"
    images[0].attributes = {"<i>k</i>": ["</script>"] * 4}
    facts = {"data": "<u>root</u>", "model": "</script>", "root": "/data/\udcff"}
    title = "<i>\udcff</i>"
    reader = Reader(run_page.write(tmp_path / "page", title, answers_of(images), images, (), facts).read_text())
    assert not {"b", "i", "u"} & {tag for tag, _ in reader.tags}
    assert sum(tag == "script" for tag, _ in reader.tags) == len(reader.links)
    assert "<u>root</u>" in reader.words
    assert {record["name"] for record in records(tmp_path / "page")} >= {images[0].name, images[1].name}
    (facts_of_run,) = calls(tmp_path / "page/data/run.js")
    assert facts_of_run["classes"] == NASTY


def test_the_curves_are_of_what_the_lines_tell(tmp_path):
    images = list(made_up_images(2))
    steps = [{"step": s, "loss": 3.0, "loss_conv": 2.5, "loss_final": 1 / s} for s in (1, 2)]
    held_out = [{"step": s, "metrics": {"final": {"instance_accuracy": s / 4}}} for s in (2, 3)]
    odd = [
        {"step": 4, "loss_conv": None, "metrics": None},
        {"loss_final": 1.0},
        {"step": 5, "loss_final": float("nan")},
    ]
    losses = "Losses over training: loss ends at 3, conv ends at 2.5, final ends at 0.5."
    both = f"{losses} Metrics of held-out images: instance accuracy of the final answer ends at 75 %."
    for history, expected in ((steps + held_out + odd[::2], [both]), (steps, [losses]), (odd, [])):
        page = run_page.write(tmp_path / "page", "t", answers_of(images), images, history)
        tags = Reader(page.read_text()).tags
        assert [attributes["aria-label"] for tag, attributes in tags if tag == "svg"] == expected


def test_an_earlier_page_is_replaced_and_nothing_else(tmp_path):
    images = list(made_up_images(4))
    path = tmp_path / "page"
    path.mkdir()
    for count in (4, 2):
        run_page.write(path, "t", answers_of(images), images[:count])
        assert len(list(path.glob("pictures/*"))) == count
    (path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is no folder of a page \(notes.txt is there\)"):
        run_page.write(path, "t", answers_of(images), images)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"is no folder of a page \(file is there\)"):
        run_page.write(tmp_path / "file", "t", answers_of(images), images)
    (tmp_path / "mine/data").mkdir(parents=True)
    (tmp_path / "mine/data/thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"is no folder of a page \(data is there\)"):
        run_page.write(tmp_path / "mine", "t", answers_of(images), images)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine", "page"] and (path / "notes.txt").exists()
    assert (tmp_path / "mine/data/thesis.tex").exists()


def test_a_failure_leaves_the_earlier_page(tmp_path, monkeypatch):
    images = list(made_up_images(4))
    path = tmp_path / "page"
    run_page.write(path, "first", answers_of(images), images)

    def ending(error):
        yield images[0]
        raise error

    for error in (InputError("image", "cannot be read", "mend it"), OSError(errno.EIO, "of reading")):
        with pytest.raises(type(error), match=r"reading|cannot be read") as caught:
            run_page.write(path, "second", answers_of(images), ending(error))
        assert caught.value is error  # and none of writing

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_page._Parts, "flush", full)
    with pytest.raises(InputError, match=r"page: cannot be written \(No space left on device\)"):
        run_page.write(path, "second", answers_of(images), images)
    assert "first" in (path / "index.html").read_text() and [p.name for p in tmp_path.iterdir()] == ["page"]


# ------------------------------------------------------------------------------------------------------ many images

MANY, KINDS = 5000, 3000


def repeated(count: int, some: list[Shown]) -> Iterator[Shown]:
    """Many images, each with the reasoning of one of a few."""
    for i in range(count):
        one = some[i % len(some)]
        yield Shown(f"{i:06d}.jpg", one.reasoning, one.attributes, one.causes)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A page of 5,000 images with 3,000 classes."""
    some = list(made_up_images(20, [f"class number {c}" for c in range(KINDS)], "global", 6))[:-1]
    path = tmp_path_factory.mktemp("many") / "page"
    run_page.write(path, "many", answers_of(some), repeated(MANY, some))
    return path


def test_many_images_make_no_large_file(many):
    sizes = {p: p.stat().st_size for p in many.rglob("*") if p.is_file()}
    assert sizes[many / "index.html"] < 2**16
    print(f"the largest file has {max(sizes.values()):,} bytes, all {len(sizes):,} have {sum(sizes.values()):,}")
    assert max(sizes.values()) <= run_page.INDEX + 2**12
    chunks = [size for p, size in sizes.items() if "chunk" in p.name]
    assert len(chunks) > 10 and max(chunks) <= run_page.CHUNK + 2**12
    assert len(list(many.glob("pictures/*"))) == MANY


def test_writing_holds_one_part_of_the_data(tmp_path, monkeypatch):
    """With five times as many images, memory grows by far less than the data that are written."""
    monkeypatch.setattr(run_page, "CHUNK", 2**13)
    monkeypatch.setattr(run_page, "INDEX", 2**13)
    some = list(made_up_images(20))[:-1]
    run, peaks = answers_of(some), []
    for count in (10, 100, 500):  # the first loads what is loaded once
        tracemalloc.start()
        run_page.write(tmp_path / str(count), "t", run, repeated(count, some))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    written = [sum(path.stat().st_size for path in tmp_path.glob(f"{count}/data/*")) for count in (100, 500)]
    assert peaks[2] - peaks[1] < (written[1] - written[0]) / 5  # Pillow keeps some bytes of every picture
