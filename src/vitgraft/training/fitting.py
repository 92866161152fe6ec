"""`fit`: from a folder of pictures to a run's folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import timm
import torch
from lightning_fabric import Fabric

from .. import __version__
from ..adapters import file as adapter
from ..adapters.run import Run
from ..backbones import Backbone
from ..common import recipes
from ..common.console import Console, first_process
from ..common.errors import RequestError
from ..common.files import make_folder, write_bytes, write_json
from ..common.settings import CLASS_WEIGHTS, Settings
from ..data import LoadedPictures, Preprocess, audit
from ..engine import cost
from ..engine.activations import activation_store
from ..engine.answers import answers
from ..engine.devices import fabric, resolved_precision
from ..measures import Evaluation
from ..model import Model, build
from ..pages import report
from ..tasks.base import Task
from .checkpoint import Checkpoint, Progress
from .logs import Logs
from .logs import check as check_logs
from .loop import learning_rate, take_settings, train
from .place import already_done, as_folder
from .request import settle

MOST_NOTES = 12  # that are told on the way; result.json and the page have all


def fit(
    root: Any,
    *,
    out: str | Path,
    method: str | None = None,
    backbone: str | Backbone | None = None,
    start: str | Path | None = None,
    task: str | None = None,
    recipe: str | None = None,
    head: str | None = None,
    head_options: Mapping[str, Any] | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Fits one method to a folder of pictures, or to a data set in memory, and leaves the run in `out`.

    root: the folder; docs/data.md says which layouts there are. Or a `torch.utils.data.Dataset`, a Hugging Face
    `datasets.Dataset`, pairs of a picture and a class, of each split one or one alone (`data.in_memory.FORMS`): its
    pictures are written to `out`/pictures once, as it gives them, and read from there. method: the task's own unless
    given. backbone: a timm name, a local file, or a loaded Backbone, which several runs may share; ViT-B/16 unless
    given. start: a finished run to begin with, from which comes what is not given: task, method, head, backbone, the
    size of pictures. Of other classes the layers are new; a linear probe may start any method. task: what the data are
    arranged for, unless given. recipe: method and options by how much time there is (`common.recipes`), any of
    which may be given beside it. head: one of the task's, its first unless given, with its own options. resume:
    continue a fit that was stopped (or start, if none was). options: fields of `Settings` and arguments of the method.
    """
    out = Path(out)
    if not isinstance(root, (str, Path)):
        root, meant = as_folder(root, out, resume, quiet)
        task = task or meant
    request = settle(
        Path(root),
        method=method,
        backbone=backbone,
        start=start,
        task=task,
        recipe=recipe,
        head=head,
        head_options=head_options,
        **options,
    )
    check_logs(request.settings.log)
    kind, settings, begun, backbone = request.task, request.settings, request.start, request.backbone
    found = kind.read(request.root, seed=settings.seed, skip_bad=skip_bad)
    found.split(settings.train_split)  # an unknown split is said before anything is loaded
    settings = replace(settings, eval_split=settings.eval_split or _validation(found, settings.train_split))
    if settings.eval_split:
        found.split(settings.eval_split)
    request = replace(request, root=found.root, settings=settings)
    options_of_head = {**request.head_options, **_head_options(kind.head_options(settings, found), head_options or {})}
    asked = {**request.told(), "pictures": {name: len(split) for name, split in found.splits.items()}}
    with Console(quiet) as console:
        if first_process() and already_done(out, found.root, asked, resume):
            console.line(f"{out} already holds the finished run.")
            return Run(out)
        if isinstance(backbone, str):
            backbone = Backbone.load(backbone, say=console.line)
        backbone.keep_in(settings.backbone_dtype)
        if recipe is not None:
            chosen = recipes.find(recipe, kind.name())
            console.line(f"recipe    {recipe}: {chosen.words}; {chosen.why}")
        console.line(f"backbone  {backbone.name}, from {backbone.source}")
        console.line(f"pictures  {found.root}: {found.layout}")
        notes = [*found.notes, *audit.odd(found)]
        for note in notes[:MOST_NOTES]:
            console.note(note)
        if len(notes) > MOST_NOTES:
            console.note(f"and {len(notes) - MOST_NOTES} more: `vitgraft check {root}` lists them")
        preprocess = kind.preprocessing(backbone, settings.image_size, settings.normalisation)
        levels, told = audit.deep(found.split(settings.train_split).paths)
        preprocess = replace(preprocess, levels=levels)
        for note in told:
            console.note(note)
        notes += told
        backbone.float()  # another run may have had it in float64

        def made(classes: int) -> Model:
            return build(
                backbone,
                request.method,
                classes=classes,
                task=kind.name(),
                head=request.head,
                head_options=options_of_head,
                neck_blocks=settings.neck_blocks,
                neck_width=settings.neck_width,
                seed=settings.seed,
                **request.arguments,
            )

        model = made(len(found.classes))
        started = begun.load(model, found.classes, made) if begun else None
        take_settings(model, settings)
        launched = fabric(settings)  # after everything that can be wrong with the request
        launched.launch()
        return _Fitting(
            out,
            asked,
            options_of_head,
            settings,
            kind,
            found,
            model,
            preprocess,
            launched,
            skip_bad,
            console,
            notes,
            started,
            recipe,
        ).run()


class _Fitting:
    """The steps of one fit, with what they share."""

    def __init__(
        self,
        out: Path,
        asked: dict[str, Any],
        head_options: dict[str, Any],
        settings: Settings,
        task: Task,
        found: Any,
        model: Model,
        preprocess: Preprocess,
        fabric: Fabric,
        skip_bad: bool,
        console: Console,
        notes: list[str],
        started: dict[str, Any] | None,
        recipe: str | None,
    ) -> None:
        self.head_options = head_options
        self.out, self.asked, self.settings, self.task, self.found = out, asked, settings, task, found
        self.model, self.preprocess, self.fabric, self.console = model, preprocess, fabric, console
        self.skipped, self.notes, self.started, self.recipe = 0, notes, started, recipe
        self.counts: dict[str, Any] = {}  # by split and class
        self.class_weights = settings.class_weights  # "auto" until the training pictures have been seen
        self.examples: list[tuple[str, str]] = []  # of each class: its name, and a picture of it
        self.train_pictures = self._decode(settings.train_split, skip_bad, training=True)
        self.eval_pictures = self._decode(settings.eval_split, skip_bad) if settings.eval_split else None

    def run(self) -> Run:
        if self.fabric.is_global_zero:
            make_folder(self.out)
            write_json(self.out / "settings.json", self.asked)
        log = Logs(self.settings.log, self.out, self.asked)
        bar, reading = self.console.bar("", "steps"), self.console.bar("backbone", "pictures")
        epochs, note = self.settings.epochs, ""
        validation = None
        if self.eval_pictures is not None:
            validation = activation_store(self.model, self.eval_pictures, self.preprocess, self.settings, self.fabric)

        def title(epoch: int) -> str:
            return f"{self.asked['method']:9} epoch {epoch:{len(str(epochs))}}/{epochs}"

        def on_read(done: int, pictures: int) -> None:
            nonlocal bar
            reading(done, pictures)
            bar = self.console.bar("", "steps")  # whose clock starts here

        def on_step(progress: Progress, steps: int, loss: float) -> None:
            log(progress.step, loss=loss, lr=learning_rate(progress.step - 1, steps, self.settings))
            if progress.step < steps:  # the last one is drawn with its epoch
                bar(progress.step, steps, f"loss {loss:.3f}{note}", title(progress.epoch + 1))

        def after_epoch(progress: Progress) -> None:
            nonlocal note
            record = progress.history[-1]
            if self.settings.eval_split == "val":  # only what is called validation is looked at before the end
                record["val"] = self._evaluate(validation).value
                note = f", val {record['val']:.3f}"
            log(progress.step, epoch=progress.epoch, mean_loss=record["loss"], val=record.get("val"))
            self._write_metrics(progress)
            steps = progress.step // progress.epoch * epochs
            bar(progress.step, steps, f"loss {record['loss']:.3f}{note}", title(progress.epoch))

        checkpoint = Checkpoint(self.out / "checkpoint.safetensors")
        progress = train(
            self.model,
            self.train_pictures,
            self.preprocess,
            self.settings,
            self.fabric,
            checkpoint,
            after_epoch=after_epoch,
            on_step=on_step,
            on_calibrate=self.console.bar("calibrate", "pictures"),
            on_read=on_read,
        )
        spent = self._cost()
        self.train_pictures.close()
        # What is evaluated is what the file holds, after its consolidation and its rounding.
        self.model.method.consolidate()
        tensors = adapter.compact(self.model.state())
        self.model.load_state(tensors)
        final = None
        if self.eval_pictures is not None:
            final = self._evaluate(validation)
            self.eval_pictures.close()
        if self.fabric.is_global_zero:
            self._write(tensors, progress, final, spent)
        log(progress.step, final=final.value if final else None)
        log.end()
        self.fabric.barrier()
        return Run(self.out, self.model.backbone, evaluation=final)

    def _decode(self, split: str, skip_bad: bool, *, training: bool = False) -> LoadedPictures:
        pictures = self.task.load(
            self.found.split(split),
            self.preprocess,
            classes=len(self.found.classes),
            settings=self.settings,
            training=training,
            skip_bad=skip_bad,
            progress=self.console.bar(f"decoding  {split}", "pictures"),
        )
        self.console.skipped(pictures.skipped)
        self.skipped += len(pictures.skipped)
        self._look(split, pictures, training)
        return pictures

    def _look(self, split: str, pictures: LoadedPictures, training: bool) -> None:
        """Counts what a split shows of each class, and says what it lacks."""
        classes, shown = self.found.classes, pictures.shown
        notes: list[str] = []
        if training:
            audit.check_learnable(split, shown, classes)
            self.class_weights, notes = audit.weights_by(self.settings.class_weights, shown, classes)
            if power := CLASS_WEIGHTS[self.class_weights]:
                self.model.head.balance(shown.things, power)
            self.examples = [
                (name, str(pictures.paths[k])) for name, k in zip(classes, shown.first, strict=True) if k >= 0
            ]
        self.counts[split] = audit.counts(shown, classes)
        for note in [*notes, *audit.missing(split, shown, classes, training=training)]:
            self.notes.append(note)
            self.console.note(note)

    def _evaluate(self, store: Any) -> Evaluation:
        assert self.eval_pictures is not None
        assert self.settings.eval_split is not None
        found = answers(
            self.model,
            self.eval_pictures,
            self.preprocess,
            self.fabric,
            self.task.answer(self.settings, self.preprocess),
            batch_size=self.settings.batch_size,
            store=store,
        )
        return self.task.measure(
            found, self.eval_pictures, self.fabric, split=self.settings.eval_split, classes=self.found.classes
        )

    def _cost(self) -> dict[str, Any]:
        """FLOPs of one picture, and the bytes kept for backward by a batch of up to 8."""
        size = min(8, self.settings.batch_size, len(self.train_pictures))
        batch = next(self.train_pictures.batches([list(range(size))], epoch=0)).to(self.fabric.device)
        images = self.preprocess.normalise(batch.pixels).to(next(self.model.head.parameters()).dtype)
        self.model.train()
        with self.fabric.autocast():
            kept = cost.kept_bytes(self.model, images, batch.targets)
        self.model.eval()
        gflops = cost.flops(self.model, images[:1]) / 1e9
        return {"gflops_per_picture": gflops, "bytes_kept_for_backward": kept, "bytes_kept_batch": size}

    def _write_metrics(self, progress: Progress) -> None:
        if self.fabric.is_global_zero:
            lines = "".join(json.dumps(record) + "\n" for record in progress.history)
            write_bytes(self.out / "metrics.jsonl", lines.encode())

    def _write(self, tensors: dict, progress: Progress, final: Evaluation | None, spent: dict[str, Any]) -> None:
        settings, counts = self.settings, cost.parameters(self.model)
        protocol: dict[str, Any] = {
            **asdict(settings),
            "precision": resolved_precision(settings.precision, settings.device),
            "class_weights": self.class_weights,
            "epoch_reported": "last",
            **({"start": self.started} if self.started else {}),
            **({"recipe": self.recipe} if self.recipe else {}),
        }
        protocol["image_size"] = list(self.preprocess.size)
        versions = {
            "vitgraft": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        }
        value = {
            "metric": self.task.metric,
            "value": final.value if final else None,
            "interval": list(final.interval) if final and final.interval else None,
            "split": settings.eval_split,
        }
        header = adapter.told(
            self.model,
            self.preprocess,
            self.found.classes,
            task=self.asked["task"],
            head=self.asked["head"],
            head_options=self.head_options,
            neck={name: getattr(settings, name) for name in adapter.NECK},
            protocol=protocol,
            metrics=value,
            versions=versions,
        )
        size = adapter.write(self.out / "adapter.safetensors", tensors, header)
        pictures = {n: len(s) for n, s in self.found.splits.items()}
        result = {
            **{name: header[name] for name in ("task", "head", "method", "arguments", "backbone")},
            **value,
            "numbers": final.numbers if final else {},
            "parameters": counts["method"],
            "head_parameters": counts["head"],
            "backbone_parameters": counts["backbone"],
            "adapter_bytes": size,
            "seconds": round(progress.seconds, 3),
            "seed": settings.seed,
            "data": {
                "root": str(self.found.root),
                "layout": self.found.layout,
                "classes": list(self.found.classes),
                "pictures": pictures,
                "skipped": self.skipped,
                "notes": self.notes,
                "counts": self.counts,
            },
            "preprocess": str(self.preprocess),
            "protocol": protocol,
            "cost": {
                **spent,
                "peak_memory_bytes": cost.peak_memory(self.fabric.device),
                "seconds_per_epoch": round(progress.seconds / settings.epochs, 3),
            },
            "versions": versions,
        }
        self._write_metrics(progress)
        sections = self.task.sections(final) if final else ""
        report.write(
            self.out / "report.html",
            result=result,
            metrics=progress.history,
            evaluation=final,
            sections=sections,
            examples=self.examples,
        )
        write_json(self.out / "result.json", result)


def _head_options(own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a head that follow from the settings and the data; RequestError where others were given."""
    for name, value in own.items():
        if name in given and given[name] != value:
            raise RequestError(
                f"{name} of the head follows from the settings and the data, and is {value}, but {given[name]} was "
                "given: leave it out of the head's options."
            )
    return own


def _validation(found: Any, train_split: str) -> str | None:
    return "val" if "val" in found.splits and "val" not in train_split.split("+") else None
