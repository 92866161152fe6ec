"""What a server has under way: counted, bounded, and done off the loop."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..common.errors import RequestError, VitgraftError
from .asked import Limits, Sent, check_picture
from .stored import Stored

SIZES = (1, 2, 4, 8, 16, 32, 64)


class Work:
    """What a server has under way: counted, bounded, and done off the loop."""

    def __init__(self, stored: Stored, limits: Limits) -> None:
        self.stored, self.limits = stored, limits
        self.waiting = 0
        self._each = 0.05  # seconds that a picture and a task take, of late
        # As many threads as may wait, since each waits in one; decoding is what keeps the processor busy in them.
        self._threads = ThreadPoolExecutor(min(limits.waiting, 32), "vitgraft-serve")
        self._changing, self._lock = asyncio.Lock(), threading.Lock()
        self.registry = CollectorRegistry()
        self.latency = Histogram(
            "vitgraft_latency_seconds",
            "From a request that has arrived to its answer.",
            ["tasks"],
            registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.answered = Counter("vitgraft_answers", "Pictures answered.", ["task"], registry=self.registry)
        self.refused = Counter("vitgraft_refusals", "Requests refused, by status.", ["status"], registry=self.registry)
        gauge = Gauge("vitgraft_waiting", "Pictures times tasks under way.", registry=self.registry)
        gauge.set_function(lambda: self.waiting)
        self.registry.register(_Batches(stored))

    def close(self) -> None:
        """Answers what was taken."""
        self._threads.shutdown()
        self.stored.close()

    async def change(self, do: Callable[..., Any], *given: Any) -> Any:
        """One change of the bank after the other."""
        async with self._changing:
            return await run_in_threadpool(_sentences, do, *given)

    async def ask(self, sent: list[Sent], names: list[str], draw: bool) -> list[dict[str, Any]]:
        """What the tasks say of each picture; 429 where too much is under way, 504 where it takes too long."""
        if not names:
            raise HTTPException(404, "The bank holds no task yet: put one into it.")
        cost = len(sent) * len(names)
        if cost > self.limits.waiting:
            most = self.limits.waiting
            raise HTTPException(
                413, f"{len(sent)} pictures times {len(names)} tasks are more than {most}: ask in parts."
            )
        with self._lock:
            if self.waiting + cost > self.limits.waiting:
                again = {"Retry-After": str(max(1, math.ceil(self.waiting * self._each)))}
                raise HTTPException(429, f"{self.waiting} questions are under way: ask again later.", again)
            self.waiting += cost
        began = time.perf_counter()
        doing = self._threads.submit(self._answer, sent, names, draw)
        doing.add_done_callback(lambda _: self._done(cost, began))
        try:
            found = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(doing)), self.limits.seconds)
        except asyncio.TimeoutError as error:
            raise HTTPException(504, f"No answer within {self.limits.seconds:g} seconds: ask again later.") from error
        self.latency.labels("1" if len(names) == 1 else "several").observe(time.perf_counter() - began)
        for name in names:
            self.answered.labels(name).inc(len(sent))
        return found

    def _done(self, cost: int, began: float) -> None:
        with self._lock:
            self._each += 0.1 * ((time.perf_counter() - began) / self.waiting - self._each)
            self.waiting -= cost

    def _answer(self, sent: list[Sent], names: list[str], draw: bool) -> list[dict[str, Any]]:
        for each in sent:
            check_picture(each, self.limits)
        found = self.stored.answer([each.content for each in sent], [each.name for each in sent], names, draw)
        return [{"picture": each.name, "tasks": of} for each, of in zip(sent, found, strict=True)]


class _Batches:
    """How many pictures passed the backbone at once, as a histogram of Prometheus."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored

    def collect(self) -> Any:
        passes = dict(self._stored.bank.passes)
        family = HistogramMetricFamily("vitgraft_batch_size", "Places of a batch that were filled, of each pass.")
        buckets = [(str(size), float(sum(n for of, n in passes.items() if of <= size))) for size in SIZES]
        family.add_metric(
            [], [*buckets, ("+Inf", float(sum(passes.values())))], sum(of * n for of, n in passes.items())
        )
        yield family


def _sentences(do: Callable[..., Any], *given: Any) -> Any:
    """What an adapter that is no adapter of ours may raise, as the client's fault."""
    try:
        return do(*given)
    except VitgraftError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise RequestError(f"The adapter cannot be loaded ({type(error).__name__}: {str(error)[:200]}).") from error
