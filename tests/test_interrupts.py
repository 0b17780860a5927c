"""Which handlers stand when: after a noted signal nothing raises any more, and what was there comes back."""

import os
import signal

import pytest

from irnet.interrupts import Stopped, deferred, raising


@pytest.fixture(autouse=True)
def handlers():
    """Default ones, whatever whoever runs the tests has left ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield dict.fromkeys(before, signal.SIG_DFL)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_raises_where_the_program_is():
    with pytest.raises(Stopped, match="SIGTERM"), raising():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, "the program ends now"


def test_after_a_noted_signal_a_further_one_raises_nowhere():
    """Not between the end of `deferred` and that of `raising` either, where whatever happens to run would print it."""
    reached = False
    with pytest.raises(Stopped, match="SIGINT: kept"), raising():
        try:
            with deferred() as request:
                os.kill(os.getpid(), signal.SIGINT)
                request.obey("kept")
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            reached = True
    assert reached


def test_without_a_signal_everything_is_as_before(handlers):
    with raising():
        outer = signal.getsignal(signal.SIGINT)
        with deferred() as request:
            assert signal.getsignal(signal.SIGINT) is not outer
        assert signal.getsignal(signal.SIGINT) is outer and request.number is None
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_in_a_program_of_ones_own_its_handlers_come_back(handlers):
    with pytest.raises(Stopped), deferred() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        request.obey()
    assert {number: signal.getsignal(number) for number in handlers} == handlers
