"""Items are sent in batches by a thread of their own, and `add` never waits."""

from __future__ import annotations

import threading
import time

import pytest
from support.waiting import until

from chassis.telemetry import otlp


async def test_items_are_sent_together_after_the_delay() -> None:
    sent: list[list[int]] = []
    sender = otlp.BatchSender("test", sent.append, 0.1)
    for number in range(5):
        sender.add(number)
    assert sent == []
    await until("they are sent", lambda: bool(sent))
    sender.add(5)
    await until("the next one is sent", lambda: len(sent) == 2)
    assert sent == [[0, 1, 2, 3, 4], [5]]
    sender.close()


async def test_a_full_batch_does_not_wait() -> None:
    sent: list[list[int]] = []
    sender = otlp.BatchSender("test", sent.append, 60)
    for number in range(512):
        sender.add(number)
    await until("they are sent", lambda: bool(sent))
    sender.close()
    assert [number for batch in sent for number in batch] == list(range(512))


def test_closing_sends_what_is_left() -> None:
    sent: list[list[int]] = []
    sender = otlp.BatchSender("test", sent.append, 60)
    for number in range(1000):
        sender.add(number)
    sender.close()
    sender.add(1000)
    assert [number for batch in sent for number in batch] == list(range(1000))


def lost(signal: str) -> int:
    """What the metric `telemetry.lost` counts for a signal."""
    point = otlp._lost.series({"signal": signal}).point(0)
    return int(point.value) if point else 0


def test_a_receiver_that_hangs_delays_no_call_and_the_rest_is_dropped() -> None:
    gate, sent = threading.Event(), list[list[int]]()

    def send(batch: list[int]) -> None:
        gate.wait()
        sent.append(batch)

    sender = otlp.BatchSender("hanging", send, 0)
    began = time.monotonic()
    for number in range(20_000):
        sender.add(number)
    assert time.monotonic() - began < 2
    gate.set()
    sender.close()
    kept = sum(len(batch) for batch in sent)
    assert 2048 <= kept <= 2048 + 512
    assert lost("hanging") == 20_000 - kept


async def test_a_batch_that_fails_is_lost_and_counted_and_the_next_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[list[int]] = []

    def send(batch: list[int]) -> None:
        if batch != [9]:
            raise ValueError("receiver")
        sent.append(batch)

    sender = otlp.BatchSender("failing", send, 0)
    for number in (0, 1):
        sender.add(number)
        await until("it is lost", lambda number=number: lost("failing") == number + 1)
    sender.add(9)
    await until("the next is sent", lambda: sent == [[9]])
    sender.close()
    assert [record.message for record in caplog.records] == [
        "telemetry is lost until the receiver takes it again: receiver"
    ]


def test_no_item_of_several_threads_is_lost() -> None:
    sent: list[int] = []
    sender = otlp.BatchSender("test", sent.extend, 0)

    def add(offset: int) -> None:
        for number in range(500):
            sender.add(offset + number)
            time.sleep(0.00001)

    threads = [threading.Thread(target=add, args=(offset,)) for offset in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends_at = time.monotonic() + 20
    while len(sent) < 1500 and time.monotonic() < ends_at:  # without `close`: none may be left behind
        time.sleep(0.01)
    assert len(set(sent)) == 1500
    sender.close()
