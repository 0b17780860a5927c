"""Atomic writing of files: whatever stood at a path stays whole until its successor is. Reads nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import InputError


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file in one step."""
    data = content.encode() if isinstance(content, str) else content
    write_with(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, in one step."""
    write(path, json.dumps(value, indent=2) + "\n")


def write_with(path: str | os.PathLike, make: Callable[[Path], Any]) -> None:
    """Let `make` write a temporary file beside `path`, flush it to the disk, then put it in its place.

    Where anything fails (a full disk, no permission) the temporary file goes, the old file stays, and an InputError
    says so.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            path, f"cannot be written ({reason})", "make room or choose another place; nothing was lost"
        ) from error
