"""`vitgraft bench`: run a grid, say what is left of it, show its table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RequestError, WorkError
from ..files import read_json, write_json
from ..words import values
from . import layout, protocols, published, reading, suites
from .grid import Grid, plan, prepare, run
from .suites import Suite

IDENTITY = "bench.json"  # what a folder of results is of; a second command has to agree


def arguments(command: argparse.ArgumentParser) -> None:
    """The options of `bench`."""
    parts = command.add_subparsers(dest="part", metavar="PART", required=True, parser_class=type(command))
    for name, about in (
        ("run", "do what is left of a grid of runs"),
        ("plan", "say what is left of it; start nothing"),
    ):
        part = parts.add_parser(name, help=about, allow_abbrev=False)
        part.add_argument(
            "--suite", default="local", help=f"{', '.join(suites.names())}, or local: every data set in ROOT"
        )
        part.add_argument("--data", required=True, metavar="ROOT", help="folder that holds one folder for each task")
        part.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all of the suite")
        part.add_argument(
            "--methods",
            nargs="+",
            required=True,
            metavar="METHOD",
            help="such as hst, or with options hst:detached=true or lora:rank=4,lr=2e-3",
        )
        part.add_argument("--backbone", required=True, help="timm name or weight file")
        part.add_argument(
            "--protocol", default="strict", help=f"default: strict; there are {', '.join(protocols.names())}"
        )
        part.add_argument("--seeds", type=int, help="how many, from 0; default: the protocol's")
        part.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of every fit: epochs=10")
        part.add_argument("--out", required=True, metavar="BENCH", help="folder of the results")
        part.add_argument("--workers", type=int, default=1, help="processes on this machine (default: 1)")
    show = parts.add_parser("show", help="the table of a folder of results", allow_abbrev=False)
    show.add_argument("out", metavar="BENCH")
    show.add_argument("--against", metavar="ROW", help="paired differences of every row from this one; or: published")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma-separated values, unrounded")
    form.add_argument("--latex", action="store_true")


def command(given: argparse.Namespace) -> None:
    """What was asked for."""
    if given.part == "show":
        print(_shown(given))
        return
    out, made = Path(given.out), _grid(given)
    if given.part == "plan":
        print("\n".join(plan(made, out).lines()))
        return
    if given.workers < 1:
        raise RequestError(f"workers is {given.workers}, but must be 1 or more: give another value.")
    root = Path(given.data).expanduser().resolve()
    identity = {"suite": made.suite.name, "data": str(root), "protocol": made.protocol}
    if (out / IDENTITY).is_file() and (told := read_json(out / IDENTITY)) != identity:
        raise RequestError(f"{out} holds results of another benchmark ({told}): choose another --out.")
    made.jobs  # noqa: B018  # what is wrong with them is said before a folder is made
    prepare(made.suite, out)
    write_json(out / IDENTITY, identity)
    done = run(made, out, workers=given.workers, say=_say)
    print("\n".join(done.lines()))
    print(f"table    vitgraft bench show {out}")
    if done.failed:
        raise WorkError(
            f"{len(done.failed)} of {len(made.jobs)} runs have failed: correct what their reasons say, and run the "
            "same command again."
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _grid(given: argparse.Namespace) -> Grid:
    suite = suites.find(given.suite, given.data)
    data = suites.locate(suite, given.data, given.tasks)
    protocol = protocols.find(given.protocol)
    protocol.check_suite(suite)
    left_out = [*protocol.deviations, *([f"{protocol.normalisation} normalisation"] if protocol.mean_std else [])]
    if left_out:
        _say(f"protocol  {protocol.name}, of which is not done here: {'; '.join(left_out)}")
    common = values(given.set, "--set", "epochs=10")
    methods = {text: {**_method(text), **common} for text in given.methods}
    from .. import fitting
    from .. import task as kinds
    from ..backbone import Backbone

    for own in methods.values():  # what is wrong with the request is said before anything runs
        wanted = {**protocol.options(own["method"], next(iter(data))), **own}
        fitting.sort_options(kinds.find("classify"), wanted.pop("method"), False, wanted)
    return Grid(
        suite=suite,
        data=data,
        backbone=given.backbone,
        fingerprint=Backbone.load(given.backbone).fingerprint,
        methods=methods,
        protocol=protocol.name,
        seeds=range(protocol.seeds if given.seeds is None else given.seeds),
        options=protocol.options,
        flags=protocol.flags,
    )


def _method(text: str) -> dict[str, Any]:
    """A word such as hst:detached=true,lr=1e-3 as options of a fit."""
    name, _, rest = text.partition(":")
    return {"method": name, **values(rest.split(",") if rest else [], text, "lr=1e-3")}


def _shown(given: argparse.Namespace) -> str:
    out = Path(given.out)
    if not (out / IDENTITY).is_file():
        raise RequestError(f"{out} holds no results of a benchmark: name the folder that `vitgraft bench run` made.")
    told = read_json(out / IDENTITY)
    suite = suites.find(told["suite"], told["data"])
    table = reading.table(reading.read(out, suite), suite, protocol=told["protocol"])
    if given.csv or given.latex:
        return (layout.comma_separated if given.csv else layout.latex)(table)
    lines = [layout.text(table)]
    if given.against == "published":
        lines += ["", *_published(suite)]
    elif given.against:
        others = [row.label for row in table.rows if row.label != table.row(given.against).label]
        lines += ["", *(reading.compare(table, label, given.against).line() for label in others)]
    return "\n".join(lines)


def _published(suite: Suite) -> list[str]:
    """Every published row of the suite with both averages, and what in it flatters."""
    lines = [f"published, {suite.title}: mean of {len(suite.tasks)} and mean of groups, per cent"]
    for table, row in published.rows(suite.name):
        given: Mapping[str, float | None] = row.of_tasks(suite)
        if any(value is None for value in given.values()):
            continue
        whole = {name: float(value) for name, value in given.items() if value is not None}
        told = "; ".join([table.paper, f"epoch {row.epoch}", *row.flags])
        lines.append(f"  {row.method:24} {suite.mean(whole):6.2f} {suite.mean_of_groups(whole):6.2f}  {told}")
    if len(lines) == 1:
        raise RequestError(f"No published table is about the suite {suite.name}: there are some for vtab-1k.")
    return lines
