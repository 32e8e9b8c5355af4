"""Ctrl-C stops once, in order."""

import os
import signal
from collections.abc import Iterator

import pytest

from arborist.cli.stop_signals import StopSignals


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Puts the handlers of the test run back."""
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_and_later_ones_do_not(number: signal.Signals) -> None:
    """Either signal; the stop that follows is not cut off by the next one."""
    StopSignals()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)

    os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_signals_can_be_taken_over_again() -> None:
    """A library that sets its own handlers does not keep them."""
    signals = StopSignals()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals.take_over()

    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
