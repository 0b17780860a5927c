"""Everything that is wrong with a data set, found before training would meet it one by one. Trains nothing."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from ..config import Config
from ..data.dataset import RegionDataset
from ..data.images import ambiguity
from ..data.registry import open_dataset
from ..errors import InputError
from ..progress import Progress
from .build import class_graph, read_word_vectors, same_classes, some_regions
from .inventory import describe

CHUNK = 64  # images that a process is handed at once

_looked_at: tuple[RegionDataset, bool] | None = None  # by the processes of the pool


def check(
    config: Config,
    decode: bool,
    say: Callable[[str], None],
    look: Callable[[dict[str, RegionDataset]], None] = lambda opened: None,
) -> list[InputError]:
    """All that training with `config` would refuse in its data; `say` is told what is there.

    decode  decode every image in full; otherwise only its header is read
    look    is given the parts that could be opened, by "train" and "val"
    """
    findings: list[InputError] = []
    opened: dict[str, RegionDataset] = {}
    for part in ("train", "val"):
        with _noted(findings):
            data = opened[part] = open_dataset(config.data, part, require_images=False)
            labels = data.image_labels()
            say(f"{data.split}: {len(data)} images, {sum(map(len, labels))} regions, {len(data.classes)} classes")
            for reason, count in data.skipped.items():
                say(f"  {reason}: {count}")
            some_regions(data)
    for data in opened.values():
        for line in describe(data):
            say(line)
    with _noted(findings):
        look(opened)
    for data in opened.values():
        errors, ambiguous = _examine_images(data, decode, config.train.workers)
        findings += errors
        if ambiguous:
            say(f"{data.path}: {ambiguity(ambiguous, len(data))}")
    if len(opened) == 2:
        train, val = opened["train"], opened["val"]
        with _noted(findings):
            same_classes(val.classes, train.classes, val.path, "give both splits the same categories")
        if config.model.variant in ("global", "full"):
            with _noted(findings):
                class_graph(config.data, train)
            with _noted(findings):
                read_word_vectors(config.data.word_vectors, train.classes)
    return list({str(error): error for error in findings}.values())


@contextlib.contextmanager
def _noted(findings: list[InputError]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        findings.append(error)


def _examine_images(data: RegionDataset, decode: bool, workers: int) -> tuple[list[InputError], int]:
    """What is wrong with the images, in their order, and how many have an orientation that their size does not settle.

    workers  processes; 0 works here
    """
    findings: list[InputError] = []
    chunks = [range(len(data))[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    ambiguous = 0
    with Progress(f"check of {data.split}", len(data), "image") as progress:
        for errors, count, images in _results(data, decode, workers, chunks):
            findings += errors
            ambiguous += count
            progress.update(images)
    return findings, ambiguous


def _results(data: RegionDataset, decode: bool, workers: int, chunks: list[range]) -> Iterator[tuple]:
    if workers == 0 or len(chunks) < 2:
        _look_at(data, decode)
        yield from map(_examine, chunks)
        return
    # Forked, so that the data set is not sent. Ctrl-C ends the pool from here, not its processes each by a traceback.
    pool = ProcessPoolExecutor(workers, get_context("fork"), _start, (data, decode))
    try:
        yield from pool.map(_examine, chunks)
    except BrokenProcessPool:
        trouble = f"a process that read the images of {data.split} was ended from outside"
        raise InputError("data check", trouble, "check again with -j 0, which needs less memory") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(data: RegionDataset, decode: bool) -> None:
    torch.set_num_threads(1)  # OpenMP's threads were not forked; work for several would wait for them without end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the program's handler, which was inherited
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup wants it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _look_at(data, decode)


def _look_at(data: RegionDataset, decode: bool) -> None:
    global _looked_at
    _looked_at = data, decode


def _examine(indices: range) -> tuple[list[InputError], int, int]:
    data, decode = _looked_at
    results = [data.examine(i, decode) for i in indices]
    return [error for error, _ in results if error], sum(ambiguous for _, ambiguous in results), len(indices)
