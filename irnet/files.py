"""Writing of files in one step, and of folders in two: what stood at a path stays whole until its successor is."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file in one step."""
    data = content.encode() if isinstance(content, str) else content
    write_with(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, in one step."""
    write(path, json.dumps(value, indent=2) + "\n")


def write_with(path: str | os.PathLike, make: Callable[[Path], Any], keep: Path | None = None) -> None:
    """Let `make` write a temporary file beside `path`, flush it to the disk, then put it in its place.

    keep  where the old file moves to just before, if it is to be kept; at every moment one of the two is whole
    Where anything fails (a full disk, no permission) the temporary file goes, the old file stays, and an InputError
    says so.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            make(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_folder(path: str | os.PathLike, names: Collection[str], marks: Mapping[str, bytes], what: str) -> None:
    """InputError unless `path` may be replaced: an empty folder, none, or one that is surely of our making.

    Args:
        path: The folder.
        names: All that such a folder holds.
        marks: Files that it always holds, and what stands in the first KiB of each.
        what: Such a folder in words, for the message.
    """
    path = Path(path)
    with writing(path):
        if not path.exists():
            return
        if os.path.ismount(path.resolve()):
            raise InputError(path, "is a mount point, whose content cannot be replaced", "name a folder within it")
        entries = sorted(os.listdir(path)) if path.is_dir() else [path.name]
        strange = [name for name in entries if name not in names or not path.is_dir()]
        if not all(_is_marked(path / name, mark) for name, mark in marks.items()):
            strange += entries
    if strange:
        raise InputError(path, f"is no folder of {what} ({strange[0]} is there)", "name another --output-dir")


def _is_marked(path: Path, mark: bytes) -> bool:
    """Whether a file is there, with a mark in its first KiB."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return mark in file.read(1024)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to write into, which takes the place of `path` at the end; where anything fails, that stays.

    What stands at `path` is moved to `.NAME.old` before, comes back if the new folder cannot be moved, and is deleted
    after: see `check_folder`. A process that is killed between both moves leaves it there. InputError where the folder
    cannot be made or moved; what is written into it is the caller's to guard with `writing`.
    """
    path = Path(path).resolve()
    fresh, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    try:
        with writing(path):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        yield fresh
        with writing(path):
            _move_folder(fresh, path, old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _move_folder(fresh: Path, path: Path, old: Path) -> None:
    """Move a folder to `path`; what was there goes to `old` for that long."""
    if not path.exists():
        os.replace(fresh, path)
        return
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    try:
        os.replace(fresh, path)
    finally:
        if not path.exists():
            os.replace(old, path)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn a failure to write `path` into an InputError that names it and the reason."""
    try:
        yield
    except OSError as error:
        trouble = f"cannot be written ({error.strerror or error})"
        raise InputError(path, trouble, "make room or choose another place; what stood there is kept") from error
