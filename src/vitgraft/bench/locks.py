"""One job, one process: a lock that the system frees when its process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common.errors import WorkError

TRIES, PAUSE = 5, 0.02  # seconds; `is_held` takes a free lock for an instant, which must not look like a running job


@contextmanager
def held(path: Path, owner: str = "") -> Iterator[bool]:
    """Whether the lock `path` was free; if so it is held, and says who by, until the block ends.

    The file stays: removing it would let two processes hold two files of one name. WorkError where the file system
    has no locks (flock).
    """
    with open(path, "a+b", buffering=0) as file:
        taken = any(_take(file.fileno(), path, attempt) for attempt in range(TRIES))
        if not taken:
            yield False
            return
        try:
            file.truncate(0)
            file.write(owner.encode())
            yield True
            file.truncate(0)
        finally:
            # Not left to `close`: processes that were forked meanwhile hold the same open file.
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process is in a block of the same lock `path`, then keeps others out until its own ends."""
    while True:
        with held(path) as free:
            if free:
                yield
                return


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        if not _take(file.fileno(), path, 0):
            return True
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
        return False


def left_by(folder: Path, owner: str) -> list[str]:
    """The names of the locks that a process held when it was killed."""
    return [path.name for path in sorted(folder.iterdir()) if is_left_by(path, owner)]


def is_left_by(path: Path, owner: str) -> bool:
    """Whether the lock says that this process holds it, or held it when it was killed."""
    return path.read_bytes() == owner.encode()


def _take(descriptor: int, path: Path, attempt: int) -> bool:
    if attempt:
        time.sleep(PAUSE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise WorkError(
            f"{path} could not be locked ({os.strerror(error.errno or 0)}), which keeps two processes from one run: "
            "choose a folder on a file system with locks."
        ) from error
    return True
