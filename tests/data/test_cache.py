"""Kept annotations: the same table comes back, and never that of other sources, whatever befell files and folders."""

import dataclasses
import logging
import os
import shutil
import threading
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from irnet.data import cache
from irnet.data.coco import CocoDataset
from irnet.data.scenes import Scenes
from irnet.data.table import Annotations, Images, make_table
from irnet.errors import InputError
from tests.data.tools import box_row, image_row, make, tables


@pytest.fixture(autouse=True)
def however_small(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "LEAST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path):
    rows = [box_row(i, 1 + i % 2, [i, 1.25, 9.5, 70 if i == 3 else 8], kind=f"kind {i % 3}") for i in range(7)]
    rows += [box_row(8, 2, [0, 0, 9, 9], iscrowd=1), box_row(9, 1, [0, 0, 0, 4])]
    make(tmp_path / "root", tables(rows, [image_row(1), image_row(2), image_row(4, name="ä.png")]))
    return tmp_path / "root"


def opened(root, setting="", kind=CocoDataset):
    return kind(root, "train", cache=setting)


def reads(monkeypatch):
    """The names of files that are read from now on."""
    names, read = [], cache.kept

    def watched(sources, setting, function):
        return read(sources, setting, lambda: names.append(sources.name) or function())

    monkeypatch.setattr("irnet.data.coco.kept", watched)
    return names


def equal(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and np.array_equal(a, b), field.name
        elif field.name == "left_out":
            assert {key: value.tolist() for key, value in a.items()} == {key: v.tolist() for key, v in b.items()}
        elif field.name == "attributes":
            assert {key: column[:] for key, column in a.items()} == {key: column[:] for key, column in b.items()}
        else:
            assert a == b, field.name


@pytest.mark.parametrize("kind", [CocoDataset, Scenes])
def test_what_was_kept_is_what_was_read(root, monkeypatch, caplog, kind):
    plain = opened(root, "off", kind)
    assert not (root / ".irnet").exists()
    names = reads(monkeypatch)
    with caplog.at_level(logging.INFO, logger="irnet"):
        first = opened(root, "", kind)
    assert sum("kept for the next time" in record.getMessage() for record in caplog.records) == 1
    second = opened(root, "", kind)
    assert len(names) == 1 and [path.suffix for path in (root / ".irnet").iterdir()] == [".safetensors"]
    for data in (first, second):
        equal(plain.table, data.table)
        assert plain.fingerprint() == data.fingerprint() and data.skipped == {"iscrowd": 1, "zero area": 1}
        assert data.clipped == 1 and data[1].boxes.tolist() == plain[1].boxes.tolist()
        assert data[0].attributes == plain[0].attributes
    second[0].boxes.zero_()
    assert second[0].boxes.tolist() == plain[0].boxes.tolist()
    assert (plain.attribute_keys == ("kind",)) == bool(plain.table.attributes)


def change(path):
    """Other contents of the same size, with the times of the old ones put back."""
    before = path.stat()
    text = path.read_text()
    path.write_text(text.replace("1.25", "2.25"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.read_text() != text
    return path


def test_another_source_is_read_though_size_and_time_are_the_same(root):
    opened(root)
    change(root / "annotations/instances_train.json")
    assert opened(root)[0].boxes[0, 1] == 2.25 and opened(root)[0].boxes[0, 1] == 2.25


def test_a_source_that_may_have_changed_within_a_tick_of_the_clock_is_told_by_its_contents(root, monkeypatch):
    path = root / "annotations/instances_train.json"
    state = cache.Sources(root, [path], "", "").state()
    monkeypatch.setattr(cache.Sources, "state", lambda self: state)
    opened(root)
    change(path)
    assert opened(root)[0].boxes[0, 1] == 2.25


def test_a_source_whose_times_alone_have_changed_is_not_read_again(root, monkeypatch):
    names = reads(monkeypatch)
    opened(root)
    os.utime(root / "annotations/instances_train.json")
    opened(root)
    assert len(names) == 1


def test_a_source_that_changes_while_it_is_read_is_not_kept(root, monkeypatch):
    read = cache.kept
    path = root / "annotations/instances_train.json"

    def meanwhile(sources, setting, function):
        return read(sources, setting, lambda: (function(), change(path))[0])

    monkeypatch.setattr("irnet.data.coco.kept", meanwhile)
    assert opened(root)[0].boxes[0, 1] == 1.25 and not (root / ".irnet").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "other format"])
def test_a_damaged_file_is_replaced(root, monkeypatch, caplog, damage):
    plain = opened(root)
    (path,) = (root / ".irnet").iterdir()
    content = path.read_bytes()
    if damage == "flipped":
        at = len(content) - 100
        content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    else:
        kinds = {"cut": content[:-7], "empty": b"", "text": b"nothing of ours" * 9}
        content = kinds.get(damage) or content.replace(b'"format":"1"', b'"format":"0"')
    path.write_bytes(content if damage != "empty" else b"")
    with caplog.at_level(logging.INFO, logger="irnet"):
        data = opened(root)
    equal(plain.table, data.table)
    assert ("is damaged" in caplog.text) == (damage != "other format")
    caplog.clear()
    equal(plain.table, opened(root).table)
    assert "is damaged" not in caplog.text


@pytest.mark.parametrize(
    ("fact", "value"),
    [("state", None), ("built", None), ("contents", None), ("built", "soon"), ("built", "9" * 5000)],
)
def test_a_file_whose_header_lacks_a_fact_is_replaced(root, monkeypatch, caplog, fact, value):
    plain = opened(root)
    (path,) = (root / ".irnet").iterdir()
    with safe_open(path, "pt") as file:
        whole = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    others = {key: text for key, text in whole.items() if key != fact}
    save_file(tensors, path, others if value is None else others | {fact: value})
    names = reads(monkeypatch)
    with caplog.at_level(logging.INFO, logger="irnet"):
        equal(plain.table, opened(root).table)
        equal(plain.table, opened(root).table)
    assert len(names) == 1 and caplog.text.count("is damaged") == 1


def test_without_a_home_it_goes_on(root, tmp_path, monkeypatch, caplog):
    """As in a container that runs as a user whom no file of accounts has."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    before = set(tmp_path.iterdir())
    opened(root)
    assert [path.suffix for path in (root / ".irnet").iterdir()] == [".safetensors"]
    shutil.rmtree(root / ".irnet")
    (root / ".irnet").write_text("no folder")
    with caplog.at_level(logging.INFO, logger="irnet"):
        assert len(opened(root)) == 3
    assert "not kept for the next time" in caplog.text and set(tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written_leaves_it_to_the_users(root, tmp_path, monkeypatch, caplog):
    (root / ".irnet").write_text("no folder")  # a superuser may write into any folder
    names = reads(monkeypatch)
    with caplog.at_level(logging.INFO, logger="irnet"):
        opened(root)
    lines = [record.getMessage() for record in caplog.records if "kept" in record.getMessage()]
    assert len(lines) == 1 and str(tmp_path / "home") in lines[0] and "cannot be written" in lines[0]
    opened(root)
    assert len(names) == 1


def test_without_any_folder_it_goes_on(root, tmp_path, monkeypatch, caplog):
    for path in (root / ".irnet", tmp_path / "home"):
        path.write_text("no folder")
    names = reads(monkeypatch)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="irnet"):
            assert len(opened(root)) == 3
        assert sum("not kept for the next time" in record.getMessage() for record in caplog.records) == 1
    assert len(names) == 2


def test_a_folder_can_be_named(root, tmp_path, monkeypatch):
    opened(root, str(tmp_path / "mine/deep"))
    assert len(list((tmp_path / "mine/deep").iterdir())) == 1 and not (root / ".irnet").exists()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    opened(root, "~/kept")
    assert len(list((tmp_path / "user/kept").iterdir())) == 1


def test_several_may_build_it_at_once(root, monkeypatch):
    plain, count = opened(root, "off"), 4
    together, read, datasets = threading.Barrier(count), cache._write, []

    def write(path, tensors, facts):
        together.wait(20)
        for _ in range(20):
            read(path, tensors, facts)

    monkeypatch.setattr(cache, "_write", write)
    threads = [threading.Thread(target=lambda: datasets.append(opened(root))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(datasets) == count and [path.suffix for path in (root / ".irnet").iterdir()] == [".safetensors"]
    for data in (*datasets, opened(root)):
        equal(plain.table, data.table)


def test_small_annotations_are_read_without(root, monkeypatch):
    monkeypatch.setattr(cache, "LEAST", 10**6)
    opened(root)
    assert not (root / ".irnet").exists()


def test_a_source_that_cannot_be_looked_at_is_one_line(root, monkeypatch):
    gone = cache.Sources(root, [root / "gone.json"], "key", "gone")
    with pytest.raises(InputError, match=r"gone.json: cannot be read \(No such file"):
        cache.kept(gone, "", lambda: None)


def test_what_was_kept_is_mapped_and_not_copied(root):
    """Of a hundred thousand boxes nothing is allocated, neither arrays nor objects: a loader's processes share them."""
    rng, count = np.random.default_rng(0), 100_000
    corners = rng.uniform(0, 50, (count, 2))
    given = Annotations(np.arange(count) // 1000, np.zeros(count, int), np.hstack([corners, corners + 9]))
    images = Images(np.arange(100), [f"{i}.jpg" for i in range(100)], np.full((100, 2), 60))
    table = make_table(["cup"], [""], images, given)
    source = cache.Sources(root, [root / "annotations/instances_train.json"], "many", "many")
    cache.kept(source, "", lambda: table)
    tracemalloc.start()
    try:
        again = cache.kept(source, "", None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    equal(table, again)
    assert peak < table.boxes.nbytes / 4 and table.boxes.nbytes == 16 * count


def test_parts_of_a_table(root):
    table = opened(root, "off", Scenes).table
    some = table.select(np.array([2, 0]))
    assert some.file_names == ["ä.png", "000001.png"] and some.image_ids.tolist() == [4, 1]
    assert some.ptr.tolist() == [0, 0, 4] and some.boxes.tolist() == table.boxes[:4].tolist()
    assert some.attributes["kind"][:] == table.attributes["kind"][:4] and some.skipped() == {"zero area": 1}
    assert some.left_out["zero area"].tolist() == [1]  # the image's new index
    few = table.limit(2)
    assert few.ptr.tolist() == [0, 2, 4, 4] and few.skipped()["over max_regions"] == 3
    assert few.boxes[2:].tolist() == table.boxes[4:6].tolist()
    assert few.select(np.array([1])).skipped() == {"iscrowd": 1, "over max_regions": 1}
    other = table.relabel(["bird", "cup"])
    assert other.classes == ["bird", "cup"] and set(other.labels.tolist()) == {1}
    assert other.skipped()["of a class that is left out"] == 0 and other.supercategories == ["", "kitchen"]
    assert table.relabel(["dog"]).skipped()["of a class that is left out"] == 7
