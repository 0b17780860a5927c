"""Programs with which a run is followed from outside its folder's own files: TensorBoard, and Weights & Biases offline.
Each is a package of its own, imported where a setting asks for it. Computes nothing."""

import contextlib
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL.Image import Image

from .. import files
from ..config import Config, TrainConfig
from ..errors import InputError
from . import distributed


class Follower(Protocol):
    """What takes the figures and pictures of a run. InputErrors say what cannot be written."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Take figures of a step by name."""

    def picture(self, step: int, name: str, image: Image) -> None:
        """Take a picture of what the model made of an image after a step."""

    def close(self, failed: bool) -> None:
        """Write what is left; `failed` says whether the run ends before its time."""


class TensorBoard:
    """Event files in the folder `tensorboard` of a run; a step that is taken again takes the place of the first."""

    def __init__(self, config: Config, output: Path, first: int):
        self.folder = output / "tensorboard"
        with files.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _wait_for_a_later_name(self.folder)
            self.writer = _summary_writer()(str(self.folder), purge_step=first)
        self.hook, threading.excepthook = threading.excepthook, self._unless_told

    def scalars(self, step: int, values: dict[str, float]) -> None:
        with files.writing(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def picture(self, step: int, name: str, image: Image) -> None:
        with files.writing(self.folder):
            self.writer.add_image(f"pictures/{name}", np.asarray(image), step, dataformats="HWC")
            self.writer.flush()

    def close(self, failed: bool) -> None:
        threading.excepthook = self.hook
        with files.writing(self.folder):
            self.writer.close()

    def _unless_told(self, error: threading.ExceptHookArgs) -> None:
        """A thread writes the files; of its failure the next call tells, so that it need not print a traceback."""
        if not (isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard.")):
            self.hook(error)


def _wait_for_a_later_name(folder: Path) -> None:
    """Files are read in the order of their names, which begin with the second in which they are made."""
    end = time.monotonic() + 2  # a clock that has been put back is not waited for
    timestamps = {path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")}
    while f"{int(time.time()):010d}" in timestamps and time.monotonic() < end:
        time.sleep(0.05)


class WeightsAndBiases:
    """A run of Weights & Biases in the folder `wandb` of a run, for `wandb sync`; nothing is sent from here. Where the
    run goes on, there is one more, of the same name."""

    def __init__(self, config: Config, output: Path, first: int):
        self.folder, self.wandb = output / "wandb", _wandb()
        with self._writing():
            settings = dataclasses.asdict(config)
            self.run = self.wandb.init(mode="offline", dir=str(output), name=output.name, config=settings)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        with self._writing():
            self.run.log(values, step=step)

    def picture(self, step: int, name: str, image: Image) -> None:
        with self._writing():
            self.run.log({f"pictures/{name}": self.wandb.Image(image)}, step=step)

    def close(self, failed: bool) -> None:
        with self._writing():
            self.run.finish(exit_code=int(failed))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """InputError where something cannot be written, which the package tells by errors of many kinds of its own."""
        with files.writing(self.folder):
            try:
                yield
            except OSError:
                raise
            except Exception as error:
                raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def _summary_writer() -> Any:
    with _wanted("tensorboard", 'pip install "irnet[tensorboard]"'):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


def _wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or its own crashes are sent, offline, too
    with _wanted("wandb", "pip install wandb"):
        import wandb
    return wandb


@contextlib.contextmanager
def _wanted(package: str, cure: str) -> Iterator[None]:
    """InputError where a package is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise InputError(f"--{package}", f"{package} is not installed", f"{cure}, or leave out --{package}") from None


def check(config: TrainConfig) -> None:
    """InputError where a package is not installed that the settings ask for; to be called before a run begins.

    Of several processes rank 0 alone needs it.
    """
    if config.tensorboard and not distributed.rank():
        _summary_writer()
    if config.wandb and not distributed.rank():
        _wandb()


@contextlib.contextmanager
def following(config: Config, output: Path, first: int) -> Iterator[list[Follower]]:
    """Make the followers that the settings ask for, on rank 0, and close all that were made, also if making one fails.

    Args:
        config: Settings of the run.
        output: Its folder.
        first: First step that they will be told of; what they know of it and of later ones does not hold.
    """
    enabled = {TensorBoard: config.train.tensorboard, WeightsAndBiases: config.train.wandb}
    followers: list[Follower] = []
    with contextlib.ExitStack() as stack:
        for make, asked in enabled.items():
            if asked and not distributed.rank():
                followers.append(make(config, output, first))
                stack.push(functools.partial(_close, followers[-1]))
        yield followers


def _close(follower: Follower, kind: type[BaseException] | None, *_: object) -> None:
    """Close a follower as a context's `__exit__` does. A trouble of its own does not hide that which ends the run."""
    with contextlib.suppress(*[InputError] * (kind is not None)):
        follower.close(failed=kind is not None)


def scalars_of(line: dict) -> dict[str, float]:
    """The figures of a line of metrics.jsonl by the names under which they are followed.

    Those of steps begin with "train/"; those of an evaluation are METRIC/PREDICTION and attention/PREDICTION, so that
    the predictions of one metric stand side by side.
    """
    if "metrics" not in line:
        return {f"train/{name}": value for name, value in line.items() if name != "step"}
    scalars = {f"{name}/{key}": value for key, values in line["metrics"].items() for name, value in values.items()}
    scalars |= {f"attention/{key}": value for key, value in line["attention"].items()}
    return {name.replace(" ", "_"): value for name, value in scalars.items()}  # TensorBoard takes no blanks
