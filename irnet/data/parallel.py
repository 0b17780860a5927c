"""One function over many files, in several processes where they are many. Knows no format."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

import torch

from ..errors import InputError
from ..progress import Progress

CHUNK = 64  # items that a process is handed at once

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Sequence[Item], what: str, unit: str) -> list[Result]:
    """What `function` gives for every item, in their order; `what` names the work in a progress bar.

    An error of `function` is raised here, whichever process it came from. With more than one chunk of items and more
    than one processor, processes share the work.
    """
    processes = min(len(os.sched_getaffinity(0)), len(items) // CHUNK)
    results = []
    with Progress(what, len(items), unit) as progress:
        if processes < 2:
            for item in items:
                results.append(function(item))
                progress.update()
            return results
        pool = ProcessPoolExecutor(processes, get_context("fork"), _start)
        try:
            for result in pool.map(function, items, chunksize=CHUNK):
                results.append(result)
                progress.update()
        except BrokenProcessPool:
            raise InputError(what, "a process was ended from outside", "try again with more memory free") from None
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def _start() -> None:
    torch.set_num_threads(1)  # OpenMP's threads were not forked; work for several would wait for them without end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the pool from the program, not its processes one by one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the program's handler, which was inherited
