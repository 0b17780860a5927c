"""Writing: the old file or folder stays whole until the new one is, whatever happens in between."""

import errno
import json
import os
import stat

import pytest

from irnet import files
from irnet.errors import InputError


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_write(tmp_path):
    path = tmp_path / "new/folder/x.txt"
    files.write(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    files.write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    files.write_json(path, {"a": [1.5, None]})
    assert json.loads(path.read_text()) == {"a": [1.5, None]} and path.read_text().endswith("}\n")
    assert names(path.parent) == ["x.txt"]
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_failure_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def make(temporary):
        assert temporary.parent == path.parent  # a rename across disks would not be one step
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(InputError if isinstance(error, OSError) else type(error)) as caught:
        files.write_with(path, make)
    assert path.read_text() == "old" and names(tmp_path) == ["x.txt"]
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"{path}: cannot be written (No space left on device); make room")


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_failure_late(tmp_path, monkeypatch, stage):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, stage, fail)
    with pytest.raises(InputError, match="Input/output error"):
        files.write(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["x.txt"]


def test_file_is_flushed_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (done.append(name), real(*a)))
    files.write(tmp_path / "x", "new")
    assert done == ["fsync", "replace"]


def test_keep(tmp_path):
    path, kept = tmp_path / "x", tmp_path / "old"
    for text in "abc":
        files.write_with(path, lambda temporary, text=text: temporary.write_text(text), keep=kept)
    assert (path.read_text(), kept.read_text(), names(tmp_path)) == ("c", "b", ["old", "x"])

    def full(temporary):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError):
        files.write_with(path, full, keep=kept)
    assert (path.read_text(), kept.read_text()) == ("c", "b")


def test_place_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "file/x.txt", tmp_path / "file/deeper/x.txt"):
        with pytest.raises(InputError, match=r"cannot be written \((Not a directory|File exists)\)"):
            files.write(path, "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        files.write(tmp_path / "folder", "new")
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file", "folder"]


# ------------------------------------------------------------------------------------------------------ whole folders


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "new/page"
    for text in ("first", "second"):
        with files.whole_folder(path) as fresh:
            assert fresh.parent == path.parent and not (path.exists() and text == "first")
            (fresh / text).write_text(text)
        assert names(path) == [text] and names(path.parent) == ["page"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), ValueError()])
def test_a_folder_that_fails_leaves_the_old_one_and_no_other(tmp_path, error):
    """An error from within is told as what it is: it may be one of reading."""
    path = tmp_path / "page"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(type(error)) as caught, files.whole_folder(path) as fresh:
        (fresh / "half").write_text("of the n")
        raise error
    assert caught.value is error and names(tmp_path) == ["page"] and names(path) == ["old"]


@pytest.mark.parametrize("error", [OSError(errno.EBUSY, "Device or resource busy"), KeyboardInterrupt()])
def test_the_old_folder_comes_back_where_the_new_one_cannot_be_moved(tmp_path, monkeypatch, error):
    path, real, moves = tmp_path / "page", os.replace, []
    path.mkdir()
    (path / "old").write_text("old")

    def replace(source, target):
        moves.append((source.name, target.name))
        if moves[-1] == (".page.tmp", "page"):
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)), files.whole_folder(path) as fresh:
        (fresh / "new").write_text("new")
    assert moves == [("page", ".page.old"), (".page.tmp", "page"), (".page.old", "page")]
    assert names(tmp_path) == ["page"] and names(path) == ["old"]


MARKS = {"a": b"ours", "b": b""}


def check(path) -> None:
    files.check_folder(path, ["a", "b", "data"], MARKS, "a page")


def test_only_a_folder_of_our_making_is_to_be_replaced(tmp_path):
    check(tmp_path / "none")
    check(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/thesis.tex").write_text("mine")
    for name, content in (("", ""), ("a", "theirs"), ("a", "of ours"), ("b", "")):
        if name:
            (tmp_path / name).write_text(content)
        if name == "b":
            break
        with pytest.raises(InputError, match=r"is no folder of a page \((a|data) is there\); name another"):
            check(tmp_path)
    check(tmp_path)
    (tmp_path / "c").write_text("")
    for path in (tmp_path, tmp_path / "c"):
        with pytest.raises(InputError, match=r"is no folder of a page \(c is there\); name another"):
            check(path)


def test_a_mount_point_is_not_to_be_replaced(tmp_path):
    """Renaming one fails, at the end of all work."""
    (tmp_path / "link").symlink_to("/proc")
    for path in ("/proc", tmp_path / "link"):
        with pytest.raises(
            InputError, match="is a mount point, whose content cannot be replaced; name a folder within"
        ):
            check(path)
