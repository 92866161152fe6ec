"""The words of the command line: every command with its options. Imports nothing heavy: `vitgraft --help` is quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from ..common.errors import RequestError
from . import config, work
from .fitting import add_answered, add_fit

if TYPE_CHECKING:
    from ..method import Method

BENCH = "methods x tasks x seeds as one resumable grid, and its table"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message[0].upper()}{message[1:]}: see `{self.prog} --help`.")


def parser(method: type[Method] | None = None, *, with_bench: bool = False) -> argparse.ArgumentParser:
    """All commands; `fit` has the options of `method` too, if one is given, and `bench` its own if they are wanted."""
    main = Parser(prog="vitgraft", description="Adapt one frozen, pre-trained Vision Transformer to your own pictures.")
    main.add_argument(
        "--plugin",
        action="append",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="a file of Python with a method, head, task or layout of your own; may stand anywhere, and more than once",
    )
    main.add_argument("--version", action="version", version=f"vitgraft {__version__}")
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    add_fit(partial(_command, commands), method)

    evaluate = _command(commands, "evaluate", work.evaluate, "measure a run on a split of a data set")
    _run_argument(evaluate)
    evaluate.add_argument("data", metavar="DATA", help="folder of pictures")
    evaluate.add_argument("--split", default="test", help="default: test")
    evaluate.add_argument(
        "--out", "-o", metavar="FILE", help="a new .html about what came out, as the run has one about its fit"
    )

    predict = _command(commands, "predict", work.predict, "what a run says about pictures")
    _run_argument(predict)
    predict.add_argument("pictures", metavar="PICTURE", nargs="+", help="files, folders, patterns or addresses")
    predict.add_argument(
        "--out",
        "-o",
        metavar="FOLDER",
        help="a new .csv or .json, or a new folder for predictions.json and, of the dense tasks, drawings",
    )

    for command in (evaluate, predict):
        command.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be read")
    add_answered(evaluate, device="auto")
    add_answered(predict, device="auto", workers="0")

    merge = _command(
        commands, "merge", work.merge, "backbone, method and head of a run as one file that timm alone loads"
    )
    _run_argument(merge)
    merge.add_argument("--out", "-o", required=True, metavar="FILE", help="model.safetensors, a new file")

    export = _command(
        commands, "export", work.export, "a run as ONNX, torch.export, a timm model or an adapter of peft"
    )
    export.add_argument(
        "runs", metavar="RUN", nargs="+", help="folder of a run, or an adapter file; several with --split"
    )
    export.add_argument(
        "--out", "-o", required=True, metavar="FILE", help="a new file; of peft, and split, a new folder"
    )
    export.add_argument("--format", default="onnx", help="onnx, torch-export, timm or peft (default: onnx)")
    export.add_argument("--decode", action="store_true", help="probabilities or classes of pixels rather than logits")
    export.add_argument(
        "--split", action="store_true", help="ONNX: the backbone once, and a file for each run of a detached method"
    )
    export.add_argument(
        "--int8", action="store_true", help="ONNX: matrices in int8, measured before and after on --data"
    )
    export.add_argument("--data", metavar="DATA", help="pictures to compare on (default: random ones)")
    export.add_argument("--data-split", default="test", metavar="SPLIT", help="of --data (default: test)")

    bring = _command(commands, "import", work.import_peft, "an adapter of peft on a timm model, as an adapter file")
    bring.add_argument("folder", metavar="FOLDER", help="that holds adapter_config.json")
    bring.add_argument("--out", "-o", required=True, metavar="FILE", help="a new .safetensors")
    bring.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes, in their order")

    for command in (export, bring):
        command.add_argument("--json", action="store_true", help="JSON on standard output")
    for command in (export, bring):
        command.add_argument("--backbone", "--model", help="where the backbone is, unless by its name")

    serve = _command(commands, "serve", work.serve, "many tasks on one backbone, behind HTTP, with a page")
    serve.add_argument("bank", metavar="BANK", help="a YAML file with NAME: RUN under tasks")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="default: 8000")
    serve.add_argument(
        "--token",
        default="",
        help="what uploads of adapters have to bring, else VITGRAFT_TOKEN; without one there are none",
    )
    serve.add_argument("--waiting", type=int, default=64, help="pictures times tasks under way at once (default: 64)")
    serve.add_argument("--seconds", type=float, default=30.0, help="until a question is given up (default: 30)")
    serve.add_argument("--megabytes", type=float, default=32.0, help="of a request (default: 32)")
    serve.add_argument("--megapixels", type=float, default=64.0, help="of a picture (default: 64)")

    serve.add_argument("--ray", action="store_true", help="on the Ray cluster of RAY_ADDRESS, or one of this machine")
    serve.add_argument("--replicas", type=int, default=1, help="of the backbone, with --ray (default: 1)")

    check = _command(commands, "check", work.check, "read a whole data set and list every problem in it")
    check.add_argument("data", metavar="DATA", help="folder of pictures")
    check.add_argument("--task", help="default: what the folder is arranged for")
    check.add_argument("--json", action="store_true", help="JSON on standard output")

    info = _command(commands, "info", work.info, "what a run is")
    info.add_argument("run", metavar="RUN", help="folder of a run, or an adapter file")
    info.add_argument("--json", action="store_true", help="JSON on standard output")

    methods = _command(commands, "methods", work.methods, "the methods there are, or one of them with its options")
    methods.add_argument("name", metavar="NAME", nargs="?")
    methods.add_argument("--json", action="store_true", help="JSON on standard output")

    zero = _command(commands, "zero-shot", work.zero_shot, "an adapter of a CLIP model from class names alone")
    zero.add_argument("names", metavar="NAMES", help="text file with a class on each line, or a data set with classes")
    zero.add_argument("--backbone", required=True, help="the image tower: timm name or weight file")
    zero.add_argument(
        "--text", required=True, metavar="MODEL", help="open_clip's name of the model: ViT-B-16-quickgelu"
    )
    zero.add_argument("--text-weights", metavar="TAG", help="open_clip's tag of its weights, such as openai, or a file")
    zero.add_argument(
        "--templates", nargs="+", default=["plain"], help="plain, seven, or sentences with {} for the class (plain)"
    )
    zero.add_argument("--normalisation", default="own", help="of pictures, as in a fit (default: own)")
    zero.add_argument("--out", "-o", required=True, metavar="FILE", help="adapter file to write")

    wise = _command(commands, "wise", work.wise, "between what a run started from and where it ended")
    _run_argument(wise)
    wise.add_argument("data", metavar="DATA", nargs="?", help="data set on which each is measured")
    wise.add_argument("--split", default="val", help="of DATA (default: val)")
    wise.add_argument(
        "--shares", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75, 1.0], help="of the tuned weights (0 to 1)"
    )
    wise.add_argument("--out", "-o", metavar="FILE", help="write the adapter of the one share that is named")

    backbones = _command(commands, "backbones", work.backbones, "the pre-trained weights of timm that can be adapted")
    backbones.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="a part of their names")
    backbones.add_argument("--json", action="store_true", help="JSON on standard output")

    if with_bench:
        from . import bench

        bench.arguments(_command(commands, "bench", bench.command, BENCH))
    else:  # its options come from data files, which `vitgraft --help` need not read
        commands.add_parser("bench", help=BENCH, add_help=False)

    get = _command(commands, "get", work.get, "fetch the data sets of a suite, verify them and lay them out")
    get.add_argument("suite", metavar="SUITE", help="such as vtab-1k or few-shot")
    get.add_argument("--out", "-o", required=True, metavar="ROOT", help="folder for one folder per task")

    demo = _command(commands, "demo", work.demo, "a real backbone on real pictures, in a few minutes")
    demo.add_argument("--out", "-o", default="vitgraft-demo", help="folder to make (default: vitgraft-demo)")
    return main


def _command(
    commands: Any, name: str, do: Callable[[argparse.Namespace], None], about: str, **more: Any
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, allow_abbrev=False, **more)
    command.set_defaults(do=do, parser=command)
    if name != "bench":  # its parts have them
        config.add_options(command)
    return command


def _run_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", help="folder of a run, or an adapter file")
    command.add_argument("--backbone", help="the backbone's weights, where the adapter's own name does not find them")
    command.add_argument("--json", action="store_true", help="JSON on standard output")
