"""Threads take turns at PyTorch's generator."""

from __future__ import annotations

import contextvars
import threading

from meshwright.draws import Turns


def ran(thread: threading.Thread, seconds: float) -> bool:
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_another_thread_waits_until_the_turn_is_over() -> None:
    turns, seen = Turns(), []

    def other() -> None:
        with turns:
            seen.append("other")

    thread = threading.Thread(target=other)
    with turns:
        with turns:
            assert not ran(thread, 0.2)
        seen.append("holder")
    thread.join(30)
    assert seen == ["holder", "other"]


def test_a_thread_that_works_for_the_holder_takes_part() -> None:
    turns, seen = Turns(), []

    def helper() -> None:
        with turns:
            seen.append("helper")

    with turns:
        context = contextvars.copy_context()
        assert ran(threading.Thread(target=context.run, args=(helper,)), 30)
        seen.append("holder")
    assert seen == ["helper", "holder"]
    assert ran(threading.Thread(target=helper), 30)  # the turn was given back
