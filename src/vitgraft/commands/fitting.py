"""The command `fit`: its options, which are the settings' and the method's, and what it says of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args, get_origin

from ..common.recipes import RECIPES
from ..common.settings import ANSWERED, BACKBONE, DENSE, DENSE_METHOD, METHOD, WHOLE, Settings
from ..heads import HEADS
from . import config
from .options import values

if TYPE_CHECKING:
    from ..method import Method


def add_fit(add: Callable[..., argparse.ArgumentParser], method: type[Method] | None) -> None:
    """The command with all settings, and the options of a method. add: makes a command by its name."""
    command = add(
        "fit",
        fit,
        "fit a method to a folder of pictures",
        description="Fit a method to a folder of pictures: DATA/SPLIT/CLASS/FILE, DATA/CLASS/FILE, or list files; "
        "DATA/images/SPLIT with DATA/masks/SPLIT to segment, with DATA/instances_SPLIT.json to detect.",
        epilog="A method's own options follow the same way (--detached, --meta-tokens 4): see `vitgraft methods NAME`.",
        argument_default=argparse.SUPPRESS,
    )
    command.add_argument("data", metavar="DATA", help="folder of pictures")
    command.add_argument("--method", help=f"default: {METHOD}; {DENSE_METHOD} for {', '.join(DENSE)}")
    command.add_argument("--backbone", "--model", help=f"timm name or weight file (default: {BACKBONE})")
    command.add_argument(
        "--start",
        metavar="RUN",
        help="a finished run to begin with; task, method, head, backbone and size of pictures are its own",
    )
    command.add_argument(
        "--recipe",
        help=f"method and options by how much time there is: {', '.join(RECIPES)}; any may be given beside it",
    )
    command.add_argument("--out", "-o", required=True, metavar="RUN", help="folder to make")
    command.add_argument("--task", default=None, help=f"{', '.join((*WHOLE, *DENSE))}; default: what DATA is for")
    heads = "; ".join(f"{task}: {', '.join(HEADS[task])}" for task in DENSE)
    command.add_argument(
        "--head",
        default=None,
        help=f"{heads}; default: the first of the task",
    )
    command.add_argument(
        "--head-options", nargs="+", metavar="NAME=VALUE", help="options of the head, such as samples=128"
    )
    command.add_argument("--resume", action="store_true", default=False, help="continue a fit that was stopped")
    command.add_argument(
        "--skip-bad", action="store_true", default=False, help="leave out pictures that cannot be read"
    )
    command.add_argument("--quiet", action="store_true", default=False, help="no lines and bars on the way")
    for setting in fields(Settings):
        shown = "" if setting.default is None else f" (default: {setting.default})"
        command.add_argument(*_flags(setting.name), help=setting.metadata["help"] + shown, **_kind(setting))
    for name, options in _arguments(method).items() if method else ():
        command.add_argument(_flag(name), **options)


def add_answered(command: argparse.ArgumentParser, **defaults: str) -> None:
    """The settings that a finished run takes anew. defaults: of those that are not as in the fit."""
    for setting in fields(Settings):
        if setting.name in ANSWERED:
            kind = {"action": argparse.BooleanOptionalAction} if setting.type == "bool" else _kind(setting)
            about = f"{setting.metadata['help']} (default: {defaults.get(setting.name, 'as in the fit')})"
            command.add_argument(*_flags(setting.name), default=argparse.SUPPRESS, help=about, **kind)


def answered(given: argparse.Namespace) -> dict[str, Any]:
    """What was given of them."""
    return {name: value for name, value in vars(given).items() if name in ANSWERED}


def _arguments(method: type[Method]) -> dict[str, dict[str, Any]]:
    """What argparse has to know of every argument of a method, from its default and its annotation."""
    hints = method.hints()
    found: dict[str, dict[str, Any]] = {}
    for name, default in method.defaults().items():
        kinds = [kind for kind in (get_args(hints[name]) or (hints[name],)) if kind is not type(None)]
        if kinds == [bool]:
            found[name] = {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple) or get_origin(kinds[0]) is Sequence or get_origin(hints[name]) is Sequence:
            element = (get_args(kinds[0]) or kinds)[0]
            found[name] = {"type": element, "nargs": "*"}
        else:
            found[name] = {"type": kinds[0]}
    return found


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# What people type who come from other tools, where there is no doubt what they mean.
ALSO = {"batch_size": ["--batch"], "lr": ["--learning-rate"], "epochs": ["--num-epochs"], "image_size": ["--imgsz"]}


def _flags(name: str) -> list[str]:
    return [_flag(name), *ALSO.get(name, ())]


def _kind(setting: Any) -> dict[str, Any]:
    if setting.name == "image_size":
        return {"type": int, "nargs": "+", "metavar": "PIXELS"}
    if setting.type == "bool":
        return {"action": "store_true"}
    if setting.name == "jitter":
        return {"type": float, "nargs": 2, "metavar": ("LEAST", "MOST")}
    kind = {"int": int, "float": float}.get(setting.type, str)
    return {"type": kind, "metavar": kind.__name__.upper()}


def fit(given: argparse.Namespace) -> None:
    from ..common.console import first_process
    from ..training.fitting import fit as fitted

    run = fitted(given.data, **fit_options(given))
    if first_process():
        print(summary(run.result))
        print(f"{'page':15} {run.path / 'report.html'}")


def fit_options(given: argparse.Namespace) -> dict[str, Any]:
    """What was given of the arguments of `fit`."""
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(given).items()
        if name not in ("command", "do", "parser", "data", *config.OWN)
    }
    if isinstance(options.get("head_options"), tuple):
        options["head_options"] = values(options["head_options"], "a head", "samples=128")
    return options


def summary(result: dict[str, Any]) -> str:
    """A run in a few lines."""
    arguments = " ".join(f"{k}={v}" for k, v in result["arguments"].items())
    named = result["backbone"]
    lines = [
        ("method", f"{result['method']} {arguments}".rstrip()),
        ("backbone", "{name} from {source}; licence: {}".format(named["license"] or "not stated", **named)),
    ]
    if result["value"] is None:
        lines.append((result["metric"], "not measured, as no split was left for it"))
    else:
        between = "({:.1%} to {:.1%}) ".format(*result["interval"]) if result["interval"] else ""
        lines.append((result["metric"], f"{result['value']:.2%} {between}on {result['split']}, last epoch"))
    if "parameters" in result:
        share = result["parameters"] / result["backbone_parameters"]
        lines += [
            (
                "parameters",
                f"{result['parameters']:,} ({share:.2%} of the backbone), head {result['head_parameters']:,}",
            ),
            ("time", f"{result['seconds']:.1f} s"),
        ]
    lines.append(("adapter", f"{result['adapter_bytes']:,} bytes"))
    return "\n".join(f"{name:15} {text}" for name, text in lines)
