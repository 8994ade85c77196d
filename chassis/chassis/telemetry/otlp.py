"""Sends items to an OTLP receiver, in batches and from a thread of its own; makes the messages of their attributes.

Invariant: `add` never waits. What the receiver does not take in time is lost.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

T = TypeVar("T")

_DELAY_SECONDS = 1.0
_BATCH_SIZE = 512
_QUEUE_SIZE = 2048


def channel(endpoint: str) -> grpc.Channel:
    """Returns a connection to the receiver at a URL; it is made when the first message is sent."""
    return grpc.insecure_channel(urlsplit(endpoint).netloc)


class BatchSender(Generic[T]):
    """Calls `send` with batches of the items that were added, a second after the first one or when a batch is full.

    It drops items while its queue is full. Its thread sleeps while there are none.
    """

    def __init__(self, name: str, send: Callable[[list[T]], object], delay: float = _DELAY_SECONDS) -> None:
        self._send = send
        self._delay = delay
        self._items: deque[T] = deque()
        self._any = threading.Event()
        self._due = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, item: T) -> None:
        """Queues an item; after `close` it is dropped."""
        waiting = len(self._items)
        if waiting >= _QUEUE_SIZE or self._closed:
            return
        self._items.append(item)
        # Always after the item: the thread clears both before it empties the queue.
        if not self._any.is_set():
            self._any.set()
        if waiting + 1 >= _BATCH_SIZE and not self._due.is_set():
            self._due.set()

    def close(self) -> None:
        """Sends the remaining items and waits for that."""
        self._closed = True
        self._due.set()
        self._any.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            self._any.wait()
            self._due.wait(self._delay)
            self._due.clear()
            self._any.clear()
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        while self._items:
            batch = [self._items.popleft() for _ in range(min(len(self._items), _BATCH_SIZE))]
            try:
                self._send(batch)
            except Exception:
                logging.getLogger(__name__).debug("a batch of telemetry is lost", exc_info=True)


def attributes(values: Mapping[str, object]) -> list[KeyValue]:
    """Returns attributes as messages; that of a text or a whole number is made once and kept while it is in use."""
    return [
        _kept(key, value) if isinstance(value, str | int) else KeyValue(key=key, value=any_value(value))
        for key, value in values.items()
    ]


@lru_cache(maxsize=1024, typed=True)
def _kept(key: str, value: str | int) -> KeyValue:
    return KeyValue(key=key, value=any_value(value))


def any_value(value: object) -> AnyValue:
    """Returns a value as a message: text, truth, number or a list of them; everything else as its text."""
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int() if -(2**63) <= value < 2**63:
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value.encode(errors="replace").decode())
        case Sequence() if not isinstance(value, bytes):
            return AnyValue(array_value=ArrayValue(values=[any_value(each) for each in value]))
    return any_value(str(value))
