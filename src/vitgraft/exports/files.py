"""Graphs as files, each compared with the run that it comes from: `vitgraft export`."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from ..adapters.merge import export as to_timm
from ..adapters.run import Run, settings_of
from ..common.console import Console
from ..common.errors import RequestError, WorkError
from ..common.files import check_new_file, make_folder, write_bytes
from ..data import Batch
from ..engine.devices import fabric
from .graph import Beside, Shared, Whole, as_graph, merged, traced
from .peft import to_peft

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "timm": ".safetensors", "peft": ""}
TOLERANCE = 1e-3  # of the largest number of an answer; float32 in another order comes to 1e-6
COMPARED = (1, 3)  # pictures of the batches that both are run on


def export(
    runs: Sequence[Run],
    out: str | Path,
    *,
    format: str = "onnx",
    decode: bool = False,
    split: bool = False,
    int8: bool = False,
    data: str | Path | None = None,
    split_of_data: str = "test",
    quiet: bool = True,
) -> dict[str, Any]:
    """Writes a run in another form, to a new file (peft, and split: a new folder), and runs both on the same pictures.

    decode: the answer as people read it (probabilities, classes of pixels) rather than as the head gives it. split:
    ONNX alone, of detached methods: backbone.onnx once, which all of the runs share, and NAME.onnx for each. int8:
    ONNX alone: matrices rounded by onnxruntime. data: pictures to compare on, and to measure int8 on; random ones
    unless given. Gives what was done, ready for JSON, with the largest difference. RequestError and WorkError leave
    nothing behind.
    """
    if format not in FORMATS:
        raise RequestError(f"There is no format {format!r}: there are {', '.join(FORMATS)}; choose one of these.")
    for option, asked, has in (
        ("split", split, ("onnx",)),
        ("int8", int8, ("onnx",)),
        ("decode", decode, ("onnx", "torch-export")),
    ):
        if asked and format not in has:
            raise RequestError(f"--{option} is of {' and '.join(has)}, but {format} was asked for: leave it out.")
    if int8 and data is None:
        raise RequestError("What int8 costs is measured: give pictures with their truth by --data.")
    if len(runs) > 1 and not split:
        raise RequestError(f"{len(runs)} runs came, and one file holds one: give --split, or export them in turn.")
    out = Path(out)
    ending = "" if split else FORMATS[format]
    if out.suffix != ending and ending:
        raise RequestError(f"{out} was to be written, but {format} is told by its ending: let --out end in {ending}.")
    check_new_file(out)
    if format == "timm":
        return {"format": format, **to_timm(runs[0], out)}
    if format == "peft":
        return {"format": format, **to_peft(runs[0], out)}
    if format == "onnx":
        _onnx()
    if split:
        return _write_split(runs, out, decode=decode)
    return _write_whole(runs[0], out, format, decode, int8, data, split_of_data, quiet)


def _write_whole(
    run: Run, out: Path, format: str, decode: bool, int8: bool, data: Any, split: str, quiet: bool
) -> dict[str, Any]:
    whole = Whole(run, decode=decode)
    batches = [whole.pixels(n, seed=n) for n in ((1,) if whole.one else COMPARED)]
    if data is not None:
        batches = [batch.pixels for batch, _ in zip(_batches(run, data, split, whole), range(4), strict=False)]
    with torch.no_grad():
        expected = [_tensors(whole(pixels)) for pixels in batches]
    with as_graph():
        if whole.task.name() == "instance":  # masks of boxes, not laid over the picture yet
            with torch.no_grad():
                expected = [_tensors(whole(pixels)) for pixels in batches]
        with merged(whole.model) as is_merged:
            graph = traced(whole, (batches[0][:1].repeat(1 if whole.one else 2, 1, 1, 1),), free=not whole.one)
            if format == "onnx":
                content = _as_onnx(graph, ["pixels"], whole.names, _about(run, whole))
            else:
                content = _as_pt2(graph)
    answers = _asks(format, content)
    found = [answers({"pixels": pixels}) for pixels in batches]
    report = {
        "format": format,
        "file": str(out),
        "bytes": len(content),
        "method": run.adapter.header["method"],
        "merged": is_merged,
        "takes": ["pixels", "uint8", [1 if whole.one else "batch", 3, *whole.size]],
        "gives": whole.names,
        "pictures": sum(len(pixels) for pixels in batches),
        **_difference(found, expected, whole.names),
    }
    if int8:
        small = _rounded(content)
        before, after = (_measured(run, data, split, _asks(format, of), whole, quiet) for of in (content, small))
        report |= {"bytes": len(small), "float32_bytes": len(content), "metric": run.task.metric, **{
            "float32": before, "int8": after, "split": split}}  # fmt: skip
        content = small
    write_bytes(out, content)
    return report


def _write_split(runs: Sequence[Run], out: Path, *, decode: bool) -> dict[str, Any]:
    """backbone.onnx, and NAME.onnx for each run, in a new folder."""
    wholes = [Whole(run, decode=decode) for run in runs]
    names = [run.path.stem if run.path.is_file() else run.path.name for run in runs]
    if len(set(names)) < len(names):
        raise RequestError(f"Two of the runs are called {max(names, key=names.count)}: rename one of their folders.")
    sizes = {(whole.size, bool(whole.model.head.levels)) for whole in wholes}
    prints = {run.adapter.header["backbone"]["fingerprint"] for run in runs}
    if len(sizes) > 1 or len(prints) > 1:
        raise RequestError(
            "Runs that share a backbone's half have one backbone and one size of pictures, but these differ: export "
            "those apart that do."
        )
    shared = Shared([whole.model for whole in wholes])
    free = not any(whole.one for whole in wholes)
    pixels = wholes[0].pixels(3 if free else 1)
    grids = wholes[0].model.backbone(wholes[0].model.seen(wholes[0].normalised(pixels))).grids
    parts: dict[str, bytes] = {}
    reports = []
    with as_graph(), torch.no_grad():
        images = wholes[0].normalised(pixels)
        given = dict(zip(shared.names, shared(images), strict=True))
        about = {"backbone": json.dumps(runs[0].adapter.header["backbone"])}
        parts["backbone.onnx"] = _as_onnx(traced(shared, (images,), free=free), ["images"], shared.names, about)
        backbone = _asks("onnx", parts["backbone.onnx"])
        for run, whole, name in zip(runs, wholes, names, strict=True):
            beside = Beside(whole, grids)
            inputs = (pixels, *(given[of] for of in beside.reads))
            content = _as_onnx(
                traced(beside, inputs, free=free), ["pixels", *beside.reads], whole.names, _about(run, whole)
            )
            parts[f"{name}.onnx"] = content
            half = dict(zip(shared.names, backbone({"images": whole.normalised(pixels)}), strict=True))
            found = _asks("onnx", content)({"pixels": pixels, **{of: half[of] for of in beside.reads}})
            reports.append(
                {"file": f"{name}.onnx", "bytes": len(content), "reads": beside.reads, "gives": whole.names,
                 **_difference([found], [_tensors(whole(pixels))], whole.names)}
            )  # fmt: skip
    make_folder(out)
    for name, content in parts.items():
        write_bytes(out / name, content)
    return {
        "format": "onnx",
        "file": str(out),
        "backbone_bytes": len(parts["backbone.onnx"]),
        "tasks": reports,
        "difference": max(report["difference"] for report in reports),
    }


def _about(run: Run, whole: Whole) -> dict[str, str]:
    """What a file says of itself."""
    header = run.adapter.header
    told = {key: header[key] for key in ("task", "method", "classes", "backbone", "preprocess")}
    return {"vitgraft": json.dumps({**told, "gives": whole.names}, ensure_ascii=False)}


def _onnx() -> Any:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise RequestError(f"ONNX needs the package {error.name}: pip install 'vitgraft[onnx]'.") from error
    onnxruntime.set_default_logger_severity(3)
    return onnx, onnxruntime


def _as_onnx(graph: Any, takes: list[str], gives: list[str], about: Mapping[str, str]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            graph, (), dynamo=True, verbose=False, input_names=takes, output_names=gives, external_data=False
        )
    proto = program.model_proto
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto.SerializeToString()


def _as_pt2(graph: torch.export.ExportedProgram) -> bytes:
    with tempfile.TemporaryDirectory(prefix="vitgraft-") as folder:
        path = Path(folder) / "graph.pt2"
        torch.export.save(graph, path)
        return path.read_bytes()


def _asks(format: str, content: bytes) -> Any:
    """A function {input: tensor} -> [tensor, ...] that runs the file."""
    if format == "onnx":
        _, onnxruntime = _onnx()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

        def ask(given: Mapping[str, Tensor]) -> list[Tensor]:
            taken = {entry.name for entry in session.get_inputs()}
            found = session.run(None, {name: np.asarray(t) for name, t in given.items() if name in taken})
            return [torch.from_numpy(np.asarray(each)) for each in found]

        return ask
    with tempfile.TemporaryDirectory(prefix="vitgraft-") as folder:
        path = Path(folder) / "graph.pt2"
        path.write_bytes(content)
        module = torch.export.load(path).module()

    def run(given: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return _tensors(module(*given.values()))

    return run


def _tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def _difference(found: list[list[Tensor]], expected: list[list[Tensor]], names: Sequence[str]) -> dict[str, Any]:
    """The largest difference of a number, also as a share of the largest number there; WorkError where it is not that
    of another order of sums. names: of what an answer consists of."""
    largest = share = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(_in_their_order(ours, theirs, names), theirs, strict=True):
            if one.shape != other.shape:
                raise WorkError(
                    f"The graph answers with {list(one.shape)}, where the run has {list(other.shape)}: report this."
                )
            if one.numel():
                difference = float((one.double() - other.double()).abs().max())
                largest = max(largest, difference)
                share = max(share, difference / max(float(other.double().abs().max()), 1e-12))
    if not share <= TOLERANCE:
        raise WorkError(
            f"The graph's answers differ from the run's by {share:.1e} of the largest, and {TOLERANCE:.0e} is allowed: "
            "report this."
        )
    return {"difference": largest, "relative": share, "tolerance": TOLERANCE}


def _in_their_order(ours: list[Tensor], theirs: list[Tensor], names: Sequence[str]) -> list[Tensor]:
    """The objects of an answer as another one has them: two that are sure alike, but for rounding, come either way."""
    if not {"boxes", "labels", "scores"} <= {*names} or ours[0].shape != theirs[0].shape or not len(ours[0]):
        return ours
    (boxes, labels, scores), (their_boxes, their_labels, their_scores) = (
        [of[names.index(name)].double() for name in ("boxes", "labels", "scores")] for of in (ours, theirs)
    )
    apart = torch.cdist(their_boxes, boxes, p=torch.inf) / their_boxes.abs().max().clamp(min=1)
    apart += (their_scores[:, None] - scores).abs() + (their_labels[:, None] != labels)
    return [each[linear_sum_assignment(apart)[1]] for each in ours]


def _rounded(content: bytes) -> bytes:
    """The matrices in int8, a scale for each of their columns; what enters a product is rounded as it comes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="vitgraft-") as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        before.write_bytes(content)
        logging.disable(logging.WARNING)  # its advice is about graphs that are not optimised yet
        try:
            quantize_dynamic(
                before, after, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
            )
        finally:
            logging.disable(logging.NOTSET)
        return after.read_bytes()


def _batches(run: Run, data: str | Path, split: str, whole: Whole) -> Iterator[Batch]:
    pictures = _pictures(run, data, split)
    for indices in pictures.even_batches(1 if whole.one else 8):
        for batch in pictures.batches([indices]):
            yield _canvas(batch, whole.size)


def _pictures(run: Run, data: str | Path, split: str) -> Any:
    settings = replace(settings_of(run.adapter.header), workers=0)
    found = run.task.read(Path(data), seed=settings.seed, classes=run.classes)
    return run.task.load(found.split(split), run.adapter.preprocess, classes=len(run.classes), settings=settings)


def _canvas(batch: Batch, size: tuple[int, int]) -> Batch:
    """Padded to the size of the graph, at the right and the bottom."""
    H, W = size
    h, w = batch.pixels.shape[-2:]
    if (h, w) == size:
        return batch
    if h > H or w > W:
        raise RequestError(f"A picture takes {h} x {w} pixels, but the graph has {H} x {W}: export without --sliding.")
    pixels = batch.pixels.new_zeros(*batch.pixels.shape[:2], H, W)
    pixels[..., :h, :w] = batch.pixels
    return replace(batch, pixels=pixels)


def _measured(run: Run, data: Any, split: str, ask: Any, whole: Whole, quiet: bool) -> float | None:
    """The run's metric of what a file answers."""
    pictures = _pictures(run, data, split)
    used = fabric(replace(settings_of(run.adapter.header), device="cpu", precision="32"))

    def answers() -> Iterator[tuple[Batch, Any]]:
        with Console(quiet) as console:
            bar = console.bar("answering", "pictures")
            done = 0
            for indices in pictures.even_batches(1 if whole.one else 8):
                for batch in pictures.batches([indices]):
                    h, w = batch.pixels.shape[-2:]
                    found = ask({"pixels": _canvas(batch, whole.size).pixels})
                    done += len(indices)
                    bar(done, len(pictures))
                    if not whole.one:
                        yield batch, found[0] if run.task.name() != "segment" else found[0][..., :h, :w]
                        continue
                    record = dict(zip(whole.names, found, strict=True))
                    if "masks" in record and record["masks"].shape[-2:] != whole.size:
                        record["masks"] = paste_masks_in_image(record["masks"], record["boxes"], (h, w))
                    yield batch, [record]

    return run.task.measure(answers(), pictures, used, split=split, classes=run.classes).value
