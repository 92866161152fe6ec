"""What keys and values of a method's own cost an attention, against a plain one with as many keys.

    python -m benchmarks.prefix

Forward and backward of one attention of ViT-B/16, [8, 12, 197, 64], from the fused q, k and v, in float32 and bf16; the
plain one has its keys and values laid out beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitgraft.backbones.transformer import prefixed
from vitgraft.contacts import Contacts
from vitgraft.kernels.attention import attention

from . import measure

B, HEADS, TOKENS, E = 8, 12, 197, 64
PATH = "blocks.0.attn"


def ours(T: int, dtype: torch.dtype) -> Callable[[], object]:
    """With T keys and values in front."""
    qkv = torch.randn(B, TOKENS, 3, HEADS, E, dtype=dtype, requires_grad=True)
    own = torch.randn(2, HEADS, T, E, requires_grad=True)
    contacts = Contacts()
    contacts.prefixes[PATH] = lambda: (own[0], own[1])

    def step() -> None:
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        k, v = prefixed(PATH, k, v, contacts)
        _backward(q, k, v)

    return step


def plain(T: int, dtype: torch.dtype) -> Callable[[], object]:
    """T more keys that were there all the time."""
    qkv = torch.randn(B, TOKENS, 3, HEADS, E, dtype=dtype, requires_grad=True)
    more = torch.randn(2, B, HEADS, TOKENS + T, E, dtype=dtype, requires_grad=True)

    def step() -> None:
        q, _, _ = (part.transpose(1, 2) for part in qkv.unbind(2))
        _backward(q, more[0], more[1])

    return step


def _backward(q: Tensor, k: Tensor, v: Tensor) -> None:
    attention(q, k, v).sum().backward()


def main(words: Sequence[str] | None = None) -> None:
    parser = measure.parser(__doc__, repeat=15)
    parser.add_argument("--keys", nargs="+", type=measure.at_least_one, default=[5, 10, 50])
    given = parser.parse_args(words)
    rows, record = [], []
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        for T in given.keys:
            work = {"ours": measure.timed(ours(T, dtype)), "plain": measure.timed(plain(T, dtype))}
            seconds = measure.turns(work, given.repeat, warm=2)
            ratio = measure.ratio(seconds["ours"], seconds["plain"])
            rows.append([name, str(T), f"{ratio:.2f}"])
            record.append({"precision": name, "keys": T, "ratio": ratio, "seconds": seconds})
    print(measure.table(["precision", "keys more", "/ plain"], rows))
    measure.write(given, prefix=record)


if __name__ == "__main__":
    measure.run(main)
