"""The command line. Imports nothing heavy before a command needs it: `vitgraft --help` is quick."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common import plugins, recipes
from ..common.errors import RequestError, VitgraftError, near_misses
from ..common.settings import METHOD
from . import config
from .fitting import fit_options
from .options import taken
from .parser import parser

if TYPE_CHECKING:
    from ..method import Method


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 done, 1 the work failed, 2 the request was wrong, 130 stopped by Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that are no text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        given = _parse(arguments)
        if getattr(given, "print_config", False):
            print(_config(given), end="")
            return 0
        given.do(given)
    except VitgraftError as error:
        return _stopped(str(error), error.exit_code)
    except RuntimeError as error:
        if "LOCAL_RANK" not in os.environ or "closed by peer" not in str(error):
            raise
        # One of several processes has ended: if it was the first one, it has said why.
        return _stopped("another process of this fit has ended: run the same command with --resume.", 1)
    except OSError as error:  # a disk or a permission where nobody expected it
        return _stopped(f"{error}.", 1)
    except KeyboardInterrupt:
        return _stopped("stopped by Ctrl-C; a fit continues with the same command and --resume.", 130)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command; a word that nobody knows is a RequestError."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    files, words = taken(words, "--plugin")  # before or behind any command
    plugins.add(*files)
    file = next(iter(taken(words, "--config")[0]), None)
    options = config.read(file) if file else {}

    def parsed(method: type[Method] | None = None, *, final: bool = True) -> tuple[argparse.Namespace, list[str]]:
        main = parser(method, with_bench="bench" in words)
        if file:
            config.apply(config.chosen(main, words), options, file, final=final)
        return main.parse_known_args(words)

    given, rest = parsed(final="fit" not in words[:1])
    about = f"see `{given.parser.prog} --help`"
    owners: list[str] = []
    if given.command == "fit":
        from .. import methods

        name = getattr(given, "method", None) or _method_of(given)
        given, rest = parsed(methods.find(name))
        given.method = name
        about += f" and `vitgraft methods {name}`"
        name = rest[0].partition("=")[0].lstrip("-").replace("-", "_") if rest else ""
        owners = [other for other in methods.names() if name in methods.find(other).defaults()]
    if not rest:
        return given
    word = rest[0].partition("=")[0]
    if not word.startswith("-"):
        raise RequestError(f"{word!r} is one word too many: {about}.")
    method = f" with the method {given.method}" if given.command == "fit" else ""
    near = near_misses(word, given.parser._option_string_actions)
    belongs = f" {word} is an option of {', '.join(owners)}." if owners else near
    raise RequestError(f"There is no option {word!r}{method}: {about}.{belongs}")


def _method_of(given: argparse.Namespace) -> str:
    """The method of a fit that names none: that of the run that it starts from, of its recipe, or its task's."""
    from .. import tasks
    from ..adapters.run import Run
    from ..data.recognise import recognise

    if (start := getattr(given, "start", None)) is not None:
        return str(Run(start).result["method"])
    try:
        task = tasks.find(given.task or recognise(given.data))
        if (recipe := getattr(given, "recipe", None)) is not None:
            return recipes.find(recipe, task.name()).method
        return task.method
    except RequestError:  # of the data or the task: the fit itself will say it
        return METHOD


def _config(given: argparse.Namespace) -> str:
    """The options of a command as a file; those of a fit with all that follows from them."""
    if given.command != "fit":
        own = {name: value for name, value in vars(given).items() if name not in ("command", "do", "parser", "part")}
        return config.text(own)
    from ..training.request import settle

    options = fit_options(given)
    own = {name: options.pop(name) for name in ("out", "resume", "skip_bad", "quiet") if name in options}
    return config.text({**settle(Path(given.data), **options).told(), **own})


def _stopped(text: str, code: int) -> int:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # with several devices the first process speaks
        print(f"vitgraft: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
