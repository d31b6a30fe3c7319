"""Signals: the first asks, a second SIGINT stops, and where nobody listens nothing changes."""

import os
import signal
import threading

import pytest

from u2a import interruption


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_the_next_check_stops(number, capfd):
    interruption.check()
    with interruption.listening():
        assert not interruption.asked()
        send(number)
        assert interruption.asked()
        assert "finishing the current step" in capfd.readouterr().err
        with pytest.raises(interruption.Interrupted):
            interruption.check()
    assert not interruption.asked()
    interruption.check()


def test_a_second_sigint_stops_at_once():
    with interruption.listening(quiet=True):
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # supervisors repeat it
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_handlers_are_back_after():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interruption.listening():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_in_another_thread_nothing_happens():
    done = []

    def work():
        with interruption.listening():
            done.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [before]
