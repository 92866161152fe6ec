"""What each command does but `fit`: it asks the room whose work it is, and says what came of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import RequestError, WorkError
from .fitting import answered, summary

if TYPE_CHECKING:
    from ..data.check import Checked


def evaluate(given: argparse.Namespace) -> None:
    from ..adapters.run import Run
    from ..common.files import check_new_file

    if given.out:
        if Path(given.out).suffix.lower() != ".html":
            raise RequestError(f"--out {given.out} is to be a page: give a name that ends in .html.")
        check_new_file(Path(given.out))
    run, how = Run(given.run, given.backbone), answered(given)
    found = run.evaluate(given.data, given.split, skip_bad=given.skip_bad, quiet=given.json, **how)
    if given.out:
        run.write_page(found, given.out, data=given.data, **how)
    if given.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    print("\n".join(found.lines()))
    if given.out:
        print(f"{'page':15} {given.out}")


def zero_shot(given: argparse.Namespace) -> None:
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


def wise(given: argparse.Namespace) -> None:
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


def predict(given: argparse.Namespace) -> None:
    from ..adapters.predictions import all_rows, make_new_folder, save_predictions, save_rows
    from ..adapters.run import Run
    from ..common.files import check_new_file

    run = Run(given.run, given.backbone)
    as_file = Path(given.out or "").suffix.lower() in (".csv", ".json")
    if given.out:
        check_new_file(Path(given.out)) if as_file else make_new_folder(given.out)
    found = run.predict(given.pictures, skip_bad=given.skip_bad, quiet=given.json, **answered(given))
    if given.out:
        (save_rows if as_file else save_predictions)(found, given.out)
    if given.json:
        print(json.dumps(all_rows(found), ensure_ascii=False))
        return
    for prediction in found:
        print(f"{prediction.picture}  {prediction.text}")


def check(given: argparse.Namespace) -> None:
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


def merge(given: argparse.Namespace) -> None:
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


def export(given: argparse.Namespace) -> None:
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


def import_peft(given: argparse.Namespace) -> None:
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


def serve(given: argparse.Namespace) -> None:
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


def info(given: argparse.Namespace) -> None:
    from ..adapters.run import Run

    result = Run(given.run).result
    print(json.dumps(result, ensure_ascii=False) if given.json else summary(result))


def methods(given: argparse.Namespace) -> None:
    from ..pages import catalogue

    if given.json:
        print(json.dumps(catalogue.table(*filter(None, [given.name])), ensure_ascii=False))
    else:
        print(catalogue.describe(given.name) if given.name else catalogue.text())


def backbones(given: argparse.Namespace) -> None:
    from ..pages import backbones

    rows = backbones.table(given.pattern)
    print(json.dumps(rows, ensure_ascii=False) if given.json else backbones.text(rows))


def get(given: argparse.Namespace) -> None:
    from ..common.console import Console
    from .get import get

    with Console() as console:

        def bar(file: str) -> Callable[[int, int], None]:
            update = console.bar(file, "MiB")
            return lambda done, total: update(done >> 20, total >> 20)

        get(given.suite, given.out, say=console.line, bar=bar)


def demo(given: argparse.Namespace) -> None:
    from .demo import demo

    demo(given.out)
