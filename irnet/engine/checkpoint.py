"""Checkpoints: one safetensors file of plain tensors, plain values as JSON in its header. Loading executes nothing."""

import dataclasses
import itertools
import json
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import files
from ..config import Config, from_dict, validate
from ..errors import InputError
from . import distributed
from .distributed import is_sharded
from .sharded import like, own_rows, spans

FORMAT = "irnet checkpoint 2"
LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
METADATA, CHECKSUM = "irnet", "checksum"
DIGEST = 16  # bytes of the checksum
PIECE = 2**20  # bytes that are written or read at once
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
log = logging.getLogger("irnet")


@dataclass
class Checkpoint:
    """What a run needs to go on, or a model to be used.

    step       optimiser steps done
    config     the run's
    classes    the class names, in the order of the logits
    model      state dict, in which the weights are their average where the run has one
    optimizer  per parameter name and kind of state, "NAME.KIND"; empty in `best`
    extra      further plain values (the best class AP so far, the loss scale, whether a run can go on from it)
    source     the file it was read from
    version    what `version_of` gave for that file when it was read
    trained    by name the weights that the run goes on from, where `model` holds their average
    """

    step: int
    config: Config
    classes: list[str]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    extra: dict[str, Any]
    source: Path | None = None
    version: tuple[int, int] | None = None
    trained: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; a `last` that was there stays as `previous` beside it. InputError for a full disk.

    The same state gives the same bytes. Tensors are written piece by piece: little memory beyond their own is taken.
    """
    header = {
        "format": FORMAT,
        "step": checkpoint.step,
        "config": dataclasses.asdict(checkpoint.config),
        "classes": checkpoint.classes,
        "extra": checkpoint.extra,
    }
    tensors = {f"model.{name}": t.detach() for name, t in checkpoint.model.items()}
    tensors |= {f"optimizer.{name}": t.detach() for name, t in checkpoint.optimizer.items()}
    tensors |= {f"trained.{name}": t.detach() for name, t in checkpoint.trained.items()}
    keep = path.with_name(PREVIOUS) if path.name == LAST else None
    if any(map(is_sharded, tensors.values())):
        _save_together(path, json.dumps(header), tensors, keep)
    else:
        files.write_with(path, lambda temporary: _write(temporary, json.dumps(header), tensors), keep)


def _layout(text: str, tensors: dict[str, Tensor]) -> tuple[bytes, list[str]]:
    """The head of a file that safetensors reads, and the order of the tensors behind it; the last is a checksum.

    safetensors' own writers hold all tensors that are not on the CPU at once, and put entries in a random order.

    Args:
        text: The one entry of metadata.
        tensors: The tensors by name.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # each aligned to its elements
    entries: dict[str, Any] = {"__metadata__": {METADATA: text}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    entries[CHECKSUM] = {"dtype": "U8", "shape": [DIGEST], "data_offsets": [offset, offset + DIGEST]}
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head, order


def _write(path: Path, text: str, tensors: dict[str, Tensor]) -> None:
    head, order = _layout(text, tensors)
    digest = blake2b(digest_size=DIGEST)
    with open(path, "wb") as file:
        for piece in itertools.chain([head], *(_pieces(tensors[name]) for name in order)):
            digest.update(piece)
            file.write(piece)
        file.write(digest.digest())


def _save_together(path: Path, text: str, tensors: dict[str, Tensor], keep: Path | None) -> None:
    """Write one file of tensors of which each process holds some rows; every process calls it and puts its own there.

    The file is the one that a single process writes. Rank 0 reads it again for the checksum, and refuses to put it in
    its place if it does not hold what each process wrote.
    """
    head, order = _layout(text, tensors)

    def make(temporary: Path | None) -> None:
        if temporary is not None:
            with open(temporary, "wb") as file:
                file.write(head)
        begin, shared = distributed.from_first(lambda: (len(head), temporary))
        written = distributed.all_of(_write_rows(shared, begin, [tensors[name] for name in order]))
        if temporary is None:
            return
        stretches = [(rank, size) for name in order for rank, size in enumerate(_sizes(tensors[name]))]
        checksum, digests = _digests(temporary, len(head), stretches)
        wrong = [rank for rank, own in enumerate(written) if own != digests[rank]]
        if wrong:
            trouble = f"does not hold what rank {wrong[0]} wrote into it"
            raise InputError(path, trouble, "choose a file system that all machines can write, or --parallel ddp")
        with open(temporary, "ab") as file:
            file.write(checksum)

    if distributed.rank() == 0:
        files.write_with(path, make, keep)
    else:
        with files.writing(path):
            make(None)
    distributed.wait()


def _write_rows(path: Path, begin: int, tensors: list[Tensor]) -> bytes:
    """Write the rows that this process holds where they belong, the first tensor at `begin`; returns their digest."""
    digest = blake2b(digest_size=DIGEST)
    with open(path, "rb+") as file:
        for tensor in tensors:
            sizes = _sizes(tensor)
            file.seek(begin + sum(sizes[: distributed.rank()]))
            for piece in _pieces(own_rows(tensor)) if sizes[distributed.rank()] else ():
                digest.update(piece)
                file.write(piece)
            begin += sum(sizes)
        file.flush()
        os.fsync(file.fileno())
    return digest.digest()


def _sizes(tensor: Tensor) -> list[int]:
    """The bytes of the rows that each process writes."""
    rows = max(1, tensor.shape[0]) if tensor.dim() else 1
    row = tensor.numel() * tensor.element_size() // rows
    return [row * (end - begin) for begin, end in spans(tensor)]


def _digests(path: Path, begin: int, stretches: list[tuple[int, int]]) -> tuple[bytes, list[bytes]]:
    """The checksum of a file, and the digest of what each process wrote.

    Args:
        path: The file.
        begin: Where its tensors begin.
        stretches: Of each stretch of bytes from there on, the rank of the process that wrote it, and its length.
    """
    digest, owners = blake2b(digest_size=DIGEST), [blake2b(digest_size=DIGEST) for _ in range(distributed.count())]
    with open(path, "rb") as file:
        digest.update(file.read(begin))
        for rank, left in stretches:
            while left and (piece := file.read(min(left, PIECE))):
                digest.update(piece)
                owners[rank].update(piece)
                left -= len(piece)
    return digest.digest(), [owner.digest() for owner in owners]


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor's elements in their order, some rows at a time."""
    for part in _rows(tensor):
        yield memoryview(part.contiguous().cpu().view(-1).view(torch.uint8).numpy())


def _rows(tensor: Tensor) -> Sequence[Tensor]:
    """The tensor in parts of about `PIECE` bytes, split along its first dimension."""
    if not tensor.numel():
        return []
    rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
    return rows.split(max(1, PIECE // (rows[0].numel() * rows.element_size())))


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read one file. InputError where it is missing, truncated, damaged, none of ours, or holds a number not finite.

    Tensors on the CPU are the mapped file: clone what is to stay.
    """
    cure = "give a checkpoint that irnet train wrote"
    try:
        version = version_of(path)  # ahead of the reading: one that is replaced meanwhile counts as another
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise InputError(path, "no such checkpoint", cure) from error
    except (SafetensorError, OSError) as error:
        raise InputError(path, f"is truncated or no checkpoint ({error})", cure) from error
    if "irnet" in metadata.get("format", ""):
        raise InputError(path, "was written by an older irnet", "use it with that version, or train again")
    if METADATA not in metadata or CHECKSUM not in tensors:
        raise InputError(path, f"is not of the form {FORMAT!r}", cure)
    if bytes(tensors.pop(CHECKSUM).cpu().numpy()) != _checksum(path):
        raise InputError(path, "is damaged: its content has changed since it was written", "take another copy of it")
    step, config, classes, extra = _read_header(path, metadata[METADATA], cure)
    if name := not_finite(tensors):
        trouble = f"holds numbers that are not finite ({name}): its training has diverged"
        raise InputError(path, trouble, "take an earlier checkpoint, or train again with a lower train.lr")
    own = lambda prefix: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}  # noqa: E731
    parts = own("model."), own("optimizer."), extra, Path(path), version, own("trained.")
    return Checkpoint(step, config, classes, *parts)


def version_of(path: Path) -> tuple[int, int]:
    """What tells a file from its successors under the same name."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of a tensor that holds an infinite number or NaN, where this process holds it."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all(part.isfinite().all() for part in _rows(own_rows(tensor))):
            return name
    return None


def _read_header(path: Path, text: str, cure: str) -> tuple[int, Config, list[str], dict[str, Any]]:
    try:
        header = json.loads(text)
        if header["format"] != FORMAT:
            raise InputError(path, f"is not of the form {FORMAT!r}", cure)
        step, classes, extra = header["step"], header["classes"], header["extra"]
        if not (type(step) is int and step >= 0 and isinstance(classes, list) and isinstance(extra, dict)):
            raise ValueError("a value of another type")
        if not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes without names")
        config = from_dict(header["config"], path)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(path, f"has a damaged header ({error!r})", cure) from error
    validate(config, path)
    return step, config, classes, extra


def _checksum(path: Path) -> bytes:
    """Compute the checksum of all bytes of a file but the last `DIGEST`, where `_write` puts it."""
    digest = blake2b(digest_size=DIGEST)
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size - DIGEST
        while left > 0 and (piece := file.read(min(left, PIECE))):
            digest.update(piece)
            left -= len(piece)
    return digest.digest()


def exists(run: Path) -> bool:
    """Whether a run folder holds a checkpoint to go on from. One that was stopped before its first does not."""
    return any(os.path.exists(run / "checkpoints" / name) for name in (LAST, PREVIOUS))


def find(run: str | Path, prefer: str = LAST, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint of a run folder (`prefer` if it is there, else last), or the one that `run` names as a file.

    Where `last` is damaged or `prefer` is not there, the next one is used and the log says so.
    """
    run = Path(run)
    if os.path.isfile(run):
        return load(run, device)
    folder = run / "checkpoints"
    names = [name for name in dict.fromkeys((prefer, LAST, PREVIOUS)) if os.path.exists(folder / name)]
    if not names:
        raise InputError(run, "holds no checkpoint", "name a run folder of irnet train, or a checkpoint file")
    if names[0] != prefer:
        log.warning("%s: not there; using %s in its place", folder / prefer, names[0])
    for name, fallback in zip(names, [*names[1:], None], strict=True):
        try:
            return load(folder / name, device)
        except InputError as error:
            if fallback is None:
                raise
            log.warning("%s; using %s in its place", error, fallback)
    raise AssertionError("unreachable")


def folder_of_run(run: str | Path) -> Path:
    """The run folder of what `find` takes: that folder; of a file that of its run, or the one in which it lies."""
    run = Path(run)
    if os.path.isdir(run):
        return run
    return run.parent.parent if run.parent.name == "checkpoints" else run.parent


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's state as plain tensors."""
    return {
        f"{name}.{kind}": value
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], tensors: dict[str, Tensor], where: str | Path
) -> None:
    """Put back what `optimizer_tensors` took. InputError, naming `where`, for what is of no parameter's shape."""
    for key, value in tensors.items():
        name, _, kind = key.rpartition(".")
        parameter = parameters.get(name)
        if parameter is None or value.shape != (() if kind == "step" else parameter.shape):
            raise InputError(where, f"does not fit the optimiser ({key} differs)", "start another run")
        optimizer.state[parameter][kind] = value.clone() if kind == "step" else like(parameter, value)
