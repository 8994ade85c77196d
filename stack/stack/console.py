"""Output for a person at the terminal: steps, progress, and errors with their reason and the next step."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class StackError(Exception):
    """A failed step: `what` failed, `why`, and what to do next; shown without a traceback."""

    def __init__(self, what: str, why: str, next_step: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why, self.next_step = what, why, next_step

    def show(self) -> None:
        """Prints the three lines to standard error."""
        print(f"\nfailed: {self.what}\n   why: {self.why}\n  next: {self.next_step}", file=sys.stderr)


def say(text: str = "") -> None:
    """Prints a line without buffering, also into a pipe."""
    print(text, flush=True)


def table(heading: Sequence[object], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yields the lines of a table, whose columns are as wide as their longest cell."""
    texts = [[str(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


@contextmanager
def step(title: str, usually: str = "") -> Iterator[Step]:
    """Prints one line for a step; a terminal updates it while the step runs, elsewhere a line follows every 15 s."""
    current = Step(title, usually)
    current.start()
    try:
        yield current
    except BaseException:
        current.finish("failed")
        raise
    current.finish(current.result or "done")


class Step:
    """A running step; `detail` is shown while it runs and `result` when it is done."""

    def __init__(self, title: str, usually: str) -> None:
        self.title, self.usually = title, usually
        self.detail, self.result = "", ""
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def start(self) -> None:
        self._ticker.start()

    def note(self, text: str) -> None:
        """Prints a line below the step while it runs."""
        say(f"{_clear()}    {text}")

    def finish(self, result: str) -> None:
        self._stop.set()
        self._ticker.join()
        say(f"{_clear()}  {self.title:<34} {result}  ({self._seconds():.1f} s)")

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _line(self) -> str:
        usual = f", usually {self.usually}" if self.usually else ""
        return f"  {self.title:<34} … {self._seconds():.0f} s{usual} {self.detail}"

    def _tick(self) -> None:
        terminal = sys.stdout.isatty()
        while not self._stop.wait(0.5 if terminal else 15):
            if terminal:
                sys.stdout.write(f"\r\x1b[K{self._line()[:110]}")
                sys.stdout.flush()
            else:
                say(self._line())


def _clear() -> str:
    """Returns the codes that empty the line of a terminal."""
    return "\r\x1b[K" if sys.stdout.isatty() else ""
