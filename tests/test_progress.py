"""Progress: lines where ten seconds would pass in silence, nothing for short work, figures that fit a terminal."""

import contextlib
import io
import logging
import os
import sys
import termios
import threading

import pytest
from tqdm import tqdm

from irnet import progress
from irnet.errors import InputError
from irnet.progress import Progress, duration, tracked


class Clock:
    """A clock that only a test moves; as the event that `_watch` waits for, it lets that time pass."""

    def __init__(self):
        self.now = self.until = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        """Whether the work ends before `seconds` have passed."""
        self.now += min(seconds, max(0.0, self.until - self.now))
        return self.now >= self.until

    def pass_(self, seconds: float) -> None:
        """Let the watching thread's time pass."""
        self.until = self.now + seconds
        progress._watch(self)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "clock", clock)
    return clock


def test_a_line_every_ten_seconds_says_what_is_done(clock, caplog):
    caplog.set_level(logging.INFO, "irnet")
    with Progress("evaluation", 100, "image") as bar:
        for seconds in (8, 2, 2, 2):
            clock.now += seconds
            bar.update(10)
        clock.pass_(12)
        bar.note("50 regions/s")
        clock.pass_(12)
    # The first update, which may have compiled, does not count; the thirty images after it took six seconds.
    first = "evaluation: 40 of 100 images, 0.2 s an image, 12 s left"
    assert caplog.messages == [first, f"{first} (50 regions/s)"]


def test_short_work_is_silent(clock, caplog, capsys):
    caplog.set_level(logging.INFO, "irnet")
    with Progress("train"), Progress("evaluation", 100, "image") as bar:
        clock.pass_(9.9)
        bar.update()
    assert not caplog.messages and capsys.readouterr() == ("", "")


def test_one_long_call_is_told_of(clock, caplog):
    caplog.set_level(logging.INFO, "irnet")
    with Progress("train"):
        clock.pass_(4)
        with Progress("opening data/coco, train"):
            clock.pass_(31)
        clock.pass_(10.5)
    opening, train = "opening data/coco, train: at work for ", "train: at work for "
    assert caplog.messages == [f"{opening}{n} s" for n in (10, 20, 30)] + [f"{train}45 s"]


def test_silence_adds_up_over_short_parts(clock, caplog):
    """Parts of nine seconds each are short; a command that consists of them is not."""
    caplog.set_level(logging.INFO, "irnet")
    parts = [Progress("opening")]

    class Ended:
        def wait(self, seconds: float) -> bool:
            for _ in range(int(seconds)):
                clock.now += 1
                if clock.now in (1009, 1018):
                    parts.pop().__exit__()
                    parts.append(Progress(f"part from {clock.now:.0f}").__enter__())
            return clock.now >= 1025

    with Progress("train"):
        parts[0].__enter__()
        progress._watch(Ended())
        parts[0].__exit__()
    assert caplog.messages == ["part from 1009: at work for 1 s", "part from 1018: at work for 2 s"]


def test_a_line_of_the_log_breaks_the_silence_too(clock, caplog):
    caplog.set_level(logging.INFO, "irnet")
    times = []
    with Progress("training", 300, "step"):
        log = logging.getLogger("irnet")

        class Ended:
            def wait(self, seconds: float) -> bool:
                for _ in range(int(seconds)):
                    clock.now += 1
                    if clock.now == 1006:
                        log.info("step 20 of 300")
                times.append(clock.now - 1000)
                return clock.now > 1025

        progress._watch(Ended())
    assert times[:2] == [10, 16] and caplog.messages[:2] == ["step 20 of 300", "training: 0 of 300 steps after 16 s"]


def test_the_thread_tells_and_ends(monkeypatch, caplog):
    monkeypatch.setattr(progress, "SILENCE", 0.01)
    told = threading.Event()
    monkeypatch.setattr(progress.log, "info", lambda *arguments: told.set())
    alive = lambda: [t for t in threading.enumerate() if t.name == "irnet progress"]  # noqa: E731
    with Progress("compiling"):
        assert told.wait(60) and len(alive()) == 1
    assert not alive()
    with pytest.raises(ValueError), Progress("compiling"), Progress("a part"):
        assert len(alive()) == 1
        raise ValueError
    assert not alive() and not progress._at_work


def test_a_log_that_cannot_be_written_ends_no_thread(clock, monkeypatch):
    told = []

    def fails(*arguments):
        told.append(arguments)
        raise InputError("log.txt", "cannot be written", "make room")

    monkeypatch.setattr(progress.log, "info", fails)
    with Progress("training", 300, "step"):
        clock.pass_(25)
    assert len(told) == 2


def test_hidden_work_shows_nothing(clock, caplog):
    caplog.set_level(logging.INFO, "irnet")
    with Progress("scenes", 8, "image", hidden=True):
        clock.pass_(25)
    assert not caplog.messages


def test_tracked(clock, caplog):
    caplog.set_level(logging.INFO, "irnet")
    assert list(tracked([1, 2, 3], "pictures", "image")) == [1, 2, 3]
    for item in tracked([1, 2, 3], "pictures", "image"):
        if item == 3:
            clock.pass_(11)
        clock.now += 3
    assert caplog.messages == ["pictures: 2 of 3 images, 3 s an image, 3 s left"] and not progress._at_work


def test_a_forked_process_has_nothing_at_work():
    with Progress("train"):
        child = os.fork()
        if not child:
            os._exit(len(progress._at_work))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and len(progress._at_work) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (99 * 60, "99 min"), (6000, "1 h 40 min"), (172_799, "2 d 0 h"),
        (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text


# ---------------------------------------------------------------------------------------------------- on a terminal


@contextlib.contextmanager
def terminal(monkeypatch):
    """Standard error is a terminal of 80 columns; gives a function that reads what was written there."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    # Not in a fixture: between its phases pytest puts its own stream in this place.
    with open(theirs, "w") as stream, open(ours, "rb", buffering=0) as reader, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)

        def written() -> str:
            stream.flush()
            return reader.read(1 << 16).decode()

        yield written


def test_the_bar_keeps_its_figures_at_80_columns(monkeypatch):
    with terminal(monkeypatch), Progress("training", 320_000, "step", done=123_000) as bar:
        bar.note("loss 13.123, 123.4 img/s")
        assert bar._bar.format_dict["ncols"] in (79, 80)
        long_run = {"n": 123_456, "elapsed": 5000.0, "rate": 0.09, "ncols": 80}
        text = tqdm.format_meter(**bar._bar.format_dict | long_run)
    assert len(text) <= 80 and text.startswith("training: 123456/320000|")
    assert text.endswith("| 11.11s/step, 606:37:02 left, loss 13.123, 123.4 img/s")


def test_a_bar_takes_the_place_of_lines(monkeypatch, clock, caplog):
    caplog.set_level(logging.INFO, "irnet")
    with terminal(monkeypatch) as written:
        with Progress("evaluation", 100, "image") as bar:
            assert bar.visible
            clock.pass_(25)
            with Progress("figures of 300 regions"):
                clock.pass_(10.5)
        assert "evaluation: 0/100|" in written()
    assert caplog.messages == ["figures of 300 regions: at work for 10 s"]


def test_without_a_terminal_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress("evaluation", 100, "image") as bar:
        bar.update(50)
        assert not bar.visible
    assert sys.stderr.getvalue() == ""
