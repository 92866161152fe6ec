"""Many tasks on one backbone: seconds and memory, in one process and behind HTTP.

    python -m benchmarks.serving --json serving.json

Of n tasks of one method: one picture asked of all of them, and another picture for each, in interleaved turns with
timm's model of one task (n of them take n times as long and as much memory) and with peft's LoRA, n adapters on one
model, the adapter set for each question. Then requests a second of one task behind the server, against the plain model,
which is a linear probe behind the same server. All tensors are random.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import io
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import peft
import timm
import torch
from PIL import Image

from benchmarks import contenders, measure
from vitgraft.adapters import file as adapter
from vitgraft.backbones import Backbone, weights
from vitgraft.common.settings import Settings
from vitgraft.engine.devices import resolved_precision
from vitgraft.model import build
from vitgraft.serve.bank import Bank

CLASSES = 20
METHODS: dict[str, dict[str, Any]] = {"linear": {}, "hst": {"detached": True}, "lora": {}}


def adapters(folder: Path, backbone: Backbone, method: str, n: int) -> dict[str, Path]:
    """n tasks of a method, each with tensors of its own."""
    files = {}
    for k in range(n):
        name = f"{method}{k}"
        files[name] = folder / f"{name}.safetensors"
        model = build(backbone, method, classes=CLASSES, seed=k, **METHODS[method])
        header = {
            "task": "classify", "method": method, "arguments": model.method.arguments(),
            "backbone": {"name": backbone.name, "source": backbone.source, "fingerprint": backbone.fingerprint},
            "head": {"name": "linear", "options": {}, "neck_blocks": 0, "neck_width": 0},
            "classes": [f"class {i}" for i in range(CLASSES)], "preprocess": backbone.preprocess().to_dict(),
            "protocol": asdict(Settings()), "metrics": {}, "versions": {},
        }  # fmt: skip
        adapter.write(files[name], adapter.compact(model.state()), header)
    return files


def in_process(
    backbone: Backbone, model: str, folder: Path, given: argparse.Namespace, bf16: bool
) -> list[dict[str, Any]]:
    """For each number of tasks: seconds in passes of timm's model, and MiB of what is beside the backbone."""
    rng = np.random.default_rng(0)
    most = max(given.tasks)
    pictures = [Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)) for _ in range(most)]
    plain = timm.create_model(model, num_classes=CLASSES).eval()
    preprocess = backbone.preprocess()

    def ask(model: torch.nn.Module, names: list[str]) -> None:
        pixels = preprocess.normalise(preprocess.pixels(pictures[0])[None])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for name in names:
                if name:
                    model.set_adapter(name)  # type: ignore[operator]
                model(pixels).softmax(-1)

    files = {method: adapters(folder, backbone, method, most) for method in METHODS}
    rows, record = [], []
    for n in given.tasks:
        config = peft.LoraConfig(r=16, lora_alpha=16, target_modules=["qkv"])
        theirs = peft.get_peft_model(copy.deepcopy(plain), config, adapter_name="0")
        for k in range(1, n):
            theirs.add_adapter(str(k), config)
        theirs.eval()
        work: dict[str, Callable[[], None]] = {
            "timm": lambda: ask(plain, [""]),
            "peft": lambda theirs=theirs, n=n: ask(theirs, [str(k) for k in range(n)]),  # type: ignore[misc]
        }
        banks = {m: Bank(backbone, dict(list(of.items())[:n]), precision=given.precision) for m, of in files.items()}
        for method, bank in banks.items():
            names = list(files[method])[:n]
            work[f"{method}, one picture"] = lambda bank=bank: bank.predict(pictures[0])  # type: ignore[misc]
            if n > 1:
                work[f"{method}, a picture each"] = (  # type: ignore[misc]
                    lambda bank=bank, names=names, n=n: bank.predict(pictures[:n], names)
                )
        seconds = measure.turns({name: measure.timed(one) for name, one in work.items()}, given.repeat, warm=1)
        held = {m: sum(row["bytes"] for row in bank.table()) for m, bank in banks.items()}
        held["peft"] = sum(p.nbytes for name, p in theirs.named_parameters() if "lora_" in name)
        held["timm"] = n * sum(p.nbytes for p in plain.parameters())
        for bank in banks.values():
            bank.close()
        for name in work:
            passes = measure.ratio(seconds[name], seconds["timm"]) * (n if name == "timm" else 1)
            size = held[name.partition(",")[0]]
            took = statistics.median(seconds[name]) * (n if name == "timm" else 1)
            rows.append([str(n), name, f"{passes:.2f}", f"{took:.3f}", f"{size / 2**20:.1f}"])
            record.append({"tasks": n, "what": name, "passes": passes, "seconds": seconds[name], "bytes": size})
        print(
            measure.table(["tasks", "what", "passes", "s", "MiB beside the backbone"], rows[-len(work) :]), flush=True
        )
    return record


def behind_http(
    folder: Path, weight_file: Path, files: dict[str, Path], clients: list[int], seconds: float
) -> list[dict]:
    """Requests a second, and how long one takes, of each method's first task."""
    tasks = "".join(f"  {name}: {file}\n" for name, file in files.items())
    (folder / "bank.yaml").write_text(f"backbone: {weight_file}\ntasks:\n{tasks}")
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    command = [sys.executable, "-m", "vitgraft.commands.cli", "serve", str(folder / "bank.yaml"), "--port", str(port)]
    server = subprocess.Popen([*command, "--waiting", "256"], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        begun(server, address)
        rows, record = [], []
        content = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "JPEG")
        for number in clients:
            for name in files:
                took, refused, lasted = asyncio.run(
                    load(f"{address}/v1/tasks/{name}/predict", content.getvalue(), number, seconds)
                )
                took.sort()
                at = {f"p{q}": took[min(int(q / 100 * len(took)), len(took) - 1)] for q in (50, 95, 99)}
                rate = len(took) / lasted
                record.append({"clients": number, "task": name, "a_second": rate, "refused": refused, **at})
                rows.append([str(number), name, f"{rate:.1f}", *(f"{1000 * at[q]:.0f}" for q in at), str(refused)])
        print(measure.table(["clients", "task", "a second", "p50, ms", "p95", "p99", "refused"], rows))
        return record
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def begun(server: subprocess.Popen[bytes], address: str) -> None:
    """Waits until the server answers; RuntimeError where it has ended."""
    while server.poll() is None:
        try:
            if httpx.get(f"{address}/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"The server has ended with {server.returncode}.")


async def load(address: str, content: bytes, clients: int, seconds: float) -> tuple[list[float], int, float]:
    took: list[float] = []
    refused, start = 0, time.perf_counter()
    until = time.perf_counter() + seconds
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=clients)) as client:

        async def one() -> None:
            nonlocal refused
            while time.perf_counter() < until:
                began = time.perf_counter()
                answer = await client.post(address, content=content, headers={"content-type": "image/jpeg"})
                if answer.status_code == 200:
                    took.append(time.perf_counter() - began)
                else:
                    refused += 1
                    await asyncio.sleep(float(answer.headers.get("retry-after", 0.1)))

        await asyncio.gather(*(one() for _ in range(clients)))
    return took or [0.0], refused, time.perf_counter() - start


def main() -> None:
    parser = measure.parser(__doc__, model="vit_base_patch16_224", repeat=3)
    parser.add_argument("--tasks", nargs="+", type=measure.at_least_one, default=[1, 5, 20, 50])
    parser.add_argument("--clients", nargs="*", type=measure.at_least_one, default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load (%(default)s)")
    parser.add_argument("--precision", default="auto", help="as in a fit (%(default)s)")
    given = parser.parse_args()
    bf16 = resolved_precision(given.precision, "cpu") == "bf16"
    with tempfile.TemporaryDirectory() as root:
        folder, file = Path(root), Path(root) / "backbone.safetensors"
        vit = contenders.random_backbone(given.model).vit
        weights.save(vit, file, architecture=given.model, source="random", model_args={})
        backbone = Backbone.load(str(file))
        print(f"{given.model}, {'bf16' if bf16 else '32'}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
        bank = in_process(backbone, given.model, folder, given, bf16)
        files = {method: adapters(folder, backbone, method, 1)[f"{method}0"] for method in METHODS}
        server = behind_http(folder, file, files, given.clients, given.seconds) if given.clients else []
    measure.write(given, bank=bank, server=server)


if __name__ == "__main__":
    measure.run(main)
