"""The folder of a run: its lock, its log, its settings, its lines of metrics, and what env.txt says of the machine."""

import contextlib
import fcntl
import json
import logging
import os
import platform
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL.Image import Image

import irnet_kernels

from .. import __version__, files
from ..config import Config, dump
from ..data.sample import Batch
from ..errors import InputError
from ..progress import Progress, speed
from . import distributed
from .events import Follower, following, scalars_of

log = logging.getLogger("irnet")
_locks: set[int] = set()  # file descriptors


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, and make it where it does not exist.

    The lock is the operating system's, on the file .lock: it goes with the process, however that ends.

    Args:
        folder: Folder of the run.

    Raises:
        InputError: Another run is in it, or it cannot be written.
    """
    path = folder / ".lock"
    with files.writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _locks.add(lock)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            cure = "wait for it to end, end it, or choose another --output-dir"
            raise InputError(folder, "another run is writing there", cure) from error
        except OSError as error:  # a file system without locks
            log.warning("%s cannot be locked (%s): start no other run there", folder, error.strerror)
        yield
    finally:
        _locks.discard(lock)
        os.close(lock)


def _close_locks() -> None:
    """Loader processes outlive a killed run by seconds; they must not hold its lock."""
    for lock in _locks:
        os.close(lock)
    _locks.clear()


os.register_at_fork(after_in_child=_close_locks)


def environment(device: torch.device) -> str:
    """Describe the versions, the machine and the implementations of the operators: the content of env.txt."""
    facts = {
        "irnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "operators": json.dumps(irnet_kernels.available()),
    }
    return "".join(f"{key}: {value}\n" for key, value in facts.items())


def write_settings(folder: Path, config: Config, device: torch.device, step: int, evaluated: bool) -> None:
    """Write config.yaml and env.txt, and cut off metrics.jsonl where the run goes on: see `keep_lines`.

    Args:
        folder: Folder of the run.
        config: Settings of the run.
        device: Device on which it trains.
        step: Number of steps done so far.
        evaluated: See `keep_lines`.

    Raises:
        InputError: A file cannot be written.
    """
    keep_lines(folder / "metrics.jsonl", step, evaluated)
    files.write(folder / "config.yaml", dump(config))
    files.write(folder / "env.txt", environment(device))


def keep_lines(path: Path, step: int, evaluated: bool) -> None:
    """Drop the lines of metrics.jsonl after `step`, and a half-written last one.

    Args:
        path: The file.
        step: Number of the last step that counts.
        evaluated: Whether an evaluation at this step counts, too; else it comes again.
    """
    kept = [line for line in read_lines(path) if line["step"] < step + (evaluated or not is_evaluation(line))]
    _write_lines(path, kept)


def _write_lines(path: Path, lines: list[dict]) -> None:
    files.write(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict]:
    """The lines of metrics.jsonl, without a half-written last one; none where there is no such file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def is_evaluation(line: dict) -> bool:
    """Whether a line of metrics.jsonl tells of an evaluation, not of steps."""
    return "metrics" in line


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Copy the log into a file while the run lasts."""
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(min(log.level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):  # a line that could not be written has been told of
            handler.close()


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Called inside emit's `except`: a full disk is for the command line to tell, not for a printed traceback."""
        with files.writing(self.baseFilename):
            raise


class Record:
    """The file metrics.jsonl as it grows, and those that follow it.

    Attributes:
        path: The file.
        followers: See events.py.
    """

    def __init__(self, path: Path, followers: Sequence[Follower] = ()):
        self.path, self.followers = path, followers

    def write(self, line: dict) -> None:
        """Add a line, that of an evaluation in the place of an earlier one after the same step.

        Raises:
            InputError: It cannot be written.
        """
        before = read_lines(self.path) if is_evaluation(line) else []
        others = [each for each in before if not (is_evaluation(each) and each["step"] == line["step"])]
        if len(others) < len(before):
            _write_lines(self.path, [*others, line])
        else:
            with files.writing(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.tell(line)

    def tell(self, line: dict) -> None:
        """Tell the followers of a line."""
        for follower in self.followers:
            follower.scalars(line["step"], scalars_of(line))

    def show(self, step: int, pictures: Iterable[tuple[str, Image]]) -> None:
        """Show the followers pictures, which are not made where there is none, by name."""
        for name, picture in pictures if self.followers else ():
            for follower in self.followers:
                follower.picture(step, name, picture)


@contextlib.contextmanager
def recording(folder: Path, config: Config, first: int) -> Iterator[Record]:
    """The record of a run, in a group of processes for rank 0, of which others write nothing.

    Args:
        folder: Folder of the run.
        config: Its settings.
        first: First step that the followers may not know; they are told of the lines that are there of it. An
            evaluation after it comes again.
    """
    path = folder / "metrics.jsonl"
    with following(config, folder, first) as followers:
        record = Record(path, followers)
        for line in read_lines(path) if record.followers else ():
            if line["step"] >= first and not is_evaluation(line):
                record.tell(line)
        yield record


class Meter:
    """Averages a run's metrics between two lines of metrics.jsonl, and shows them with the progress."""

    def __init__(self, record: Record, every: int, device: torch.device):
        """Start to measure.

        Args:
            record: Record of the run.
            every: Number of steps between two lines.
            device: Device whose memory is measured.
        """
        self.record, self.every, self.device = record, every, device
        self._reset()

    def _reset(self) -> None:
        self.sums, self.steps, self.images, self.regions, self.since = {}, 0, 0, 0, time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens meanwhile out of the speed: it is no training."""
        begin = time.perf_counter()
        yield
        self.since += time.perf_counter() - begin

    def add(self, step: int, rate: float, metrics: dict[str, float], batch: Batch, progress: Progress) -> None:
        """Add a step to the averages, and write and show them where a line is due.

        Of a group of processes each adds its share of the step, and rank 0 writes the line.

        Args:
            step: Number of the step, counted from 1.
            rate: Its learning rate.
            metrics: Its metrics by name.
            batch: Batch on which it was trained.
            progress: Progress of the training; its total is the last step, after which a line is due.

        Raises:
            InputError: The line cannot be written.
        """
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.images += len(batch.names)
        self.regions += len(batch.boxes)
        if step % self.every and step != progress.total:
            return
        losses = [name for name in self.sums if name.startswith("loss")]  # of shares, which add up; others are alike
        *sums, images, regions = distributed.total([*(self.sums[name] for name in losses), self.images, self.regions])
        self.sums |= zip(losses, sums, strict=True)
        seconds = time.perf_counter() - self.since
        line = {"step": step, "lr": rate, **{name: value / self.steps for name, value in self.sums.items()}}
        line |= {"images_per_s": images / seconds, "regions_per_s": regions / seconds}
        (line["peak_memory"],) = distributed.highest([peak_memory(self.device)])
        if distributed.rank():
            self._reset()
            return
        self.record.write(line)
        _show(line, seconds / self.steps, progress)
        self._reset()


def peak_memory(device: torch.device) -> int:
    """The most bytes since the process began: on a GPU of its allocator, on a CPU those of the process in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _show(line: dict[str, float], seconds_per_step: float, progress: Progress) -> None:
    """Show a line of metrics.jsonl with the progress, or in the log where no bar is drawn."""
    losses = {name.removeprefix("loss_"): f"{line[name]:.3f}" for name in line if name.startswith("loss")}
    rates = {"img/s": f"{line['images_per_s']:.1f}", "reg/s": f"{line['regions_per_s']:.0f}"}
    progress.note(f"loss {losses['loss']}, {rates['img/s']} img/s")
    if not progress.visible:
        metrics = ", ".join(f"{name} {value}" for name, value in (losses | rates).items())
        left = speed(seconds_per_step, "step", progress.total - line["step"])
        log.info("step %d of %d: %s, %s", line["step"], progress.total, metrics, left)
