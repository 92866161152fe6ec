"""The command line. Imports nothing heavy before a command needs it: `vitgraft --help` is quick."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .errors import RequestError, VitgraftError, near_misses
from .settings import Settings

if TYPE_CHECKING:
    from .method import Method

BACKBONE = "vit_base_patch16_224"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message[0].upper()}{message[1:]}: see `{self.prog} --help`.")


def parser() -> Parser:
    main = Parser(prog="vitgraft", description="Adapt one frozen, pre-trained Vision Transformer to your own pictures.")
    main.add_argument("--version", action="version", version=f"vitgraft {__version__}")
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _fit_parser(commands)

    evaluate = commands.add_parser("evaluate", help="measure a run on a split of a data set")
    _run_argument(evaluate)
    evaluate.add_argument("data", metavar="DATA", help="folder of pictures")
    evaluate.add_argument("--split", default="test", help="default: test")
    evaluate.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be read")
    evaluate.set_defaults(do=_evaluate)

    predict = commands.add_parser("predict", help="what a run says about pictures")
    _run_argument(predict)
    predict.add_argument("pictures", metavar="PICTURE", nargs="+")
    predict.set_defaults(do=_predict)

    info = commands.add_parser("info", help="what a run is")
    info.add_argument("run", metavar="RUN", help="folder of a run, or an adapter file")
    info.add_argument("--json", action="store_true")
    info.set_defaults(do=_info)

    methods = commands.add_parser("methods", help="the methods there are, or one of them with its options")
    methods.add_argument("name", metavar="NAME", nargs="?")
    methods.add_argument("--json", action="store_true")
    methods.set_defaults(do=_methods)

    demo = commands.add_parser("demo", help="a real backbone on real pictures, in a few minutes")
    demo.add_argument("--out", default="vitgraft-demo", help="folder to make (default: vitgraft-demo)")
    demo.set_defaults(do=_demo)
    return main


def _fit_parser(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="fit a method to a folder of pictures",
        description="Fit a method to a folder of pictures: DATA/SPLIT/CLASS/FILE, DATA/CLASS/FILE, or list files.",
        epilog="A method's own options follow the same way (--detached, --meta-tokens 4): see `vitgraft methods NAME`.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    fit.add_argument("data", metavar="DATA", help="folder of pictures")
    fit.add_argument("--method", default="hst", help="default: hst; see `vitgraft methods`")
    fit.add_argument("--backbone", default=BACKBONE, help=f"timm name or weight file (default: {BACKBONE})")
    fit.add_argument("--out", required=True, metavar="RUN", help="folder to make")
    fit.add_argument("--task", default="classify", help="default: classify")
    fit.add_argument("--resume", action="store_true", default=False, help="continue a fit that was stopped")
    fit.add_argument("--skip-bad", action="store_true", default=False, help="leave out pictures that cannot be read")
    fit.add_argument("--quiet", action="store_true", default=False, help="no lines and bars on the way")
    for setting in fields(Settings):
        shown = "" if setting.default is None else f" (default: {setting.default})"
        fit.add_argument(f"--{setting.name.replace('_', '-')}", help=setting.metadata["help"] + shown, **_kind(setting))
    fit.set_defaults(do=_fit)


def _kind(setting: Any) -> dict[str, Any]:
    if setting.name == "image_size":
        return {"type": int, "nargs": "+", "metavar": "PIXELS"}
    kind = {"int": int, "float": float}.get(setting.type, str)
    return {"type": kind, "metavar": kind.__name__.upper()}


def _run_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", help="folder of a run, or an adapter file")
    command.add_argument("--backbone", help="the backbone's weights, where the adapter's own name does not find them")
    command.add_argument("--json", action="store_true", help="JSON on standard output")


def method_arguments(method: type[Method], words: list[str]) -> dict[str, Any]:
    """The options of a method from the words that the command line left over, typed by their defaults."""
    own = Parser(prog=f"vitgraft fit --method {method.name()}", add_help=False, argument_default=argparse.SUPPRESS)
    for name, default in method.defaults().items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            own.add_argument(flag, action=argparse.BooleanOptionalAction)
        elif isinstance(default, tuple):
            own.add_argument(flag, type=type(default[0]), nargs="+")
        else:
            own.add_argument(flag, type=str if default is None else type(default))
    given, unknown = own.parse_known_args(words)
    if unknown:
        from . import method as methods

        word = unknown[0].partition("=")[0]
        name = word.lstrip("-").replace("-", "_")
        owners = [n for n in methods.names() if name in methods.find(n).defaults()]
        options = [f"--{n.replace('_', '-')}" for n in (*Settings.names(), *method.defaults())]
        belongs = f" {word} is an option of {', '.join(owners)}." if owners else near_misses(word, options)
        raise RequestError(
            f"There is no option {word!r} with the method {method.name()}: "
            f"see `vitgraft fit --help` and `vitgraft methods {method.name()}`.{belongs}"
        )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items()}


def _fit(given: argparse.Namespace, rest: list[str]) -> None:
    from . import method as methods
    from .run import fit

    options = {name: value for name, value in vars(given).items() if name not in ("command", "do", "data")}
    if "image_size" in options:
        size = options["image_size"]
        if len(size) > 2:
            raise RequestError(
                f"--image-size takes one number or height and width, but {len(size)} came: give one or two."
            )
        options["image_size"] = (size[0], size[-1])
    run = fit(given.data, **options, **method_arguments(methods.find(given.method), rest))
    print(_summary(run.result))
    print(f"{run.path}/report.html")


def _evaluate(given: argparse.Namespace, rest: list[str]) -> None:
    from .run import Run

    found = Run(given.run, given.backbone).evaluate(given.data, given.split, skip_bad=given.skip_bad, quiet=given.json)
    if given.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    low, high = found.interval
    print(f"top-1 accuracy {found.accuracy:.2%} ({low:.1%} to {high:.1%}) on {len(found)} pictures of {given.split}")
    for name, correct, n in found.per_class:
        print(f"  {name:24} {correct / n:7.1%}  {correct} of {n}" if n else f"  {name:24}    none")


def _predict(given: argparse.Namespace, rest: list[str]) -> None:
    from .run import Run

    found = Run(given.run, given.backbone).predict(given.pictures)
    if given.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for row in found:
        print(f"{row['picture']}  {row['class']}  {row['probability']:.1%}")


def _info(given: argparse.Namespace, rest: list[str]) -> None:
    from .run import Run

    result = Run(given.run).result
    print(json.dumps(result, ensure_ascii=False) if given.json else _summary(result))


def _methods(given: argparse.Namespace, rest: list[str]) -> None:
    from . import catalogue

    if given.json:
        rows = catalogue.table()
        print(json.dumps([row for row in rows if given.name in (None, row["name"])], ensure_ascii=False))
    else:
        print(catalogue.describe(given.name) if given.name else catalogue.text())


def _demo(given: argparse.Namespace, rest: list[str]) -> None:
    from .demo import demo

    demo(given.out)


def _summary(result: dict[str, Any]) -> str:
    """A run in a few lines."""
    arguments = " ".join(f"{k}={v}" for k, v in result["arguments"].items())
    lines = [
        ("method", f"{result['method']} {arguments}".rstrip()),
        ("backbone", f"{result['backbone']['name']} from {result['backbone']['source']}"),
    ]
    if result["value"] is not None:
        low, high = result["interval"]
        lines.append(
            (result["metric"], f"{result['value']:.2%} ({low:.1%} to {high:.1%}) on {result['split']}, last epoch")
        )
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 done, 1 the work failed, 2 the request was wrong, 130 stopped by Ctrl-C."""
    try:
        given, rest = parser().parse_known_args(arguments)
        if rest and given.command != "fit":
            raise RequestError(f"There is no option {rest[0]!r}: see `vitgraft {given.command} --help`.")
        given.do(given, rest)
    except VitgraftError as error:
        print(f"vitgraft: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vitgraft: stopped by Ctrl-C; a fit continues with the same command and --resume.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
