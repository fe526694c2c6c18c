"""Which signals stop, and how Ctrl-C is told from what looks like it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mtlcore.system import HANGUP, STOPPING, handled, interrupts_noticed

pytestmark = pytest.mark.skipif(HANGUP is None, reason="this platform has no SIGHUP")


def test_a_terminal_that_goes_stops_like_sigterm() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with handled(lambda number, _frame: got.append(number)):
            for number in STOPPING:
                os.kill(os.getpid(), number)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert got == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def test_nohup_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(pytest.fail):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("interruptible")
def test_somebodys_interrupt_is_told_from_a_programs_own() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_noticed() as noticed:
        raise KeyboardInterrupt
    assert not noticed
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts_noticed() as noticed:
        os.kill(os.getpid(), signal.SIGINT)
    assert noticed
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_left_alone() -> None:
    seen: list[list[int]] = []

    def work() -> None:
        with interrupts_noticed() as noticed, handled(pytest.fail):
            seen.append(noticed)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]]
