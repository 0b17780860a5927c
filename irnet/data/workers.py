"""Processes that load batches: what fails in them reaches the caller, who never waits for one that cannot send."""

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch.utils.data import DataLoader

from ..errors import InputError


class Parcel:
    """A batch that a worker sends; an InputError arrives in its place where it cannot be sent.

    DataLoader's queue pickles in a thread of its own, moving tensors to shared memory. What fails there is lost, and
    waited for without end.
    """

    def __init__(self, content: Any):
        self.content = content

    def __reduce__(self):
        try:
            return ForkingPickler.loads, (bytes(ForkingPickler.dumps(self.content)),)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            trouble = f"a loader process cannot send its batch ({reason})"
            cure = "load in the training process with -j 0, or give more shared memory (docker run --shm-size=2g)"
            return InputError("--workers", trouble, cure).__reduce__()


def start(worker: int) -> None:
    """For DataLoader's worker_init_fn: leave the program's process group, for its signals are for the program alone."""
    os.setpgid(0, 0)


def received(loader: DataLoader) -> Iterator[Any]:
    """What `loader` gives; RuntimeError where one of its processes has ended before its time."""
    batches = iter(loader)
    deaths = _Deaths.installed() if loader.num_workers else None
    while True:
        with deaths.heard() if deaths else contextlib.nullcontext():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class _Deaths:
    """Holds back PyTorch's handler of SIGCHLD, which raises wherever the program is, until a batch is waited for.

    In the midst of an optimiser's step an error would leave half of the weights behind.
    """

    def __init__(self, handler):
        self.handler, self.waiting, self.missed = handler, False, False

    @classmethod
    def installed(cls) -> "_Deaths | None":
        """The one in place, or a new one around PyTorch's; None where there is no handler, as in other threads."""
        handler = signal.getsignal(signal.SIGCHLD)
        if isinstance(handler, cls) or not callable(handler):
            return handler if isinstance(handler, cls) else None
        deaths = cls(handler)
        try:
            signal.signal(signal.SIGCHLD, deaths)
        except ValueError:  # not the main thread, which handlers interrupt
            return None
        return deaths

    def __call__(self, number: int, frame: object) -> None:
        if self.waiting:
            self.handler(number, frame)
        else:
            self.missed = True

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        self.waiting = True
        try:
            if self.missed:
                self.missed = False
                self.handler(signal.SIGCHLD, None)
            yield
        finally:
            self.waiting = False
