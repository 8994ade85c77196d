"""The lock across processes, also if its file is removed, as `destroy` does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from stack.machine.lock import exclusive


def test_a_process_that_waited_for_a_removed_lock_takes_the_current_one(tmp_path: Path) -> None:
    lock, held, done = tmp_path / "stack.lock", threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with exclusive(lock):
            held.set()
            done.wait(10)

    second = threading.Thread(target=wait_for_it)
    with exclusive(lock):
        second.start()
        while _waiting(lock) == 0:
            assert not held.is_set()
        lock.unlink()
    assert held.wait(10)
    with pytest.raises(BlockingIOError), exclusive(lock, patient=False):
        pytest.fail("two hold one lock")
    done.set()
    second.join(10)


def _waiting(lock: Path) -> int:
    """How many wait for a lock: proc(5) marks them with an arrow."""
    inode = f":{lock.stat().st_ino} "
    return sum("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())
