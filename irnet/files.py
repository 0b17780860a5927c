"""Atomic writing of files and folders: what stood at a path stays whole until its successor is. Reads nothing."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
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


def check_folder(path: str | os.PathLike, names: Collection[str], what: str) -> None:
    """InputError unless `path` may be replaced: a folder that holds nothing but these names, or nothing at all.

    what  such a folder in words, for the message
    """
    path = Path(path)
    strange = [] if path.is_dir() or not path.exists() else [path.name]
    if path.is_dir():
        with writing(path):
            strange = sorted(one.name for one in path.iterdir() if one.name not in names)
    if strange:
        raise InputError(path, f"is no folder of {what} ({strange[0]} is there)", "name another --output-dir")


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to write into, which takes the place of `path` at the end; where anything fails, that stays.

    What stands at `path` is deleted then: see `check_folder`. InputError where it cannot be written.
    """
    path = Path(path).resolve()
    fresh, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    try:
        with writing(path):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            yield fresh
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                os.replace(path, old)
            os.replace(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn a failure to write `path` into an InputError that names it and the reason."""
    try:
        yield
    except OSError as error:
        trouble = f"cannot be written ({error.strerror or error})"
        raise InputError(path, trouble, "make room or choose another place; what stood there is kept") from error
