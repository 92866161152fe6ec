"""Activations of a frozen backbone on disk, for every fit that reads the same pictures in the same way.

One folder per way of reading: the backbone's tensors and architecture, the preprocessing, the taps, the precision of
the pass. In it are parts, safetensors files that hold the activations of some pictures in bf16 and their digests; each
is written whole or not at all under a name of its own, so any number of processes share a folder, and a kill loses only
what was not written yet. Parts are mapped into memory, not read. A picture is known by the digest of its file's bytes,
and a backbone by its fingerprint: nothing that has changed is ever found.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..common.errors import RequestError
from ..common.files import replacing, write_json
from ..features import Activations

FORMAT = 1
DTYPE = torch.bfloat16
PART = 64 << 20  # bytes after which a part is written
ENDING = ".safetensors"


def picture_digests(paths: Iterable[Path]) -> list[str]:
    """What the pictures in these files are known by."""
    return [hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in paths]


class DiskStore:
    """The activations of n pictures, from disk where they are there and to disk where they are not.

    root: folder of all stores. way: what the activations depend on besides the picture, ready for JSON. digests: of
    the n pictures. one: activations of one picture [1, ...], from which the size of all follows. limit: bytes that all
    stores in `root` may take; RequestError, before anything is computed, if they would take more.
    """

    full = False  # what has no room is refused

    def __init__(self, root: Path, way: dict[str, Any], digests: Sequence[str], one: Activations, limit: int) -> None:
        text = json.dumps({"format": FORMAT, **way}, sort_keys=True, default=str)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.digests = list(digests)
        self._grids, self._shape = one.grids, {name: t.shape[1:] for name, t in _named(one).items()}
        self._parts: dict[str, dict[str, Tensor]] = {}
        self._at: dict[str, tuple[dict[str, Tensor], int]] = {}  # digest -> part, row
        self._new: dict[str, dict[str, Tensor]] = {}  # digest -> tensors that are in no part yet
        self._scan()
        self.bytes_per_picture = sum(shape.numel() for shape in self._shape.values()) * DTYPE.itemsize
        self.missing = len(set(self.digests) - self._at.keys())
        used, more = _used(root), self.missing * self.bytes_per_picture
        if used + more > limit:
            raise RequestError(
                f"The activations of {self.missing} pictures take {more / 2**30:.2g} GiB, and {root} holds "
                f"{used / 2**30:.2g} already, but may hold {limit / 2**30:g}: allow more with --cache-size, remove "
                "that folder, or fit without --cache."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "way.json", json.loads(text))

    def lacks(self, indices: Tensor) -> bool:
        return not self._has([self.digests[i] for i in indices.tolist()])

    def get(self, indices: Tensor, compute: Callable[[], Activations]) -> Activations:
        """The activations of the pictures `indices` [b]; made by `compute`, for all, if one is not there."""
        wanted = [self.digests[i] for i in indices.tolist()]
        if not self._has(wanted):
            self._scan()  # another process may have been there
        if self._has(wanted):
            rows = [self._row(digest) for digest in wanted]
            return self._activations({name: torch.stack([row[name] for row in rows]) for name in self._shape})
        found = {name: t.detach().to(DTYPE) for name, t in _named(compute()).items()}
        for row, digest in enumerate(wanted):
            if digest not in self._at:
                self._new[digest] = {name: t[row].cpu() for name, t in found.items()}
        if len(self._new) * self.bytes_per_picture >= PART:
            self.write()
        return self._activations(found)

    def write(self) -> None:
        """Puts what is new into a part."""
        if not self._new:
            return
        digests = list(self._new)
        tensors = {name: torch.stack([self._new[digest][name] for digest in digests]) for name in self._shape}
        with replacing(self.folder / f"{uuid.uuid4().hex}{ENDING}") as temporary:
            save_file(tensors, temporary, {"digests": json.dumps(digests)})
        self._new.clear()
        self._scan()

    def _has(self, digests: list[str]) -> bool:
        return all(digest in self._at or digest in self._new for digest in digests)

    def _row(self, digest: str) -> dict[str, Tensor]:
        if digest in self._new:
            return self._new[digest]
        part, row = self._at[digest]
        return {name: tensor[row] for name, tensor in part.items()}

    def _activations(self, tensors: dict[str, Tensor]) -> Activations:
        found = Activations(tensors["tokens"], self._grids)
        for name, tensor in tensors.items():
            kind, _, block = name.partition(".")
            if block:
                getattr(found, kind)[int(block)] = tensor
        return found

    def _scan(self) -> None:
        """Takes in the parts that are there and not known yet; what cannot be read is no part, and goes."""
        for path in sorted(self.folder.glob(f"*{ENDING}")):
            if path.name in self._parts:
                continue
            try:
                with safe_open(path, "pt") as file:
                    digests = json.loads(file.metadata()["digests"])
                    part = {name: file.get_tensor(name) for name in self._shape}
                if any(part[name].shape != (len(digests), *shape) for name, shape in self._shape.items()):
                    raise ValueError("tensors of another shape")
            except (SafetensorError, OSError, ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)
                continue
            self._parts[path.name] = part
            self._at |= {digest: (part, row) for row, digest in enumerate(digests)}


def _named(a: Activations) -> dict[str, Tensor]:
    taps = {f"taps.{i}": t for i, t in a.taps.items()}
    return {"tokens": a.tokens, **taps, **{f"extra.{i}": t for i, t in a.extra.items()}}


def _used(root: Path) -> int:
    """Bytes of all parts of all stores."""
    if not root.is_dir():
        return 0
    return sum(os.path.getsize(path) for path in root.glob(f"*/*{ENDING}"))
