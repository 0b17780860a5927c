"""Checkpoints: one safetensors file of plain tensors, plain values as JSON in its header. Loading executes nothing."""

import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from .. import files
from ..config import Config, from_dict
from ..errors import InputError

FORMAT = "irnet checkpoint 1"
LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
log = logging.getLogger("irnet")


@dataclass
class Checkpoint:
    """What a run needs to go on, or a model to be used.

    step       optimiser steps done
    config     the run's
    classes    the class names, in the order of the logits
    model      state dict
    optimizer  per parameter name and kind of state, "NAME.KIND"; empty in `best`
    extra      further plain values (the best figure so far, the loss scale, whether a run can go on from it)
    source     the file it was read from
    """

    step: int
    config: Config
    classes: list[str]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    extra: dict[str, Any]
    source: Path | None = None


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; a `last` that was there stays as `previous` beside it. InputError for a full disk."""
    header = {
        "format": FORMAT,
        "step": checkpoint.step,
        "config": dataclasses.asdict(checkpoint.config),
        "classes": checkpoint.classes,
        "extra": checkpoint.extra,
    }
    tensors = {f"model.{name}": t for name, t in checkpoint.model.items()}
    tensors |= {f"optimizer.{name}": t for name, t in checkpoint.optimizer.items()}
    tensors = {name: t.detach().contiguous() for name, t in tensors.items()}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}
    keep = path.with_name(PREVIOUS) if path.name == LAST else None
    # Not save_file: its own temporary file would stay behind when a run is killed, and nobody else could read it.
    content = to_bytes(tensors, metadata)
    files.write_with(path, lambda temporary: temporary.write_bytes(content), keep)


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read one file. InputError where it is missing, truncated or none of ours."""
    cure = "give a checkpoint that irnet train wrote"
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise InputError(path, "no such checkpoint", cure) from error
    except (SafetensorError, OSError) as error:
        raise InputError(path, f"is truncated or no checkpoint ({error})", cure) from error
    if header.get("format") != FORMAT:
        raise InputError(path, f"is not of the form {FORMAT!r}", cure)
    try:
        step, config, classes, extra = (json.loads(header[key]) for key in ("step", "config", "classes", "extra"))
    except (KeyError, ValueError) as error:
        raise InputError(path, f"has a damaged header ({error!r})", cure) from error
    own = lambda prefix: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}  # noqa: E731
    return Checkpoint(step, from_dict(config, path), classes, own("model."), own("optimizer."), extra, Path(path))


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


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's state as plain tensors."""
    return {
        f"{name}.{kind}": value
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` took."""
    for key, value in tensors.items():
        name, _, kind = key.rpartition(".")
        parameter = parameters[name]
        optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)
