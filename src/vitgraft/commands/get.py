"""`vitgraft get`: the data sets of a suite, fetched, verified and laid out as its reader expects them.

Where each comes from is a file of `bench/sources/`: what a program may fetch, and in words what a person has to.

ROOT/.get/        archives and what is unpacked of them; a fetch that was cut goes on there
ROOT/TASK/        a task, put there whole once the suite's reader has found in it what the suite says
ROOT/SET/images/  pictures that several tasks share
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..bench import shipped, suites
from ..bench.locks import held
from ..bench.suites import Suite, TaskOf
from ..common import files
from ..common.errors import RequestError, VitgraftError, WorkError

Say = Callable[[str], None]
Progress = Callable[[int, int], None]  # bytes done, bytes in all
TRIES, TIMEOUT, CHUNK = 3, 60, 1 << 20  # of one file at a stretch; seconds without a byte; bytes
HIDDEN = ".get"


def _silent(done: int, total: int) -> None:
    pass


def get(
    name: str, root: str | os.PathLike[str], *, say: Say = print, bar: Callable[[str], Progress] | None = None
) -> None:
    """Fetches what there is to fetch of the suite `name`, and lays it out in the folder `root`.

    What is there already is held against the suite and left as it is; what cannot be fetched does not stop the rest.
    say: told line by line what happens. bar: makes the progress bar of a file from its name. Raises RequestError for
    an unknown suite and one that is not fetched, WorkError, once all has been tried, where something is left for
    another start or for a person.
    """
    if name == suites.LOCAL:
        raise RequestError("The suite local is your own data sets, of which nothing is to be fetched: name another.")
    suite, root = suites.find(name), Path(root).expanduser()
    told = shipped.read(shipped.HERE / "sources" / f"{name}.json", "source of data")
    files.check_folder(root)
    files.make_folder(root / HIDDEN)
    say(f"{suite.title}: {told['about']}")
    with held(root / HIDDEN / "lock") as free:
        if not free:
            raise WorkError(f"Another process is fetching into {root}: wait for it, or choose another --out.")
        left = [
            task
            for source in told["sets"]
            for task in Source(suite, source, root, bar or (lambda file: _silent)).make(say)
        ]
    if left:
        raise WorkError(
            f"{len(left)} of {len(suite.tasks)} tasks of {suite.title} are not in {root} as they should be "
            f"({', '.join(left)}): do what is said above, then run the same command again, which checks them."
        )
    shutil.rmtree(root / HIDDEN)
    say(f"run       vitgraft bench run --suite {name} --data {root} ...")


def check(task: TaskOf, folder: Path) -> None:
    """RequestError unless the folder holds what the suite says of a task: classes, lists, numbers of pictures."""
    classes = None
    if task.trained_on:  # the names of its classes are among another task's; its own folders say which
        classes = sorted({item.name for item in folder.glob("*/*") if item.is_dir()})
    suites.read(task, folder, classes)


class Source:
    """Where one set of pictures comes from, and the tasks that are made of it."""

    def __init__(self, suite: Suite, told: Mapping[str, Any], root: Path, bar: Callable[[str], Progress]) -> None:
        self.suite, self.told, self.root, self.bar = suite, told, root, bar
        self.hidden = root / HIDDEN / told["name"]
        self.how = next(kind for kind in ("by_hand", "torchvision", "lists", "classes", "folders") if kind in told)

    def make(self, say: Say) -> list[str]:
        """Makes the folders of the tasks that are not there; the names of those that are not as they should be then."""
        left = self._made(say)
        if not left:
            shutil.rmtree(self.hidden, ignore_errors=True)
        elif "otherwise" in self.told:
            say(f"otherwise {self._here('otherwise')}")
        return left

    def _made(self, say: Say) -> list[str]:
        left, missing = [], []
        for task in map(self.suite.task, self.told["tasks"]):
            if not any((self.root / name).is_dir() for name in (task.name, *task.aliases)):
                missing.append(task)
            elif self._went_well(say, task.name, partial(self._check, task)):
                say(f"there     {task.name}")
            else:
                left.append(task.name)
        if missing and not self._went_well(say, self.told["name"], self._prepare):
            return [*left, *(task.name for task in missing)]
        for task in missing:
            if self._went_well(say, task.name, partial(self._lay_out, task)):
                say(f"made      {task.name}")
            else:
                left.append(task.name)
        return left

    def _here(self, words: str) -> str:
        """What a person can do, with the folder in place of the word ROOT."""
        return f"{self.told[words].replace('ROOT', str(self.root))}."

    def _went_well(self, say: Say, name: str, do: Callable[[], None]) -> bool:
        try:
            do()
        except VitgraftError as error:
            say(f"left      {name}: {error}")
            return False
        return True

    def _check(self, task: TaskOf) -> None:
        [folder] = suites.locate(self.suite, self.root, [task.name]).values()
        check(task, folder)

    def _prepare(self) -> None:
        """Fetches and unpacks the pictures, unless that is done."""
        if self.how == "by_hand":
            raise WorkError(f"By hand: {self._here('by_hand')}")
        files.make_folder(self.hidden)
        if self.how == "torchvision" or self._unpacked.is_dir() or (self.how == "lists" and self._shared.is_dir()):
            return
        part = self.hidden / "unpacking"
        shutil.rmtree(part, ignore_errors=True)
        for file in self.told["files"]:
            unpack(self._fetched(progress=self.bar(self._path(file["url"]).name), **file), part)
        os.replace(part, self._unpacked)
        for file in self.told["files"]:
            self._path(file["url"]).unlink()  # their pictures are there, and the room is needed

    def _lay_out(self, task: TaskOf) -> None:
        made = self.root / f".{task.name}.part"
        shutil.rmtree(made, ignore_errors=True)
        try:
            getattr(self, f"_by_{self.how}")(task, made)
            check(task, made)
            os.replace(made, self.root / task.name)
        except OSError as error:
            raise WorkError(f"{self.root / task.name} could not be written ({error.strerror}): make room.") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)

    @property
    def _unpacked(self) -> Path:
        return self.hidden / "unpacked"

    @property
    def _shared(self) -> Path:
        return self.root / self.told["name"] / "images"

    def _inside(self, name: str) -> Path:
        """A folder of the archive."""
        if not (self._unpacked / name).is_dir():
            raise WorkError(f"The archive has no folder {name}: it is another one than was expected.")
        return self._unpacked / name

    def _path(self, url: str) -> Path:
        return self.hidden / url.rpartition("/")[2]

    def _fetched(self, url: str, **known: Any) -> Path:
        path = self._path(url)
        if not path.is_file():
            fetch(url, path, **known)
        return path

    def _by_folders(self, task: TaskOf, made: Path) -> None:
        """A folder of the task's name, or an alias, anywhere in the archive."""
        names = {task.name, *task.aliases}
        found = sorted(Path(path) for path, _, _ in os.walk(self._unpacked) if Path(path).name in names)
        if not found:
            raise WorkError(f"The archive has no folder {' or '.join(sorted(names))}.")
        shutil.copytree(found[0], made, copy_function=place)

    def _by_classes(self, task: TaskOf, made: Path) -> None:
        """The class folders of the archive are a split."""
        whole = self._inside(self.told["classes"])
        for folder in sorted(item for item in whole.iterdir() if item.is_dir()):
            shutil.copytree(folder, made / self.told["split"] / folder.name, copy_function=place)

    def _by_lists(self, task: TaskOf, made: Path) -> None:
        """Pictures of the archive, which several tasks share, and lists that are fetched for each."""
        if not self._shared.is_dir():
            self._shared.parent.mkdir(exist_ok=True)
            os.replace(self._inside(self.told["pictures"]), self._shared)
        made.mkdir()
        (made / "images").symlink_to(Path("..") / self.told["name"] / "images")
        for split, address in self.told["lists"].items():
            listed = self._fetched(address.format(**self.told["tasks"][task.name]))
            lines = [f"images/{line}\n" for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
            files.write_bytes(made / f"{split}.txt", "".join(dict.fromkeys(lines)).encode())

    def _by_torchvision(self, task: TaskOf, made: Path) -> None:
        """A data set of torchvision, fetched and verified by its own code, with its own splits."""
        from torchvision import datasets

        (made / "images").mkdir(parents=True)
        for split in self.told["splits"]:
            try:
                found = getattr(datasets, self.told["torchvision"])(self.hidden, split=split, download=True)
            except (RuntimeError, OSError, ImportError) as error:
                raise WorkError(f"torchvision could not fetch it ({str(error).rstrip('.')}).") from error
            pairs = [(Path(file), label) for file, label in zip(found._image_files, found._labels, strict=True)]
            for file, _ in pairs:
                place(file, made / "images" / file.name)
            listed = "".join(f"images/{file.name} {label}\n" for file, label in pairs)
            files.write_bytes(made / f"{split}.txt", listed.encode())


def place(file: str | Path, target: str | Path) -> None:
    """A file under a second name, without a copy where the file system can do that."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip or tar into a folder; WorkError where it is broken, or there is no room."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as tarred:
                tarred.extractall(folder, filter="data")  # nothing outside the folder, no devices
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        archive.unlink()
        raise WorkError(f"{archive.name} is no whole archive ({error}) and was removed: run again.") from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)  # a part of it is of no use, and takes room
        raise WorkError(f"{archive.name} could not be unpacked ({error.strerror or error}): make room.") from error


def fetch(url: str, path: Path, *, progress: Progress = _silent, bytes: int | None = None, **digests: str) -> None:
    """Fetches a file; what is there of it already (`path`.part) is not fetched again.

    bytes, md5, sha256: what it must have. progress: called with bytes done and total. WorkError where the address does
    not answer, the connection is cut again and again, there is no room (all: the part is kept), or the file is another
    one (nothing is kept).
    """
    part = path.with_name(f"{path.name}.part")
    for attempt in range(1, TRIES + 1):
        try:
            _go_on(url, part, progress, bytes)
            break
        except urllib.error.HTTPError as error:
            raise WorkError(f"{url} answers {error.code} {error.reason}: the address may be dead.") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(path, error.strerror or "") from error
            reason = str(getattr(error, "reason", error))
        except http.client.HTTPException as error:
            reason = str(error) or type(error).__name__
        if attempt == TRIES:
            kept = part.stat().st_size if part.is_file() else 0
            raise WorkError(
                f"{url} could not be fetched whole ({reason}), {kept:,} bytes are kept: run again to go on."
            )
    for kind, wanted in digests.items():
        if (found := _digest(part, kind)) != wanted:
            _forget(part)
            raise WorkError(
                f"{url} gave another file, with {kind} {found} in place of {wanted}; it was removed: run again, and if "
                "that gives it again, take it from elsewhere."
            )
    _tag(part).unlink(missing_ok=True)
    os.replace(part, path)


def _go_on(url: str, part: Path, progress: Progress, size: int | None) -> None:
    """Fetches what is missing of a file; OSError where the connection is cut."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vitgraft"})
    if have and _tag(part).is_file():  # without a tag nobody knows whether it is still the same file
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", _tag(part).read_text())
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is whole, or too long
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return
        _forget(part)
        raise ConnectionError("what was there was longer than the file, and was removed") from error
    with answer:
        have = have if answer.status == 206 else 0
        total = have + int(answer.headers.get("Content-Length") or 0)
        if size is not None and total not in (have, size):
            _forget(part)
            raise WorkError(f"{url} has {total:,} bytes, but {size:,} were expected: it is another file.")
        if (free := shutil.disk_usage(part.parent).free) < total - have:
            raise _no_room(part.with_suffix(""), f"{total - have:,} bytes are to come, {free:,} are free")
        etag = answer.headers.get("ETag", "")
        # A weak tag does not promise the same bytes.
        mark = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")
        _tag(part).write_text(mark) if mark else _tag(part).unlink(missing_ok=True)
        with open(part, "ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(have, max(total, have))
            os.fsync(file.fileno())
        if have < total:
            raise ConnectionError(f"cut at {have:,} of {total:,} bytes")


def _no_room(path: Path, reason: str) -> WorkError:
    return WorkError(f"There is no room for {path.name} ({reason}), what came of it is kept: make room and run again.")


def _tag(part: Path) -> Path:
    """Beside a part: which state of the file at the address it is of."""
    return part.with_suffix(".tag")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
