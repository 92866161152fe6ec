"""What a data set holds under keys, read by worker processes where these are worth their start."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..common.errors import RequestError, WorkError

Lists = Sequence[Sequence[Any]]

# Seconds that a process takes to start: as a copy of this one, or, as on Windows and macOS, with the import of torch.
STARTS = {"fork": 0.1}
STARTS_ANEW = 5.0


class Reader:
    """Gives for each list of keys, in order, what the data set holds under them, put together by `collate`.

    This process reads by itself until that has taken, or is about to take, as long as others take to start. Those that
    start then stay until `close`, so that no epoch waits for them again. Who reads changes nothing that is read.

    dataset: at module level, as all that starts anew must import it. workers: how many processes; 0: this one alone.

    RequestError for fewer than 0.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any], workers: int) -> None:
        if workers < 0:
            raise RequestError(
                f"{workers} worker processes were asked for, but 0 means this process alone; give 0 or more"
            )
        self._dataset, self._collate, self._workers = dataset, collate, workers
        self._lists = _Lists()
        self._loader: DataLoader[Any] | None = None
        self._spent = 0.0  # seconds that this process has read

    def __call__(self, lists: Lists) -> Iterator[Any]:
        """WorkError where a worker process was killed."""
        spent = 0.0  # of these lists alone
        for done, keys in enumerate(lists):
            left = len(lists) - done
            if self._are_worth_it(spent / done * left if done else 0.0):
                yield from self._by_workers(lists[done:])
                return
            begun = time.monotonic()
            made = self._collate([self._dataset[key] for key in keys])
            took = time.monotonic() - begun
            spent += took
            self._spent += took
            yield made

    def close(self) -> None:
        """Ends the processes; they start again when they are needed."""
        self._loader, self._spent = None, 0.0

    def _are_worth_it(self, to_come: float) -> bool:
        if not self._workers or self._loader is not None:
            return bool(self._workers)
        # Asked so, it may still be chosen afterwards.
        way = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
        return self._spent + to_come >= STARTS.get(way, STARTS_ANEW)

    def _by_workers(self, lists: Lists) -> Iterator[Any]:
        n = min(self._workers, len(lists))
        if self._loader is None or self._loader.num_workers < n:
            self._loader = DataLoader(
                self._dataset,
                batch_sampler=self._lists,  # type: ignore[arg-type]  # any sized iterable of lists of keys serves
                collate_fn=self._collate,
                num_workers=n,  # the DataLoader gives each one torch thread
                persistent_workers=True,
                # A DataLoader draws a seed for its workers: from the global generator, that would make a run that
                # streams differ from one that keeps its pixels.
                generator=torch.Generator(),
            )
        self._lists.now = lists
        try:
            yield from self._loader
        except RuntimeError as error:
            self.close()
            if "DataLoader worker" not in str(error):
                raise
            raise WorkError(
                f"pictures were to be decoded by {self._workers} worker processes, but one was killed ({error}); "
                "give them more memory (in a container: shared memory), or decode in one process with --workers 0"
            ) from error


class _Lists:
    """Those that are to be read now."""

    now: Lists = ()

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)
