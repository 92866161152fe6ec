"""A bank on a Ray cluster: replicas that hold the backbone, among which tasks are multiplexed by Ray Serve.

The cluster's head listens, and is to its clients what a single server is; it knows the tasks by their files' headers. A
question goes to a replica that has its first task in memory already, if there is one, and to another if that dies. All
machines see the bank's file, its folder and the runs.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from .. import tasks as kinds
from ..adapters import file as adapter
from ..adapters.run import Run
from ..common.errors import RequestError, VitgraftError, WorkError, near_misses
from .bank import Bank
from .shelf import check_name
from .stored import Stored, Told, asked

TRIES = 5  # of a question whose replica died
PAUSE = 0.5  # seconds between them
HEAD = "node:__internal_head__"  # a resource that the head of a cluster has
MOST = 64  # adapters in the memory of a replica


class Replica:
    """The backbone, and the tasks that were asked of it of late; each is known by what its file holds."""

    def __init__(self, backbone: str | None, first: str, options: Mapping[str, Any]) -> None:
        named = backbone or adapter.read(first)[1]["backbone"]["name"]
        self.bank = Bank(named, **options)
        self._files: dict[str, str] = {}
        self._lock = threading.Lock()

    @serve.multiplexed(max_num_models_per_replica=MOST)
    async def task(self, digest: str) -> _Held:
        """Ray keeps the tasks that were used last, and drops the others."""
        await asyncio.to_thread(self._add, digest)
        return _Held(self.bank, digest)

    def _add(self, digest: str) -> None:
        with self._lock:
            if digest not in self.bank:
                self.bank.add(digest, self._files[digest])

    async def answer(
        self, pictures: list[bytes], names: list[str], tasks: dict[str, tuple[str, str]], draw: bool
    ) -> list[Told] | VitgraftError:
        """tasks: name -> digest and file. What is wrong with a request is given back, not raised: Ray would wrap it."""
        try:
            self._files |= dict(tasks.values())
            held = [await self.task(digest) for digest, _ in tasks.values()]
            return await asyncio.to_thread(self._answer, pictures, names, tasks, draw, held)
        except VitgraftError as error:
            return WorkError(str(error)) if not isinstance(error, RequestError) else error

    def _answer(self, pictures: list[bytes], names: list[str], tasks: Any, draw: bool, held: list[_Held]) -> list[Told]:
        digests = list(dict.fromkeys(digest for digest, _ in tasks.values()))
        found = asked(self.bank, pictures, names, digests, draw)
        return [{name: of[digest] for name, (digest, _) in tasks.items()} for of in found]


class _Held:
    """A task in a replica's bank, until Ray lets go of it."""

    def __init__(self, bank: Bank, digest: str) -> None:
        self.bank, self.digest = bank, digest

    def __del__(self) -> None:
        if self.digest in self.bank:
            self.bank.drop(self.digest)


class Catalogue:
    """The tasks by their files' headers: what a `Bank` tells of itself, without a model in memory."""

    def __init__(self, backbone: str | None, adapters: Mapping[str, str | Path]) -> None:
        self._of: dict[str, tuple[str, dict[str, Any], Path]] = {}
        self.passes: Counter[int] = Counter()
        self.asked: Counter[str] = Counter()
        self._fingerprint = ""
        self.backbone = SimpleNamespace(name=backbone or "")
        for name, path in adapters.items():
            self.add(name, path)

    def add(self, name: str, path: str | Path) -> None:
        check_name(name)
        file = Run(path).file.absolute()
        header = adapter.read(file)[1]
        kinds.find(header["task"])
        named = header["backbone"]
        if self._fingerprint and named["fingerprint"] != self._fingerprint:
            raise RequestError(
                f"{file} was trained on {named['name']} (fingerprint {named['fingerprint'][:12]}), the others on "
                f"another backbone (fingerprint {self._fingerprint[:12]}): one bank has one backbone."
            )
        self._fingerprint = named["fingerprint"]
        self.backbone.name = self.backbone.name or named["name"]
        self._of[name] = (adapter.digest_of(file), header, file)

    replace = add

    def drop(self, name: str) -> None:
        del self._of[name]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted(self._of))

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def __len__(self) -> int:
        return len(self._of)

    def header(self, name: str) -> Mapping[str, Any]:
        return self.place(name)[1]

    def place(self, name: str) -> tuple[str, dict[str, Any], Path]:
        """A task's digest, header and file."""
        if name not in self._of:
            raise RequestError(f"The bank has no task {name!r:.120}: name another.{near_misses(name, self._of)}")
        return self._of[name]

    def table(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "task": header["task"],
                "method": header["method"],
                "classes": len(header["classes"]),
                "file_bytes": file.stat().st_size,
                "shares_pass": False,
                "asked": self.asked[name],
                "milliseconds": None,
            }
            for name, (_, header, file) in sorted(self._of.items())
        ]


class Spread(Stored):
    """The bank of a file, answered by replicas."""

    def __init__(self, file: str | Path, replicas: Any = None) -> None:
        self.replicas = replicas
        super().__init__(file)

    def made(self, backbone: Any, adapters: dict[str, str | Path], options: dict[str, Any]) -> Any:
        self.asked_for = backbone, options
        return Catalogue(backbone, adapters)

    def answer(self, pictures: Sequence[bytes], names: Sequence[str], tasks: Sequence[str], draw: bool) -> list[Told]:
        places = {name: self.bank.place(name) for name in tasks}
        wanted = {name: (digest, str(file)) for name, (digest, _, file) in places.items()}
        to = self.replicas.options(multiplexed_model_id=places[tasks[0]][0])
        for k in range(TRIES):
            try:
                found = to.answer.remote(list(pictures), list(names), wanted, draw).result()
                break
            except ray.exceptions.RayError as error:
                if k == TRIES - 1:
                    raise WorkError(f"No machine of the cluster could answer ({type(error).__name__}).") from error
                threading.Event().wait(PAUSE)
        if isinstance(found, VitgraftError):
            raise found
        self.bank.asked.update(tasks)
        return found

    def close(self) -> None:
        """Replicas end with the cluster's application."""


class Front:
    """The HTTP interface."""

    def __init__(self, replicas: Any, file: str, limits: Any, token: str) -> None:
        from .server import create

        self.app = create(Spread(file, replicas), limits, token)

    async def __call__(self, request: Request) -> Response:
        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(dict(request.scope), request.receive, send)
        headers = {k.decode(): v.decode() for k, v in messages[0]["headers"]}
        content = b"".join(message.get("body", b"") for message in messages[1:])
        return Response(content, messages[0]["status"], headers)


def run(file: str | Path, *, host: str, port: int, limits: Any, token: str, replicas: int) -> None:
    """Serves a bank on the cluster that RAY_ADDRESS names, or on this machine, until SIGTERM or Ctrl-C."""
    begin(file, host=host, port=port, limits=limits, token=token, replicas=replicas)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()


def begin(file: str | Path, *, host: str, port: int, limits: Any, token: str, replicas: int, cpus: float = 1) -> None:
    """Starts the replicas and the HTTP interfaces, and comes back when they answer."""
    if replicas < 1:
        raise RequestError(f"{replicas} replicas were asked for: give 1 or more.")
    file = Path(file).absolute()
    spread = Spread(file)  # what is wrong with the file is said here
    if not len(spread.bank):
        raise RequestError(f"{file} has no task yet, and a cluster takes its backbone from one: name one under tasks.")
    backbone, options = spread.asked_for
    first = str(spread.bank.place(spread.bank.tasks[0])[2])
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    holds = {"num_cpus": cpus, "num_gpus": 1 if options.get("device", "auto") == "cuda" else 0}
    of: Any = serve.deployment(Replica, num_replicas=replicas, ray_actor_options=holds, max_ongoing_requests=64)
    at = {"num_cpus": 0, "resources": {HEAD: 0.001}}
    front: Any = serve.deployment(Front, num_replicas=1, ray_actor_options=at, max_ongoing_requests=256)
    serve.run(front.bind(of.bind(backbone, first, options), str(file), limits, token), name="vitgraft")
