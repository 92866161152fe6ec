"""How the benchmarks measure and tell: options, interleaved turns, ratios within a turn, a table, a JSON record."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from vitgraft.backbones.architectures import skeleton
from vitgraft.bench.provenance import commit, machine, versions
from vitgraft.common.errors import RequestError, VitgraftError, near_misses
from vitgraft.common.files import write_json

Key = TypeVar("Key")
Value = TypeVar("Value")


class Names(argparse.Action):
    """Some of the names `known`, separated by spaces or commas."""

    def __init__(self, *args: Any, known: Sequence[str], **more: Any) -> None:
        more |= {"nargs": "+", "help": f"of {', '.join(known)}"}
        super().__init__(*args, **more)
        self.known = known

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        found = [name for value in values for name in value.split(",") if name]
        for name in found:
            if name not in self.known:
                hint = near_misses(name, self.known)
                parser.error(f"{option} knows no {name!r}: take some of {', '.join(self.known)}.{hint}")
        setattr(namespace, self.dest, list(dict.fromkeys(found)))


def parser(doc: str | None, *, model: str = "", repeat: int = 0) -> argparse.ArgumentParser:
    """The options that the programs share; `doc` begins with what a program says of itself."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--json", type=_new_file, metavar="FILE", help="a new file for settings, machine and raw numbers")
    if model:
        made.add_argument("--model", type=_vit, default=model, help="a timm name (%(default)s); its tensors are random")
    if repeat:
        made.add_argument("--repeat", type=at_least_one, default=repeat, help="turns that count (%(default)s)")
    return made


def at_least_one(text: str) -> int:
    """An option's whole number of one or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} was given, but it takes a whole number of 1 or more")
    return int(text)


def _vit(name: str) -> str:
    try:
        skeleton(name)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _new_file(text: str) -> Path:
    """Known before hours of measuring: the record can be written, and takes the place of none."""
    path = Path(text)
    if path.exists() or not path.parent.is_dir():
        why = "it is there already" if path.exists() else f"there is no {path.parent}"
        raise argparse.ArgumentTypeError(
            f"{text} was to be written, but {why}: give a new file in a folder that exists"
        )
    return path


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """The work as a function that gives the seconds that it took, on the device too."""

    def seconds() -> float:
        begun = _clock()
        work()
        return _clock() - begun

    return seconds


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def turns(work: Mapping[Key, Callable[[], Value]], repeat: int, *, warm: int = 2) -> dict[Key, list[Value]]:
    """What each piece of work gives, in `repeat` turns after `warm` that do not count.

    A turn does each piece once, in order, so that a busy machine slows all alike.
    """
    found: dict[Key, list[Value]] = {name: [] for name in work}
    for turn in range(warm + repeat):
        print(f"turn {turn + 1} of {warm + repeat}", file=sys.stderr, flush=True)
        for name, one in work.items():
            given = one()
            if turn >= warm:
                found[name].append(given)
    return found


def ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """The median of the ratios of the same turns."""
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def write(given: argparse.Namespace, **found: Any) -> None:
    """The record of a run of a program in its --json file, if one was asked for."""
    if given.json is None:
        return
    settings = {name: value for name, value in vars(given).items() if name != "json"}  # no paths of this machine
    known = versions() | ({"peft": sys.modules["peft"].__version__} if "peft" in sys.modules else {})
    at, changed = commit()
    record = {"settings": settings, "machine": machine(), "versions": known, "commit": at, "changed": changed, **found}
    write_json(given.json, record)


def run(main: Callable[[], None]) -> NoReturn:
    """A program from the command line; what is wrong with a request is said in one sentence."""
    try:
        main()
    except VitgraftError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)
