"""Where a number comes from: the data's digest, the code's commit, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from .. import __version__
from ..common.errors import RequestError

PACKAGE = Path(__file__).parents[1]
# Files that say what the pictures show are hashed byte by byte, pictures by name and size: reading them takes minutes.
TEXTS = (".txt", ".json", ".csv", ".xml", ".yaml", ".yml")


def data_digest(root: str | Path) -> str:
    """sha256 over the names and sizes of a data set's files and the content of its lists, the same wherever it lies.

    Hidden files do not count. RequestError where the folder is not there, is empty, or cannot be read.
    """
    root, digest, count = Path(root).expanduser(), hashlib.sha256(), 0
    try:
        for path in _files(root):
            name = path.relative_to(root).as_posix()
            content = path.suffix.lower() in TEXTS
            said = hashlib.sha256(path.read_bytes()).hexdigest() if content else str(path.stat().st_size)
            digest.update(f"{name}\0{said}\n".encode("utf-8", "surrogateescape"))
            count += 1
    except OSError as error:
        raise RequestError(
            f"{error.filename or root} was to be read for a benchmark, but the system refuses ({error.strerror}): "
            "correct the path or its permissions."
        ) from error
    if not count:
        raise RequestError(f"{root} was to be a data set of a benchmark, but holds no file: name the folder that does.")
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder in the order of their names; unlike os.walk it raises where it may not look."""
    for item in sorted(os.scandir(folder), key=lambda item: item.name):
        if item.name.startswith("."):
            continue
        if item.is_dir():
            yield from _files(Path(item.path))
        else:
            yield Path(item.path)


@cache  # as the code was when this process began: it may be edited during a run
def commit() -> tuple[str | None, bool | None]:
    """The commit of the package and whether its files differ from it; (None, None) outside a git checkout."""
    # Not the checkout of some other project in which the package is installed: git has to know this very file.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    changed = _git("status", "--porcelain", "--", ".")
    return _git("rev-parse", "HEAD"), None if changed is None else bool(changed)


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=PACKAGE, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of this package, Python, and what is loaded of that on which a number may depend."""
    names = ("torch", "timm", "torchvision", "numpy", "PIL")
    found = {name: str(getattr(sys.modules[name], "__version__", "unknown")) for name in names if name in sys.modules}
    return {"vitgraft": __version__, "python": platform.python_version(), **found}


def machine() -> dict[str, Any]:
    """System, processor, cores, and, once torch is loaded, its threads and the GPU. Neither names nor paths."""
    torch: Any = sys.modules.get("torch")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
