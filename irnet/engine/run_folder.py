"""The folder of a run: its lock, its log, its lines of figures, and what env.txt says of the machine."""

import contextlib
import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

import irnet_kernels

from .. import __version__, files
from ..errors import InputError

log = logging.getLogger("irnet")
_locks: set[int] = set()  # file descriptors


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder`, which is made where it is not there. InputError where another one is in it.

    The lock is the operating system's, on the file .lock: it goes with the process, however that ends.
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
    """The content of env.txt: versions, machine and what the operators run on."""
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


def keep_lines(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl beyond `step`, and a half-written last one."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    files.write(path, "".join(kept))


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
