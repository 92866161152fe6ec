"""`vitgraft bench`: choose settings, run a grid, say what is left of it, show its table."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from ..bench import beside, layout, protocols, reading, search, shipped, suites
from ..bench.grid import Grid, Workers, plan, prepare, run
from ..bench.suites import Suite
from ..bench.workers import Processes
from ..common.errors import RequestError, WorkError
from ..common.files import write_json
from . import config
from .options import lists, values

PUBLISHED = "published"
IDENTITY = "bench.json"  # suite and protocol of a folder of results; a second command has to agree


def arguments(command: argparse.ArgumentParser) -> None:
    """The options of `bench`."""
    parts = command.add_subparsers(dest="part", metavar="PART", required=True, parser_class=type(command))
    for name, about in (
        ("run", "do what is left of a grid of runs"),
        ("plan", "say what is left of it and what that costs; start nothing"),
        ("search", "choose settings for each method and task on the val split"),
    ):
        part = parts.add_parser(name, help=about, allow_abbrev=False)
        config.add_options(part)
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
        if name == "search":
            part.add_argument("--trials", type=int, help="of each method and task; default: its whole grid")
            part.add_argument("--seeds", type=int, default=1, help="of each trial, whose mean decides (default: 1)")
            part.add_argument(
                "--over",
                nargs="+",
                default=[],
                metavar="NAME=VALUE,VALUE",
                help="what to choose among, such as lr=1e-3,5e-3; default: what was published for each method",
            )
        else:
            part.add_argument("--seeds", type=int, help="how many, from 0; default: the protocol's")
            part.add_argument("--choices", metavar="FILE", help="settings that a search chose: BENCH/choices.json")
        if name == "plan":
            part.add_argument("--time", action="store_true", help="time a step where no record tells how long one is")
        part.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of every fit: epochs=10")
        part.add_argument("--out", required=True, metavar="BENCH", help="folder of the results")
        _worker_arguments(part)
    _episode_arguments(parts.add_parser("episodes", help="few-shot episodes: N ways, K shots", allow_abbrev=False))
    show = parts.add_parser("show", help="the table of a folder of results", allow_abbrev=False)
    config.add_options(show)
    show.add_argument("out", metavar="BENCH")
    show.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="ROW",
        help="paired differences of every row from this one; or: published, the papers' rows beside ours; or both",
    )
    show.add_argument("--html", metavar="PAGE", help="write a page with the table and pictures")
    show.add_argument("--svg", metavar="FOLDER", help="with --html: each picture as a file too")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma-separated values, unrounded")
    form.add_argument("--latex", action="store_true")


def _worker_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--workers", default="1", metavar="N|ray", help="processes on this machine (default: 1)")
    part.add_argument("--ray-address", metavar="HOST:PORT", help="of a Ray cluster; default: RAY_ADDRESS, or none")
    part.add_argument("--ray-cpus", type=int, metavar="N", help="CPUs of one run on Ray (default: 1)")


def _episode_arguments(part: argparse.ArgumentParser) -> None:
    config.add_options(part)
    part.add_argument("--data", required=True, metavar="ROOT", help="folder that holds one folder for each set")
    part.add_argument("--tasks", nargs="+", metavar="SET", help="default: all sets")
    part.add_argument("--methods", nargs="+", required=True, metavar="METHOD", help="as for run: lora:rank=4,lr=2e-3")
    part.add_argument("--backbone", required=True, help="timm name or weight file")
    part.add_argument("--ways", type=int, default=5, help="classes of an episode (default: 5)")
    part.add_argument("--shots", type=int, nargs="+", default=[1, 5], help="pictures of each to learn from (1 5)")
    part.add_argument("--queries", type=int, default=15, help="pictures of each to tell apart (default: 15)")
    part.add_argument("--number", type=int, default=600, help="episodes (default: 600)")
    part.add_argument("--head", default="nearest", help="nearest class mean, cosine or linear (default: nearest)")
    part.add_argument("--steps", type=int, default=40, help="of training in each episode (default: 40)")
    part.add_argument("--seed", type=int, default=0, help="of the episodes, the same for all methods (default: 0)")
    part.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of every fit: lr=5e-4")
    part.add_argument("--out", required=True, metavar="BENCH", help="folder of the results")
    _worker_arguments(part)


def command(given: argparse.Namespace) -> None:
    """What was asked for."""
    if given.part == "show":
        print(_shown(given))
        return
    if given.part == "episodes":
        _episodes(given)
        return
    out, made = Path(given.out), _grid(given)
    if given.part == "plan":
        print("\n".join(_planned(given, made)))
        return
    workers = _workers(given)
    if given.part == "search":
        _search(given, made, workers)
        return
    _run(made, out, workers)


def _episodes(given: argparse.Namespace) -> None:
    """Every method on every set with every number of shots."""
    from ..backbones import Backbone
    from ..bench.episodes import Episodes, check, suite

    what = Episodes(given.ways, given.shots[0], given.queries, given.number, given.head, given.steps)
    sets, data = suite(given.data, given.tasks)
    common = values(given.set, "--set", "lr=5e-4")
    methods = {text: {**_method(text), **common} for text in given.methods}
    check(what, data, given.shots, methods.values())
    made = Grid(
        suite=sets,
        data=data,
        backbone=given.backbone,
        fingerprint=Backbone.load(given.backbone).fingerprint,
        methods=methods,
        protocol=what.words,
        seeds=[given.seed],
        variants={f"{n}-shot": {"shots": n} for n in given.shots},
    )
    _run(made, Path(given.out), _workers(given), fit=what)


def _run(made: Grid, out: Path, workers: Workers, fit: Any = None) -> None:
    """Does what is left of a grid, and says where it stands; WorkError where something has failed."""
    made.jobs  # noqa: B018  # what is wrong with them is said before a folder is made
    _begin(made, out)
    done = run(made, out, fit=fit, workers=workers, say=_say)
    print("\n".join(done.lines()))
    print(f"table    vitgraft bench show {out}")
    if done.failed:
        raise WorkError(
            f"{len(done.failed)} of {len(made.jobs)} runs have failed: correct what their reasons say, and run the "
            "same command again."
        )


def _workers(given: argparse.Namespace) -> Workers:
    """Who does the runs."""
    asked = {"address": given.ray_address, "cpus": given.ray_cpus}
    of_ray = {name: value for name, value in asked.items() if value is not None}
    if given.workers == "ray":
        from ..bench.on_ray import OnRay

        return OnRay(**of_ray)
    if of_ray:
        raise RequestError(f"--ray-{next(iter(of_ray))} is for a Ray cluster: add --workers ray, or leave it out.")
    if not given.workers.lstrip("-").isdecimal():
        raise RequestError(f"workers is {given.workers!r}, but must be a number or ray: give one of these.")
    return Processes(int(given.workers))


def _begin(made: Grid, out: Path) -> None:
    """Makes the folder of results and notes what they are of; RequestError where it holds others."""
    suite = made.suite
    if (out / IDENTITY).is_file():
        there, protocol = _identity(out)
        kept = set(there.tasks) <= set(suite.tasks)  # a folder of data sets may have more by now
        if not kept or (there.name, protocol) != (suite.name, made.protocol):
            raise RequestError(
                f"{out} holds results of another benchmark ({there.title}: {', '.join(there.task_names)}; protocol "
                f"{protocol}) than {suite.title} ({', '.join(suite.task_names)}; protocol {made.protocol}): choose "
                "another --out."
            )
    prepare(suite, out)
    write_json(out / IDENTITY, {"suite": asdict(suite), "protocol": made.protocol})


def _identity(out: Path) -> tuple[Suite, str]:
    """What the results in a folder are of: the suite as it was then, so that they are read where no data are, and the
    protocol's name."""
    file = out / IDENTITY
    if not file.is_file():
        raise RequestError(f"{out} holds no results of a benchmark: name the folder that `vitgraft bench run` made.")
    told = shipped.read(file, "benchmark's description")
    shipped.check_fields(f"{file}", told, ("suite", "protocol"))
    shipped.check_kinds(f"{file}", told, {"protocol": str})
    return suites.made_of(told["suite"], f"The suite in {file}"), told["protocol"]


def _planned(given: argparse.Namespace, made: Grid) -> list[str]:
    """Where the grid stands, and what is left of it costs."""
    from ..backbones import Backbone
    from ..bench import cost

    out = Path(given.out)
    found = plan(made, out)
    left = [job for job in made.jobs if job not in found.done]
    records = cost.records_in(out, out / search.FOLDER)
    rows = cost.Estimate(made, Backbone.load(given.backbone), records, timed=given.time).rows(left) if left else []
    return [*found.lines(), *([""] if rows else []), *cost.lines(rows)]


def _search(given: argparse.Namespace, made: Grid, workers: Workers) -> None:
    """Chooses, and says what was chosen."""
    from ..data.dataset import read

    out = Path(given.out)
    studies = search.studies(made, given.trials, _over(given))
    for folder in made.data.values():  # what a search needs is missed before it begins
        found = read(Path(folder).expanduser())
        for split in ("train", "val"):
            found.split(split)
    _begin(made, out / search.FOLDER)
    trials, seeds = sum(study.planned for study in studies), f" of {given.seeds} seeds" if given.seeds > 1 else ""
    _say(f"search    {trials} trials{seeds}, {len(studies)} methods x tasks")
    chosen = search.search(made, studies, out, workers=workers, say=_say)
    for label, tasks in chosen.items():
        for task, choice in tasks.items():
            words = ", ".join(f"{name} {value}" for name, value in choice.options.items())
            print(f"{label}, {task}: {words}  ({100 * choice.value:.1f} % on val, best of {len(choice.trials)})")
    if lost := [study for study in studies if study.choice() is None]:
        first = lost[0]
        reasons = [trial.reason for trial in first.trials if trial.reason] or ["another process is at it"]
        raise WorkError(
            f"{len(lost)} of {len(studies)} searches chose nothing, the first of them for {first.job.label} on "
            f"{first.job.task} ({reasons[-1].rstrip('.')}): run the same command again."
        )
    print(f"run      vitgraft bench run ... --choices {out / search.FILE}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _grid(given: argparse.Namespace) -> Grid:
    suite = suites.find(given.suite, given.data)
    data = suites.locate(suite, given.data, given.tasks)
    protocol = protocols.find(given.protocol)
    protocol.check_suite(suite)
    if protocol.deviations:
        _say(f"protocol  {protocol.name}, of which is not done here: {'; '.join(protocol.deviations)}")
    common = values(given.set, "--set", "epochs=10")
    methods = {text: {**_method(text), **common} for text in given.methods}
    choosing = given.part == "search"
    fitted = {name: folder for name, folder in data.items() if not suite.task(name).trained_on}
    if choosing:
        data = fitted
    _check_tests(suite, data)
    from .. import tasks as kinds
    from ..backbones import Backbone
    from ..training import request

    over = _over(given) if choosing else None
    for own, tried in product(methods.values(), over.points() if over else [{}]):
        # What is wrong with the request is said before anything runs.
        wanted = {**protocol.options(own["method"], next(iter(fitted), "")), **tried, **own}
        request.sort_options(kinds.find("classify"), wanted.pop("method"), "linear", wanted)
    choices = None if choosing or not given.choices else search.Choices.read(given.choices)
    if choices:
        choices.check(suite.name, methods, list(fitted))
    seeds = protocol.seeds if given.seeds is None else given.seeds
    return Grid(
        suite=suite,
        data=data,
        backbone=given.backbone,
        fingerprint=Backbone.load(given.backbone).fingerprint,
        methods=methods,
        protocol=protocol.name,
        seeds=range(seeds),
        options=partial(protocol.options, choosing=choosing),
        flags=protocol.flags,
        tune=choices.tune if choices else None,
    )


def _over(given: argparse.Namespace) -> search.Space | None:
    """What the request has a search choose among; None: what was published."""
    return search.given(lists(given.over, "--over", "lr=1e-3,5e-3")) if given.over else None


def _check_tests(suite: suites.Suite, data: dict[str, Path]) -> None:
    """RequestError, before any model is fitted, where a task that is only tested is not what the suite says of it, or
    shows a class that the model will not know."""
    from ..data.dataset import read

    for task in (suite.task(name) for name in data):
        if task.trained_on in data:
            suites.read(task, data[task.name], read(data[task.trained_on]).classes)


def _method(text: str) -> dict[str, Any]:
    """A word such as hst:detached=true,lr=1e-3 as options of a fit."""
    name, _, rest = text.partition(":")
    return {"method": name, **values(rest.split(",") if rest else [], text, "lr=1e-3")}


def _shown(given: argparse.Namespace) -> str:
    out = Path(given.out)
    suite, protocol = _identity(out)
    if given.svg and not given.html:
        raise RequestError("--svg writes the pictures of a page, but no page was asked for: give --html PAGE too.")
    table = reading.table(reading.read(out, suite), suite, protocol=protocol)
    bases = [table.row(label).label for label in given.against if label != PUBLISHED]
    if len(bases) > 1:
        raise RequestError(f"--against takes one row and {PUBLISHED}, but {' and '.join(bases)} came: give one.")
    published = beside.beside(table) if PUBLISHED in given.against else None
    gaps = reading.gaps(table, out)
    if given.html:
        from ..bench import page

        against = bases[0] if bases else None
        page.write(given.html, table, gaps=gaps, against=against, beside=published, pictures=given.svg)
        _say(f"page     {given.html}")
    if given.csv or given.latex:
        return (layout.comma_separated if given.csv else layout.latex)(table)
    lines = [layout.text(table), *(f"* {line}" for line in reading.gap_lines(gaps))]
    for base in bases:
        others = [row.label for row in table.rows if row.label != base]
        lines += ["", *(reading.compare(table, label, base).line() for label in others)]
    if published:
        lines += ["", layout.beside_text(published)]
    return "\n".join(lines)
