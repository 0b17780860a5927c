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
from safetensors.torch import save_file
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
    extra      further plain values (the best figure so far, the loss scale)
    """

    step: int
    config: Config
    classes: list[str]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    extra: dict[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; a checkpoint that was at `path` stays as `previous` beside it. InputError for a full disk."""
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

    def make(temporary: Path) -> None:
        save_file(tensors, temporary, metadata)
        if path.name == LAST and path.exists():
            link = path.with_name(".link.tmp")
            link.unlink(missing_ok=True)
            os.link(path, link)
            os.replace(link, path.with_name(PREVIOUS))

    files.write_with(path, make)


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
    own = lambda prefix: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}  # noqa: E731
    return Checkpoint(
        json.loads(header["step"]),
        from_dict(json.loads(header["config"]), path),
        json.loads(header["classes"]),
        own("model."),
        own("optimizer."),
        json.loads(header["extra"]),
    )


def find(run: str | Path, prefer: str = LAST, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint of a run folder (`prefer` if it is there, else last), or the one that `run` names as a file.

    Where `last` is damaged, the previous one is used and the log says so.
    """
    run = Path(run)
    if run.is_file():
        return load(run, device)
    folder = run / "checkpoints"
    names = [name for name in dict.fromkeys((prefer, LAST, PREVIOUS)) if (folder / name).exists()]
    if not names:
        raise InputError(run, "holds no checkpoint", "name a run folder of irnet train, or a checkpoint file")
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
