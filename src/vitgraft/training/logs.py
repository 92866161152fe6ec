"""A fit told to other programs: CSV, TensorBoard, Weights & Biases, MLflow, by Lightning's own loggers."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.console import first_process
from ..common.errors import RequestError
from ..common.settings import LOGS

FABRIC = "lightning_fabric.loggers"
# kind -> the module of its logger and its class there, and the package that this needs beside it
_HOMES = {
    "csv": (FABRIC, "CSVLogger", None),
    "tensorboard": (FABRIC, "TensorBoardLogger", "tensorboard"),
    "wandb": ("pytorch_lightning.loggers", "WandbLogger", "wandb"),
    "mlflow": ("pytorch_lightning.loggers", "MLFlowLogger", "mlflow"),
}
PROJECT = "vitgraft"


class Logs:
    """The loggers of one fit; of several processes only the first one has any.

    CSV and TensorBoard write to OUT/logs; Weights & Biases and MLflow to where their own variables say (WANDB_MODE,
    MLFLOW_TRACKING_URI), the latter else to a file in OUT/logs. A fit that is resumed goes on in the same folder, with
    another file or another run.
    """

    def __init__(self, kinds: str, out: Path, asked: Mapping[str, Any]) -> None:
        """kinds: of LOGS, joined by +. asked: the options of the fit, told as its hyper-parameters."""
        named = kinds.split("+") if kinds != LOGS[0] and first_process() else []
        self._loggers = [_logger(kind, out) for kind in named]
        plain = {
            name: value if isinstance(value, (int, float, str, bool)) else str(value)
            for name, value in asked.items()
            if value is not None
        }
        for kind, logger in zip(named, self._loggers, strict=True):
            if _HOMES[kind][0] != FABRIC:  # whose own have no place for them
                logger.log_hyperparams(plain)

    def __call__(self, step: int, **numbers: float | None) -> None:
        """Numbers at a step, those that are there."""
        told = {name: value for name, value in numbers.items() if value is not None}
        for logger in self._loggers:
            logger.log_metrics(told, step=step)

    def end(self) -> None:
        for logger in self._loggers:
            logger.save()
            logger.finalize("success")


def check(kinds: str) -> None:
    """RequestError where a logger's package is not there."""
    for kind in kinds.split("+") if kinds != LOGS[0] else ():
        module, _, package = _HOMES[kind]
        for needed in filter(None, (module.partition(".")[0], package)):
            if importlib.util.find_spec(needed) is None:
                raise RequestError(
                    f"--log {kind} needs the package {needed.replace('_', '-')}: install it (pip install "
                    "'vitgraft[log]'), or leave the option out."
                )


def _logger(kind: str, out: Path) -> Any:
    module, name, _ = _HOMES[kind]
    cls = getattr(importlib.import_module(module), name)
    if kind == "csv":
        return cls(root_dir=out, name="logs")
    if kind == "tensorboard":
        return cls(root_dir=out, name="logs", version="tensorboard")
    if kind == "wandb":
        return cls(project=PROJECT, name=out.name, save_dir=out)
    where = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'logs').resolve().as_posix()}/mlflow.db")
    (out / "logs").mkdir(exist_ok=True)
    return cls(experiment_name=PROJECT, run_name=out.name, tracking_uri=where)
