"""Small pieces of work side by side, each on one thread.

The layers of a side network are too small to be shared among threads: on two, a product of them is handed out and
waited for in the time that one would take to compute it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


class Workers:
    """As many threads as one sum is cut among, each of which computes alone; other threads go on as they were."""

    def __init__(self) -> None:
        n = torch.get_num_threads()
        ready = threading.Barrier(n + 1)

        def begin() -> None:
            torch.set_num_threads(1)  # of this thread, and of those that begin after it
            torch.get_num_threads()  # until a thread has asked, it takes what was set last, by whomsoever
            ready.wait()

        self._pool = ThreadPoolExecutor(n, "vitgraft-worker", begin)
        for _ in range(n):
            self._pool.submit(int)  # a thread begins with its first piece of work
        ready.wait()
        torch.set_num_threads(n)  # of those that begin from here on

    def begun(self, work: Callable[[], T]) -> Future[T]:
        """A piece of work, begun when a thread is free."""
        return self._pool.submit(work)

    def close(self) -> None:
        self._pool.shutdown()
