"""The command line. Imports nothing heavy before a command needs it: `vitgraft --help` is quick."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

from .. import __version__
from ..common import plugins
from ..common.errors import RequestError, VitgraftError, WorkError, near_misses
from ..common.settings import BACKBONE, DENSE, DENSE_METHOD, METHOD, WHOLE, Settings
from . import config
from .options import taken, values

if TYPE_CHECKING:
    from ..data.check import Checked
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
    _fit_parser(commands, method)

    evaluate = _command(commands, "evaluate", _evaluate, "measure a run on a split of a data set")
    _run_argument(evaluate)
    evaluate.add_argument("data", metavar="DATA", help="folder of pictures")
    evaluate.add_argument("--split", default="test", help="default: test")

    predict = _command(commands, "predict", _predict, "what a run says about pictures")
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

    merge = _command(commands, "merge", _merge, "backbone, method and head of a run as one file that timm alone loads")
    _run_argument(merge)
    merge.add_argument("--out", "-o", required=True, metavar="FILE", help="model.safetensors, a new file")

    export = _command(commands, "export", _export, "a run as ONNX, torch.export, a timm model or an adapter of peft")
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

    bring = _command(commands, "import", _import, "an adapter of peft on a timm model, as an adapter file")
    bring.add_argument("folder", metavar="FOLDER", help="that holds adapter_config.json")
    bring.add_argument("--out", "-o", required=True, metavar="FILE", help="a new .safetensors")
    bring.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes, in their order")

    for command in (export, bring):
        command.add_argument("--json", action="store_true", help="JSON on standard output")
    for command in (export, bring):
        command.add_argument("--backbone", "--model", help="where the backbone is, unless by its name")

    serve = _command(commands, "serve", _serve, "many tasks on one backbone, behind HTTP, with a page")
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

    check = _command(commands, "check", _check, "read a whole data set and list every problem in it")
    check.add_argument("data", metavar="DATA", help="folder of pictures")
    check.add_argument("--task", help="default: what the folder is arranged for")
    check.add_argument("--json", action="store_true", help="JSON on standard output")

    info = _command(commands, "info", _info, "what a run is")
    info.add_argument("run", metavar="RUN", help="folder of a run, or an adapter file")
    info.add_argument("--json", action="store_true", help="JSON on standard output")

    methods = _command(commands, "methods", _methods, "the methods there are, or one of them with its options")
    methods.add_argument("name", metavar="NAME", nargs="?")
    methods.add_argument("--json", action="store_true", help="JSON on standard output")

    zero = _command(commands, "zero-shot", _zero_shot, "an adapter of a CLIP model from class names alone")
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

    wise = _command(commands, "wise", _wise, "between what a run started from and where it ended")
    _run_argument(wise)
    wise.add_argument("data", metavar="DATA", nargs="?", help="data set on which each is measured")
    wise.add_argument("--split", default="val", help="of DATA (default: val)")
    wise.add_argument(
        "--shares", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75, 1.0], help="of the tuned weights (0 to 1)"
    )
    wise.add_argument("--out", "-o", metavar="FILE", help="write the adapter of the one share that is named")

    backbones = _command(commands, "backbones", _backbones, "the pre-trained weights of timm that can be adapted")
    backbones.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="a part of their names")
    backbones.add_argument("--json", action="store_true", help="JSON on standard output")

    if with_bench:
        from . import bench

        bench.arguments(_command(commands, "bench", bench.command, BENCH))
    else:  # its options come from data files, which `vitgraft --help` need not read
        commands.add_parser("bench", help=BENCH, add_help=False)

    get = _command(commands, "get", _get, "fetch the data sets of a suite, verify them and lay them out")
    get.add_argument("suite", metavar="SUITE", help="such as vtab-1k or few-shot")
    get.add_argument("--out", "-o", required=True, metavar="ROOT", help="folder for one folder per task")

    demo = _command(commands, "demo", _demo, "a real backbone on real pictures, in a few minutes")
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


def _fit_parser(commands: Any, method: type[Method] | None) -> None:
    fit = _command(
        commands,
        "fit",
        _fit,
        "fit a method to a folder of pictures",
        description="Fit a method to a folder of pictures: DATA/SPLIT/CLASS/FILE, DATA/CLASS/FILE, or list files; "
        "DATA/images/SPLIT with DATA/masks/SPLIT to segment, with DATA/instances_SPLIT.json to detect.",
        epilog="A method's own options follow the same way (--detached, --meta-tokens 4): see `vitgraft methods NAME`.",
        argument_default=argparse.SUPPRESS,
    )
    fit.add_argument("data", metavar="DATA", help="folder of pictures")
    fit.add_argument("--method", help=f"default: {METHOD}; {DENSE_METHOD} for {', '.join(DENSE)}")
    fit.add_argument("--backbone", "--model", help=f"timm name or weight file (default: {BACKBONE})")
    fit.add_argument(
        "--start",
        metavar="RUN",
        help="a finished run to begin with; task, method, head, backbone and size of pictures are its own",
    )
    fit.add_argument("--out", "-o", required=True, metavar="RUN", help="folder to make")
    fit.add_argument("--task", default=None, help=f"{', '.join((*WHOLE, *DENSE))}; default: what DATA is for")
    fit.add_argument(
        "--head",
        default=None,
        help="segment: upernet, fpn, linear, query; detect: faster, cascade; instance: "
        "mask, cascade-mask, query; panoptic: query; default: the first of the task",
    )
    fit.add_argument("--head-options", nargs="+", metavar="NAME=VALUE", help="options of the head, such as samples=128")
    fit.add_argument("--resume", action="store_true", default=False, help="continue a fit that was stopped")
    fit.add_argument("--skip-bad", action="store_true", default=False, help="leave out pictures that cannot be read")
    fit.add_argument("--quiet", action="store_true", default=False, help="no lines and bars on the way")
    for setting in fields(Settings):
        shown = "" if setting.default is None else f" (default: {setting.default})"
        fit.add_argument(*_flags(setting.name), help=setting.metadata["help"] + shown, **_kind(setting))
    for name, options in _arguments(method).items() if method else ():
        fit.add_argument(_flag(name), **options)


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


def _run_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", help="folder of a run, or an adapter file")
    command.add_argument("--backbone", help="the backbone's weights, where the adapter's own name does not find them")
    command.add_argument("--json", action="store_true", help="JSON on standard output")


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
    """The method of a fit that names none: that of the run that it starts from, or its task's."""
    from .. import tasks
    from ..adapters.run import Run
    from ..data.recognise import recognise

    if (start := getattr(given, "start", None)) is not None:
        return str(Run(start).result["method"])
    try:
        return tasks.find(given.task or recognise(given.data)).method
    except RequestError:  # of the data or the task: the fit itself will say it
        return METHOD


def _fit(given: argparse.Namespace) -> None:
    from ..common.console import first_process
    from ..training.fitting import fit

    run = fit(given.data, **_fit_options(given))
    if first_process():
        print(_summary(run.result))
        print(f"{'page':15} {run.path / 'report.html'}")


def _fit_options(given: argparse.Namespace) -> dict[str, Any]:
    """What was given of the arguments of `fit`."""
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(given).items()
        if name not in ("command", "do", "parser", "data", *config.OWN)
    }
    if isinstance(options.get("head_options"), tuple):
        options["head_options"] = values(options["head_options"], "a head", "samples=128")
    return options


def _config(given: argparse.Namespace) -> str:
    """The options of a command as a file; those of a fit with all that follows from them."""
    if given.command != "fit":
        own = {name: value for name, value in vars(given).items() if name not in ("command", "do", "parser", "part")}
        return config.text(own)
    from ..training.request import settle

    options = _fit_options(given)
    own = {name: options.pop(name) for name in ("out", "resume", "skip_bad", "quiet") if name in options}
    return config.text({**settle(Path(given.data), **options).told(), **own})


def _evaluate(given: argparse.Namespace) -> None:
    from ..adapters.run import Run

    found = Run(given.run, given.backbone).evaluate(given.data, given.split, skip_bad=given.skip_bad, quiet=given.json)
    if given.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    print("\n".join(found.lines()))


def _zero_shot(given: argparse.Namespace) -> None:
    from ..adapters.zero_shot import TEMPLATES, OpenClip, zero_shot
    from ..tasks import find

    source = Path(given.names)
    if source.is_file():
        classes = [line.strip() for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        classes = list(find("classify").read(source).classes)
    texts = OpenClip(given.text, given.text_weights)
    named = [TEMPLATES.get(word, (word,)) for word in given.templates]
    templates = [sentence for sentences in named for sentence in sentences]
    how = {"backbone": given.backbone, "templates": templates, "normalisation": given.normalisation}
    print(f"{'adapter':15} {zero_shot(classes, texts, given.out, **how)}: {len(classes)} classes, nothing trained")


def _wise(given: argparse.Namespace) -> None:
    from ..adapters.run import Run
    from ..common.files import check_new_file
    from ..training.wise import Between

    if given.out:
        if len(given.shares) != 1:
            raise RequestError(f"--out takes one share, but {len(given.shares)} came: name it with --shares.")
        check_new_file(Path(given.out))
    elif not given.data:
        raise RequestError("Neither data to measure on nor a file to write came: name DATA, or --out and --shares.")
    between, rows = Between(Run(given.run, given.backbone)), []
    for share in given.shares if given.data else []:
        found = between.at(share).evaluate(given.data, given.split)
        rows.append({"share": share, "metric": found.metric, "value": found.value})
        if not given.json:
            print(f"{share:6.2f}  {found.value:7.2%}  {found.metric}, {given.split}")
    if given.json:
        print(json.dumps(rows))
    if given.out:
        between.write(given.shares[0], given.out)
        print(f"{'adapter':15} {given.out}", file=sys.stderr)


def _predict(given: argparse.Namespace) -> None:
    from ..adapters.predictions import all_rows, make_new_folder, save_predictions, save_rows
    from ..adapters.run import Run
    from ..common.files import check_new_file

    run = Run(given.run, given.backbone)
    as_file = Path(given.out or "").suffix.lower() in (".csv", ".json")
    if given.out:
        check_new_file(Path(given.out)) if as_file else make_new_folder(given.out)
    found = run.predict(given.pictures, skip_bad=given.skip_bad, quiet=given.json)
    if given.out:
        (save_rows if as_file else save_predictions)(found, given.out)
    if given.json:
        print(json.dumps(all_rows(found), ensure_ascii=False))
        return
    for prediction in found:
        print(f"{prediction.picture}  {prediction.text}")


def _check(given: argparse.Namespace) -> None:
    from ..common.console import Console
    from ..data.check import check

    with Console(quiet=given.json) as console:
        found = check(given.data, given.task, progress=console.bar("reading", "pictures"))
    if given.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        print("\n".join(_checked(given.data, found)))
    if found.problems:
        raise WorkError(f"{len(found.problems)} problems in {given.data}: correct them, or fit with --skip-bad.")


def _checked(data: str, found: Checked) -> list[str]:
    """What was found in words: the task, what each split shows, what is odd, what is wrong."""
    lines = [f"{'task':10}{found.task}"]
    for split, classes in found.counts.items():
        shown = [f"{name} {', '.join(f'{n:,} {what}' for what, n in of.items())}" for name, of in classes.items()]
        lines.append(f"{split:10}{'; '.join(shown[:12])}{f'; ... {len(shown)} classes' if len(shown) > 12 else ''}")
    lines += [f"{'note':10}{note}" for note in found.notes]
    return [*lines, *(map(str, found.problems) if found.problems else [f"{data}: no problem found"])]


def _merge(given: argparse.Namespace) -> None:
    from ..adapters.merge import export
    from ..adapters.run import Run

    found = export(Run(given.run, given.backbone), given.out)
    if given.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    n, _, height, width = found["pictures"]
    share = f"{found['relative']:.1e} of their norm ({found['tolerance']:.0e} allowed)"
    lines = [
        ("method", found["method"]),
        ("merged", f"{len(found['changed'])} of {found['tensors']} tensors, and a head of {len(found['classes'])}"),
        ("check", f"logits differ by {found['difference']:.1e} at most, {share}"),
        ("", f"merged from unmerged, on {n} random pictures of {height} x {width}"),
        ("file", f"{found['file']}, {found['bytes']:,} bytes"),
    ]
    print("\n".join(f"{name:15} {text}" for name, text in lines))
    print("\nIn Python, without vitgraft:\n", *found["python"], sep="\n")


def _export(given: argparse.Namespace) -> None:
    from ..adapters.run import Run
    from ..exports.files import export

    backbone = given.backbone
    if backbone and len(given.runs) > 1:
        from ..backbones import Backbone

        backbone = Backbone.load(backbone)
    found = export(
        [Run(run, backbone) for run in given.runs],
        given.out,
        format=given.format,
        decode=given.decode,
        split=given.split,
        int8=given.int8,
        data=given.data,
        split_of_data=given.data_split,
        quiet=given.json,
    )
    _told(found, given.json)


def _import(given: argparse.Namespace) -> None:
    from ..exports.peft import from_peft

    if not given.backbone:
        raise RequestError("An adapter of peft lies on a timm model: name it with --backbone.")
    _told(from_peft(given.folder, given.backbone, given.out, classes=given.classes), given.json)


def _told(found: dict[str, Any], as_json: bool) -> None:
    """What was written, in lines; or as JSON."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for name, value in found.items():
        if name == "tasks":
            for each in value:
                print(f"{'task':16} {each['file']}, {each['bytes']:,} bytes, reads {', '.join(each['reads'])}")
        elif name == "python":
            print("\nIn Python, without vitgraft:\n", *value, sep="\n")
        elif isinstance(value, (list, tuple)):
            print(f"{name:16} {', '.join(map(str, value[:12]))}{' ...' if len(value) > 12 else ''}")
        elif isinstance(value, float):
            print(f"{name:16} {value:.2%}" if name in ("float32", "int8") else f"{name:16} {value:.1e}")
        else:
            print(f"{name:16} {f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else value}")


def _serve(given: argparse.Namespace) -> None:
    from ..serve import run

    run.serve(
        given.bank,
        host=given.host,
        port=given.port,
        token=given.token or os.environ.get("VITGRAFT_TOKEN", ""),
        waiting=given.waiting,
        seconds=given.seconds,
        megabytes=given.megabytes,
        megapixels=given.megapixels,
        on_ray=given.ray,
        replicas=given.replicas,
    )


def _info(given: argparse.Namespace) -> None:
    from ..adapters.run import Run

    result = Run(given.run).result
    print(json.dumps(result, ensure_ascii=False) if given.json else _summary(result))


def _methods(given: argparse.Namespace) -> None:
    from ..pages import catalogue

    if given.json:
        print(json.dumps(catalogue.table(*filter(None, [given.name])), ensure_ascii=False))
    else:
        print(catalogue.describe(given.name) if given.name else catalogue.text())


def _backbones(given: argparse.Namespace) -> None:
    from ..pages import backbones

    rows = backbones.table(given.pattern)
    print(json.dumps(rows, ensure_ascii=False) if given.json else backbones.text(rows))


def _get(given: argparse.Namespace) -> None:
    from ..common.console import Console
    from .get import get

    with Console() as console:

        def bar(file: str) -> Callable[[int, int], None]:
            update = console.bar(file, "MiB")
            return lambda done, total: update(done >> 20, total >> 20)

        get(given.suite, given.out, say=console.line, bar=bar)


def _demo(given: argparse.Namespace) -> None:
    from .demo import demo

    demo(given.out)


def _summary(result: dict[str, Any]) -> str:
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


def _stopped(text: str, code: int) -> int:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # with several devices the first process speaks
        print(f"vitgraft: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
