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

from chassis.telemetry.metrics import Counts

T = TypeVar("T")

_DELAY_SECONDS = 1.0
_BATCH_SIZE = 512
_QUEUE_SIZE = 2048
# gRPC's own backoff would leave out two minutes of telemetry after a longer outage of the receiver.
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_lost = Counts("telemetry.lost", "1", "spans and log records that were not exported")
# Records of this logger are not exported: each of them would be followed by another one.
_log = logging.getLogger(f"opentelemetry.{__name__}")


def channel(endpoint: str) -> grpc.Channel:
    """Returns a connection to the receiver at a URL; it is made when the first message is sent."""
    return grpc.insecure_channel(urlsplit(endpoint).netloc, _OPTIONS)


class BatchSender(Generic[T]):
    """Calls `send` with batches of the items that were added, a second after the first one or when a batch is full.

    It drops items while its queue is full, and those of a batch that cannot be sent; both are counted in the metric
    `telemetry.lost`. Its thread sleeps while there are none.
    """

    def __init__(self, name: str, send: Callable[[list[T]], object], delay: float = _DELAY_SECONDS) -> None:
        self._send = send
        self._delay = delay
        self._items: deque[T] = deque()
        self._any = threading.Event()
        self._due = threading.Event()
        self._closed = False
        self._fails = False
        self._lost = _lost.series({"signal": name})
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, item: T) -> None:
        """Queues an item; after `close` it is dropped."""
        waiting = len(self._items)
        if waiting >= _QUEUE_SIZE or self._closed:
            self._lost.add(1)
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
                self._fails = False
            except Exception as error:
                self._lost.add(len(batch))
                if not self._fails:
                    _log.warning("telemetry is lost until the receiver takes it again: %s", error)
                self._fails = True


def attributes(values: Mapping[str, object], longest: int | None = None) -> list[KeyValue]:
    """Returns attributes as messages, with texts of at most `longest` characters.

    That of a text or a whole number is made once and kept while it is in use.
    """
    return [_attribute(key, value, longest) for key, value in values.items()]


def _attribute(key: str, value: object, longest: int | None) -> KeyValue:
    if isinstance(value, str):
        return _kept(key, value[:longest])
    if isinstance(value, int):
        return _kept(key, value)
    return KeyValue(key=text(key), value=any_value(value, longest))


@lru_cache(maxsize=1024, typed=True)
def _kept(key: str, value: str | int) -> KeyValue:
    return KeyValue(key=text(key), value=any_value(value))


def text(value: str) -> str:
    """Returns a text that a message can hold: half characters, which UTF-8 does not have, are replaced."""
    return value if value.isascii() else value.encode(errors="replace").decode()


def any_value(value: object, longest: int | None = None) -> AnyValue:
    """Returns a value as a message: text, truth, number or a list of them; everything else as its text."""
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int() if -(2**63) <= value < 2**63:
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=text(value[:longest]))
        case Sequence() if not isinstance(value, bytes):
            return AnyValue(array_value=ArrayValue(values=[any_value(each, longest) for each in value]))
    return any_value(str(value), longest)
