"""How far long work is: a bar on a terminal, and a line in the log wherever ten seconds would pass in silence.

A command is at work within one `Progress`, its parts within others inside it: the innermost one is told of. A thread
watches over the silence, so that it is broken within a single call that takes minutes, such as compiling, too.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .errors import InputError

SILENCE = 10.0  # seconds without a line in the log after which the work at hand says how far it is
# Where a terminal has 80 columns the drawn bar gives way, not the figures.
BAR = "{desc}{n_fmt}/{total_fmt}|{bar}| {rate_fmt}, {remaining} left{postfix}"

Item = TypeVar("Item")
log = logging.getLogger("irnet")
clock = time.monotonic

_at_work: list["Progress"] = []  # the innermost one last
_last_line = 0.0  # when the last line was logged
muted = False  # no further bar is shown
_saying = threading.Lock()  # no process is forked while the thread holds the locks of a stream


class Progress:
    """Work that may take long, as a context manager. Silent where it is short.

    what    names the work, such as "evaluation"
    total   how many units there are; None: one call, of which nobody knows how long it takes
    unit    what is counted, in the singular: image, step
    done    how many were done before, by an earlier run
    bar     draw a bar where standard error is a terminal
    leave   let the full bar stand at the end
    hidden  show neither a bar nor lines
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "",
        *,
        done: int = 0,
        bar: bool = True,
        leave: bool = False,
        hidden: bool = False,
    ):
        self.what, self.total, self.unit, self.hidden = what, total, unit, hidden or muted
        self.done = self.before = done
        self.figures = ""
        self.begin = self.latest = clock()
        self.first: tuple[float, int] | None = None  # when the first update was, and how much was done then
        self._ended, self._watch = threading.Event(), None
        self._redirected = contextlib.ExitStack()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=f"{what}: ",
            unit=unit,
            disable=None if bar and total is not None and not self.hidden else True,  # None: where there is no terminal
            dynamic_ncols=True,
            leave=leave,
            bar_format=BAR,
        )

    @property
    def visible(self) -> bool:
        """Whether a bar shows how far it is."""
        return not self._bar.disable

    def update(self, count: int = 1) -> None:
        """So many more units are done."""
        self.done, self.latest = self.done + count, clock()
        if self.first is None:
            self.first = self.latest, self.done
        self._bar.update(count)

    def note(self, figures: str) -> None:
        """A short text to show with the progress: the latest figures, or what is being worked on."""
        self.figures = figures
        self._bar.set_postfix_str(figures, refresh=False)

    @property
    def seconds_per_unit(self) -> float | None:
        """Seconds a unit; None before the first. The first does not count where there are others: it may compile."""
        if self.first is None or self.done == self.before:
            return None
        start, done = self.first if self.done > self.first[1] else (self.begin, self.before)
        return (self.latest - start) / (self.done - done)

    def line(self) -> str:
        """How far the work is, in one line of text."""
        if self.total is None:
            text = f"{self.what}: at work for {duration(clock() - self.begin)}"
        else:
            text = f"{self.what}: {self.done} of {self.total} {self.unit}s"
            if self.seconds_per_unit is None:
                text += f" after {duration(clock() - self.begin)}"
            else:
                text += f", {speed(self.seconds_per_unit, self.unit, self.total - self.done)}"
        return f"{text} ({self.figures})" if self.figures else text

    def __enter__(self) -> "Progress":
        global _last_line
        _at_work.append(self)
        if self.visible:
            self._redirected.enter_context(logging_redirect_tqdm())  # lines of the log above the bar, not through it
        if len(_at_work) == 1:
            _last_line = clock()
            self._watch = threading.Thread(target=_watch, args=(self._ended,), name="irnet progress", daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ValueError):  # in a forked process the list is empty
            _at_work.remove(self)
        self._bar.close()
        self._redirected.close()
        self._ended.set()
        if self._watch is not None:
            self._watch.join()


def tracked(items: Collection[Item], what: str, unit: str, bar: bool = True) -> Iterator[Item]:
    """The items, with their progress shown while they are worked on; `bar` as of `Progress`."""
    with Progress(what, len(items), unit, bar=bar) as progress:
        for item in items:
            yield item
            progress.update()


def speed(seconds_per_unit: float, unit: str, left: int) -> str:
    """Seconds a unit and the time that is left: "0.52 s a step, 12 min left"."""
    article = "an" if unit[:1] in "aeiou" else "a"
    return f"{seconds_per_unit:.3g} s {article} {unit}, {duration(seconds_per_unit * left)} left"


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _watch(ended: threading.Event) -> None:
    """Say how far the innermost work is whenever nothing was logged for SILENCE seconds."""
    wait = SILENCE
    while not ended.wait(wait):
        wait = SILENCE - (clock() - _last_line)
        if wait <= 0:
            _say()
            wait = SILENCE


def _say() -> None:
    shown = [progress for progress in _at_work if not progress.hidden]
    # A log that cannot be written, on a full disk, is for the work itself to tell.
    with _saying, contextlib.suppress(InputError):
        if shown and not shown[-1].visible:
            log.info("%s", shown[-1].line())


def _note_line(record: logging.LogRecord) -> bool:
    global _last_line
    _last_line = clock()
    return True


def _in_child() -> None:
    _at_work.clear()  # the thread was not forked
    _saying.release()


log.addFilter(_note_line)
os.register_at_fork(before=_saying.acquire, after_in_parent=_saying.release, after_in_child=_in_child)
