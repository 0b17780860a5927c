"""Signals that ask a program to end: the first is obeyed in order, a second one at once. Saves nothing itself."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Ctrl-C; what batch systems, containers and shutdowns send; what a closing terminal sends.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 1.0  # seconds after a signal in which another is the same one: timeout signals a program and then its group


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end; the text says what has become of its work."""

    def __init__(self, number: int, text: str = "ended before it was done"):
        super().__init__(f"{signal.Signals(number).name}: {text}")
        self.number, self.text = number, text

    def __reduce__(self):
        # Exception's own pickling would call __init__ with the one finished message.
        return type(self), (self.number, self.text)


@dataclass
class Request:
    """The signal that has asked for an end, None as long as there was none."""

    number: int | None = None

    def obey(self, text: str = "ended before it was done") -> None:
        """Raise `Stopped` if an end was asked for."""
        if self.number is not None:
            raise Stopped(self.number, text)


@contextlib.contextmanager
def raising(ends: bool = True) -> Iterator[None]:
    """While it lasts a signal raises `Stopped` wherever the program is; it ends at once by any further one.

    ends  the program ends after a stop: signals are ignored from then on, which would print a traceback while the
          interpreter ends, or take the exit code's place
    """

    def stop(number: int, frame: object) -> None:
        _set(dict.fromkeys(before, _second()))
        raise Stopped(number)

    stop.raises = True
    before, stopped = _set(dict.fromkeys(_ours(), stop)), False
    try:
        yield
    except KeyboardInterrupt:
        stopped = True
        raise
    finally:
        _set(dict.fromkeys(before, signal.SIG_IGN) if stopped and ends else before)


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
    """While it lasts the first signal is only noted in the `Request`; the program ends at once by a second.

    Within `raising` that holds until its end: once an end was asked for, nothing raises where it happens to be, such as
    in a callback of the garbage collector, whose exceptions are printed and forgotten.
    """
    request = Request()

    def note(number: int, frame: object) -> None:
        _set(dict.fromkeys(before, _second()))
        request.number = number
        if os.isatty(2):
            os.write(2, b"\nending after this step; a second signal ends at once\n")

    before = _set(dict.fromkeys(_ours(), note))
    try:
        yield request
    finally:
        ending = request.number is not None and any(getattr(handler, "raises", False) for handler in before.values())
        if not ending:
            _set(before)


def _ours() -> list[int]:
    """The signals to handle: not those that whoever started the program wants ignored, as nohup does."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]


def _set(handlers: dict[int, Callable | int]) -> dict[int, Callable | int]:
    """Set handlers and return those that were there."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def _second() -> Callable:
    """A handler, made at the first signal, that ends the program at once. For GRACE seconds it does nothing."""
    begin = time.monotonic()

    def end_at_once(number: int, frame: object) -> None:
        if time.monotonic() - begin < GRACE:
            return
        for child in multiprocessing.active_children():
            child.kill()
        os.write(2, f"irnet: ended at once by a second {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    return end_at_once
