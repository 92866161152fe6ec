"""One job, one process: a lock that the system frees when its process dies, however it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..common.errors import WorkError

WAIT, PAUSE = 0.1, 0.02  # seconds; `is_held` takes a free lock for an instant, which must not look like a running job
OWNER = ".owner"  # a file beside the lock, which no other process could read on Windows while it is held


@contextmanager
def held(path: Path, owner: str = "") -> Iterator[bool]:
    """Whether the lock `path` was free; if so it is held, and says who by, until the block ends.

    WorkError where the file system has no locks.
    """
    lock = _taken(path, WAIT)
    if lock is None:
        yield False
        return
    said = path.with_name(path.name + OWNER)
    try:
        said.write_text(owner, encoding="utf-8")
        yield True
        said.unlink(missing_ok=True)
    finally:
        lock.release()


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
    lock = _taken(path, 0)
    if lock is not None:
        lock.release()
    return lock is None


def left_by(folder: Path, owner: str) -> list[str]:
    """The names of the locks that a process held when it was killed."""
    paths = (path.with_suffix("") for path in sorted(folder.glob(f"*{OWNER}")))
    return [path.name for path in paths if is_left_by(path, owner)]


def is_left_by(path: Path, owner: str) -> bool:
    """Whether the lock says that this process holds it, or held it when it was killed."""
    said = path.with_name(path.name + OWNER)
    return said.is_file() and said.read_text(encoding="utf-8") == owner


def _taken(path: Path, seconds: float) -> FileLock | None:
    """The lock, held, if it became free within so many seconds."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds, poll_interval=PAUSE)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        raise WorkError(
            f"{path} could not be locked ({error}), which keeps two processes from one run: choose a folder on a file "
            "system with locks."
        ) from error
    return lock
