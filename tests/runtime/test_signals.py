"""Signals that end a run after the work at hand."""

import signal
import threading

import pytest

from ssd.runtime.signals import stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_listed_and_the_block_goes_on(number):
    before = signal.getsignal(number)
    with stop_signals() as received:
        assert received == []
        signal.raise_signal(number)
        assert received == [number]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as received:
        signal.raise_signal(signal.SIGTERM)  # as torchrun passes Ctrl-C on
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGTERM, signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_has_no_handlers():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with stop_signals() as received:
            seen.append((list(received), signal.getsignal(signal.SIGINT)))
        try:
            with stop_signals():
                raise OSError("a.jpg")
        except OSError as error:
            seen.append(error.__context__)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], before), None]  # an error of the block has no other one before it
