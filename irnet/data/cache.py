"""Tables of annotations kept as safetensors files, which are mapped into memory: a large data set is read once.

A kept table is used only while its sources are the same: by their sizes and times, and where these have changed or are
too recent to tell, by their contents. It is written beside its place and then put there in one step, so that two
programs may build it at once. Where the data set's folder cannot be written, the user's cache folder takes it.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError
from .table import Column, Table

FORMAT = "1"  # version of what `_pack` writes and of how readers judge annotations; a table of another is not used
FOLDER = ".irnet"  # within the folder of the data set
LEAST = 4 * 2**20  # bytes of sources; smaller ones are read as fast as they are opened
SETTLED = 2_000_000_000  # ns; a file may change twice within one tick of its clock
_ARRAYS = ("image_ids", "sizes", "ptr", "labels", "boxes", "clipped")

log = logging.getLogger("irnet")


@dataclass(frozen=True)
class Sources:
    """The files that a table is read from.

    root   the folder of the data set
    files  all whose contents matter, in a fixed order
    key    what else the table follows from: the reader and its parameters
    name   what a message and the kept file are called after
    also   what else must be the same, such as the sizes of image files whose contents do not matter
    """

    root: Path
    files: Sequence[Path]
    key: str
    name: str
    also: str = ""

    def state(self) -> tuple[str, int, int]:
        """A hash of the files' names, sizes and times, the time of the latest change in ns, and bytes in all."""
        digest, latest, size = hashlib.sha256(), 0, 0
        for path in self.files:
            stat = os.stat(path)
            text = f"{self._name(path)}\0{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}\0"
            digest.update(text.encode(errors="surrogateescape"))
            latest, size = max(latest, stat.st_mtime_ns, stat.st_ctime_ns), size + stat.st_size
        return digest.hexdigest(), latest, size

    def contents(self) -> str:
        """A hash of the files' names and contents."""
        digest = hashlib.sha256()
        for path in self.files:
            with open(path, "rb") as file:
                own = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{self._name(path)}\0{own}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.root)


def kept(sources: Sources, setting: str, read: Callable[[], Table]) -> Table:
    """The table of `sources`: as it was kept, else what `read` gives, which is kept for the next time.

    setting  data.cache: a folder, "" for one that can be written, "off" for none
    InputError where a source cannot be looked at, and as `read` raises it.
    """
    try:
        state, latest, size = sources.state()
        if setting == "off" or size < LEAST:
            return read()
        paths = _table_paths(sources, setting)
        for path in paths:
            table = _load(path, sources, (state, latest))
            if table is not None:
                return table
        built, contents = time.time_ns(), sources.contents()
    except OSError as error:
        raise InputError(error.filename, f"cannot be read ({error.strerror})", "check its permissions") from None
    table = read()
    if sources.state()[0] == state:  # else it was written to meanwhile, and nobody knows what was read
        facts = {"format": FORMAT, "key": sources.key, "also": sources.also}
        facts |= {"state": state, "built": str(built), "contents": contents}
        _keep(table, sources, facts, paths)
    return table


def _table_paths(sources: Sources, setting: str) -> list[Path]:
    """Where the table may lie, the best place first."""
    key = hashlib.sha256(sources.key.encode()).hexdigest()[:8]
    name = f"{sources.name}-{key}.safetensors"
    if setting:
        return [Path(os.path.expanduser(setting)) / name]
    home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    if home.parts[0] == "~":  # nobody knows the user's folder
        return [sources.root / FOLDER / name]
    own = hashlib.sha256(os.fsencode(sources.root.resolve())).hexdigest()[:16]
    return [sources.root / FOLDER / name, home / "irnet" / "annotations" / own / name]


def _load(path: Path, sources: Sources, now: tuple[str, int]) -> Table | None:
    """The table in `path`; None where there is none, it is damaged, or its sources are others."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            if (facts.get("format"), facts.get("key"), facts.get("also")) != (FORMAT, sources.key, sources.also):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.info("%s: is damaged (%s): the annotations are read again", path, " ".join(str(error).split())[:100])
        return None
    if _checksum(tensors) != facts.get("checksum"):
        log.info("%s: is damaged (its checksum differs): the annotations are read again", path)
        return None
    if not {"state", "contents"} <= facts.keys() or not re.fullmatch("[0-9]{1,20}", facts.get("built", "")):
        log.info("%s: is damaged (its header lacks facts): the annotations are read again", path)
        return None
    state, latest = now
    settled = facts["state"] == state and latest + SETTLED < int(facts["built"])
    if not settled and sources.contents() != facts["contents"]:
        return None
    return _unpack(tensors)


def _keep(table: Table, sources: Sources, facts: dict[str, str], paths: list[Path]) -> None:
    tensors = _pack(table)
    facts["checksum"] = _checksum(tensors)
    troubles = []
    for path in paths:
        try:
            _write(path, tensors, facts)
        except (OSError, SafetensorError) as error:
            troubles.append(f"{path.parent} cannot be written ({getattr(error, 'strerror', None) or error})")
            continue
        log.info("%s: kept for the next time in %s", sources.name, "; ".join([*troubles, str(path)]))
        return
    log.info("%s: not kept for the next time: %s", sources.name, "; ".join(troubles))


def _write(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, str]) -> None:
    """Write a file of its own name and put it in its place, whoever else does so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, temporary, facts)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _pack(table: Table) -> dict[str, torch.Tensor]:
    texts = {
        "classes": table.classes,
        "supercategories": table.supercategories,
        "file_names": table.file_names,
        "attributes": {name: column.values for name, column in table.attributes.items()},
    }
    arrays = {name: getattr(table, name) for name in _ARRAYS}
    arrays |= {f"attribute.{name}": column.codes for name, column in table.attributes.items()}
    arrays |= {f"left_out.{reason}": images for reason, images in table.left_out.items()}
    arrays["texts"] = np.frombuffer(json.dumps(texts).encode(), np.uint8).copy()
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _unpack(tensors: dict[str, torch.Tensor]) -> Table:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    texts = json.loads(arrays.pop("texts").tobytes())
    values = texts.pop("attributes")
    return Table(
        **texts,
        **{name: arrays[name] for name in _ARRAYS},
        attributes={name: Column(arrays[f"attribute.{name}"], values[name]) for name in values},
        left_out={
            name.removeprefix("left_out."): array for name, array in arrays.items() if name.startswith("left_out.")
        },
    )


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\0".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
