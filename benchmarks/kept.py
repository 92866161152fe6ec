"""Bytes that a training step keeps for its backward pass, as a share of what full fine-tuning keeps.

    python -m benchmarks.kept --method convpass hst hst-detached --json kept.json

`full` is plain timm trained whole, `peft-lora` peft's LoRA (rank 8, every linear layer of the blocks) on plain timm.
`hst-cached` begins at activations that are there already, and stay there whether or not backward needs them. So do
pictures; neither count in any row, nor do parameters, their gradients and the optimiser's state. Each storage counts
once; nothing here depends on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vitgraft import Model
from vitgraft.engine import cost
from vitgraft.pages.catalogue import shape_of

from . import contenders, measure


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_base_patch16_224")
    known = list(dict.fromkeys([*contenders.names(), *contenders.CACHED, *contenders.RIVALS]))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=measure.at_least_one, default=8)
    parser.add_argument("--method", action=measure.Names, known=known, default=known)
    given = parser.parse_args(words)
    contenders.check(given.model, given.image_size)

    found: dict[str, dict[str, int]] = {}
    for name in dict.fromkeys(["full", *given.method]):
        found[name] = {}
        for precision in ("32", "bf16"):
            rival = name in contenders.RIVALS
            start = contenders.rival(name, given.model, given.image_size) if rival else shape_of(given.model)
            with without_memory():
                trained = contender(name, start)
                images = torch.empty(given.batch_size, 3, given.image_size, given.image_size)
                labels = torch.zeros(given.batch_size, dtype=torch.long)
                left = contenders.activations(name, trained, images, precision)
                loss = contenders.training_loss(trained, images, labels, precision, left)
                batch = [images, *(left.taps.values() if left else ())]
                found[name][precision] = cost.kept_by(loss, trained, batch)
                if isinstance(trained, Model):
                    trained.method.contacts.in_training.gradient_checkpointing = True
                    found[name][f"{precision}, checkpointing"] = cost.kept_by(loss, trained, batch)
    print(table(found))
    measure.write(given, bytes=found)


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside, tensors have shapes and no memory, and nothing is computed."""
    with (
        patch.object(nn.init, "trunc_normal_", lambda tensor, **_: tensor),  # looks at numbers, of which none are
        patch.object(nn.Module, "to", lambda module, *_, **__: module),  # torch cannot move such tensors
        FakeTensorMode(),
    ):
        yield


def contender(name: str, start: Any) -> nn.Module:
    """As `contenders.contender`, without memory; start: a Backbone, or the rival."""
    start._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    return (start if name in contenders.RIVALS else contenders.ours(contenders.CACHED.get(name, name), start)).train()


def table(found: dict[str, dict[str, int]]) -> str:
    """Markdown: MiB and share of `full` in either precision, and with gradient checkpointing."""
    columns = [f"{precision}{more}" for precision in ("32", "bf16") for more in ("", ", checkpointing")]
    whole = found["full"]
    rows = []
    for name, kept in found.items():
        cells = [
            f"{kept[column] / 2**20:.0f} MiB, {kept[column] / whole[column.partition(',')[0]]:.3f}"
            if column in kept
            else ""
            for column in columns
        ]
        rows.append([name, *cells])
    return measure.table(["", *columns], rows)


if __name__ == "__main__":
    measure.run(main)
