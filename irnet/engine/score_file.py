"""The scores of one prediction for a whole data set, on the disk: they are written region by region and read class by
class, and only a part of them is ever in memory. Computes no metric."""

import contextlib
import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InputError

CHUNK = 2**26  # bytes of scores in memory while they are read
BLOCK = 2**22  # bytes that are read at once


class ScoreFile:
    """Scores float32 [R, C] in a temporary file, as a context manager. All are appended before any is read.

    The file stands in the folder that TMPDIR names and has no name of its own, so that the system takes it back
    however the process ends. InputError where it cannot be written.
    """

    def __init__(self, classes: int):
        self.regions, self.classes = 0, classes
        with _writing():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> "ScoreFile":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # what the full disk did not take is flushed once more
            self._file.close()

    def append(self, scores: Tensor) -> None:
        """Add the rows of further regions, float32 [n, C] on the CPU."""
        with _writing():
            self._file.write(scores.contiguous().numpy())
        self.regions += len(scores)

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """The scores of all regions from the first on, a part at a time, [n, C]; the next takes its place."""
        block = torch.empty(max(1, BLOCK // (4 * self.classes)), self.classes)
        with _writing():
            self._file.seek(0)  # writes what is left in the buffer
        for start in range(0, self.regions, len(block)):
            rows = block[: self.regions - start]
            self._file.readinto(rows.numpy())
            yield slice(start, start + len(rows)), rows

    def columns(self) -> Iterator[tuple[int, Tensor]]:
        """Every class and its scores for all regions, [R], in the order of the classes."""
        width = max(1, CHUNK // (4 * max(1, self.regions)))
        for start in range(0, self.classes, width):
            classes = range(start, min(start + width, self.classes))
            chunk = torch.empty(len(classes), self.regions)
            for which, rows in self.rows():
                chunk[:, which] = rows[:, classes.start : classes.stop].T
            yield from zip(classes, chunk, strict=True)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Turn a failure to write into an InputError."""
    try:
        yield
    except OSError as error:
        trouble = f"the scores of the evaluation cannot be written ({error.strerror or error})"
        where = tempfile.tempdir or "TMPDIR"  # None where no folder can be written
        raise InputError(where, trouble, "make room, or let TMPDIR name a folder with room") from error
