"""`--config FILE`: options of a command from a file; `--print-config`: those it would take, as such a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ..common.errors import RequestError, near_misses

OWN = ("config", "print_config", "help")
RECORDED = ("pictures",)  # in the settings.json of a run, but no option of a fit


def add_options(command: argparse.ArgumentParser) -> None:
    """--config and --print-config for a command."""
    command.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML or JSON with options by name, such as a run's settings.json; those given here override it",
    )
    command.add_argument(
        "--print-config",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print all options as such a file, and do nothing",
    )


def chosen(main: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command, or of its part, that the words name."""
    command = main
    for word in words:
        parts = next((a for a in command._actions if isinstance(a, argparse._SubParsersAction)), None)
        if parts is None or word not in parts.choices:
            break
        command = parts.choices[word]
    return command


def read(path: str) -> dict[str, Any]:
    """The options in a file, by name; RequestError where it holds none."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise RequestError(f"{path} cannot be read as YAML or JSON ({said}): give a file of NAME: VALUE.") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise RequestError(f"{path} holds no options by name: give a file of NAME: VALUE, a line for each.")
    return {name.replace("-", "_"): value for name, value in content.items()}


def apply(command: argparse.ArgumentParser, config: dict[str, Any], path: str, *, final: bool = True) -> None:
    """Makes what a file says the defaults of a command.

    final: what the command does not know is a RequestError; without, it may be an option that is added later.
    """
    actions = {action.dest: action for action in command._actions if action.dest not in OWN}
    names = {flag.lstrip("-").replace("-", "_"): a.dest for a in actions.values() for flag in a.option_strings}
    for name, value in config.items():
        dest = name if name in actions else names.get(name)
        if dest is None:
            if final and name not in RECORDED:
                raise RequestError(
                    f"{path} gives {name!r}, but that is no option: see `{command.prog} --help`."
                    f"{near_misses(name, actions)}"
                )
            continue
        if value is None:
            continue  # as if it were not there
        action = actions[dest]
        action.default = _converted(action, name, value, path)
        action.required = False
        if not action.option_strings:
            action.nargs = "*" if action.nargs == "+" else "?"


def _converted(action: argparse.Action, name: str, value: Any, path: str) -> Any:
    """A value as the command line would have made it of its words."""
    kind: Any = action.type or str
    flag = action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction)
    try:
        if flag:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if isinstance(value, dict):  # NAME=VALUE, or a structure that is the option's own
            return value
        if action.nargs is None:
            if isinstance(value, list):
                raise ValueError
            return value if isinstance(value, bool) else kind(str(value))
        return [each if isinstance(each, (list, bool)) else kind(str(each)) for each in _several(value)]
    except (TypeError, ValueError):
        wanted = "true or false" if flag else {int: "a whole number", float: "a number"}.get(kind, "one word")
        raise RequestError(f"{path} gives {name} as {value!r}, but it must be {wanted}: correct it.") from None


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text(given: dict[str, Any]) -> str:
    """Options as a file that `read` takes."""
    plain = {name: _plain(value) for name, value in given.items() if name not in OWN}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
