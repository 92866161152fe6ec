"""`vitgraft serve`: a bank's file, read, and a server on it until it is told to stop."""

from __future__ import annotations

import errno
import logging
import math
import socket
from pathlib import Path

from ..common.errors import RequestError, WorkError


def serve(
    bank: str | Path,
    *,
    host: str,
    port: int,
    token: str,
    waiting: int,
    seconds: float,
    megabytes: float,
    megapixels: float,
    on_ray: bool = False,
    replicas: int = 1,
) -> None:
    """Answers until SIGTERM or Ctrl-C; what was taken by then is answered. on_ray: by so many replicas on a cluster."""
    try:
        import uvicorn

        from .asked import Limits
        from .server import create
    except ModuleNotFoundError as error:
        raise RequestError(
            f"The server needs the package {error.name}: install it (pip install 'vitgraft[serve]')."
        ) from error
    if not all(0 < limit < math.inf for limit in (waiting, seconds, megabytes, megapixels)):
        raise RequestError(
            "Limits of a server are above 0: give such for --waiting, --seconds, --megabytes, --megapixels."
        )
    limits = Limits(bytes=int(megabytes * 2**20), pixels=int(megapixels * 1e6), waiting=waiting, seconds=float(seconds))
    if on_ray:
        try:
            from . import on_ray as cluster
        except ImportError as error:
            raise RequestError(
                f"Ray Serve cannot be imported ({error}): install it (pip install 'vitgraft[serve-ray]')."
            ) from error
        cluster.run(bank, host=host, port=port, limits=limits, token=token, replicas=replicas)
        return
    from .stored import Stored

    listening = _listen(host, port)  # before the backbone is loaded: a port that is taken is said at once
    with listening:
        stored = Stored(bank)
        shown = f"[{host}]" if ":" in host else host
        print(
            f"{len(stored.bank)} tasks on {stored.bank.backbone.name}: http://{shown}:{listening.getsockname()[1]}",
            flush=True,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        how = uvicorn.Config(
            create(stored, limits, token),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=math.ceil(seconds),
        )
        uvicorn.Server(how).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; RequestError where it cannot."""
    if not 0 <= port <= 65535:
        raise RequestError(f"There is no port {port}: give 1 to 65535, or 0 for any that is free.")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, proto)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise WorkError(f"Port {port} of {host} is taken: give another --port.") from error
        raise WorkError(f"No socket can be had at {host}:{port} ({error}): give another --host or --port.") from error
    return found
