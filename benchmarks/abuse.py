"""What a server does with requests that mean no good: 10,000 of them, then adapters swapped 1,000 times under load.

    python -m benchmarks.abuse --requests 10000 --swaps 1000

Counts answers by status, bytes that the process has grown by, and files that appeared anywhere beside the bank. It ends
with 1 where an answer was 5xx, an answer to a sound request was wrong, or a file was written that should not be there.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
import timm
import torch
from PIL import Image

from benchmarks.serving import adapters, begun
from vitgraft.backbones import Backbone, weights

TOKEN = "token"
SMALL = {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 4, "dynamic_img_size": True}
NAMES = (
    "nobody",
    "%2e%2e%2fbank",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%00",
    "a" * 500,
    "lora0%0a",
    "lora0%2f..%2flinear0",
    "~root",
)


def picture(seed: int = 0, size: tuple[int, int] = (60, 40), kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def bomb() -> bytes:
    """A small PNG of 400 million pixels."""
    content = io.BytesIO()
    Image.new("1", (20000, 20000)).save(content, "PNG")
    return content.getvalue()


def hostile(random: random.Random, good: bytes, large: bytes, altered: bytes) -> dict:
    """A request that must be refused, or that does no harm."""
    path = f"/v1/tasks/{random.choice(('lora0', 'linear0', *NAMES))}/predict"
    cut = good[: random.randrange(len(good) - 20)]
    flipped = bytearray(good)
    for _ in range(20):
        flipped[random.randrange(len(flipped))] = random.randrange(256)
    text = base64.b64encode(good).decode()
    json_kind, image = {"content-type": "application/json"}, {"content-type": "image/jpeg"}
    token = {"Authorization": f"Bearer {TOKEN}"}
    name = random.choice(NAMES)
    choices = [
        {"content": cut, "headers": image},
        {"content": bytes(flipped), "headers": image},
        {"content": random.randbytes(random.randrange(1, 5000)), "headers": image},
        {"content": large, "headers": image},
        {"content": random.randbytes(200), "headers": json_kind},
        {"content": b"[" * random.randrange(1, 50000), "headers": json_kind},
        {"content": json.dumps({"pictures": [text[: random.randrange(len(text))]]}), "headers": json_kind},
        {"content": json.dumps({"pictures": random.choice([None, 7, {}, [[]], [None]])}), "headers": json_kind},
        {"content": json.dumps({"pictures": [text], "tasks": ["../x"]}), "headers": json_kind, "path": "/v1/predict"},
        {"content": random.randbytes(500), "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"--x\r\n" + random.randbytes(99), "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"files": [("pictures", ("../../../tmp/evil.png", cut))]},
        {"files": [("pictures", ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"))]},
        {"files": [("pictures", (f"{k}.jpg", b"x")) for k in range(60)]},
        {
            "raw": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\nabc"
            % path.encode()
        },
        {"raw": b"GET / HTTP/9.9\r\n" + random.randbytes(60) + b"\r\n\r\n"},
        {"content": good, "headers": {"content-type": random.choice(["text/html", "", "image/../x", "a" * 3000])}},
        {"method": "PUT", "path": f"/v1/tasks/{name}", "content": altered, "headers": token},
        {"method": "PUT", "path": "/v1/tasks/new", "content": altered, "headers": token},
        {"method": "PUT", "path": "/v1/tasks/new", "content": cut, "headers": token},
        {"method": "PUT", "path": "/v1/tasks/new", "content": altered},
        {"method": "DELETE", "path": "/v1/tasks/lora0", "headers": {"Authorization": "Bearer wrong"}},
        {"method": "DELETE", "path": f"/v1/tasks/{name}", "headers": token},
        {"method": random.choice(["PATCH", "OPTIONS", "TRACE", "GET"])},
        {"method": "GET", "path": f"/v1/tasks/{name}"},
    ]
    return {"method": "POST", "path": path, **random.choice(choices)}


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--swaps", type=int, default=1_000)
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL)
        weights.save(
            vit, folder / "vit.safetensors", architecture="vit_tiny_patch16_224", source="random", model_args=SMALL
        )
        backbone = Backbone.load(str(folder / "vit.safetensors"))
        files = {**adapters(folder, backbone, "linear", 2), **adapters(folder, backbone, "lora", 1)}
        tasks = "".join(f"  {name}: {files[name]}\n" for name in ("linear0", "lora0"))
        (folder / "bank.yaml").write_text(f"backbone: {folder / 'vit.safetensors'}\ntasks:\n{tasks}")
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            port = asked.getsockname()[1]
        command = [sys.executable, "-m", "vitgraft.commands.cli", "serve", str(folder / "bank.yaml")]
        server = subprocess.Popen([*command, "--port", str(port), "--token", TOKEN], stdout=subprocess.DEVNULL)
        address = f"http://127.0.0.1:{port}"
        try:
            begun(server, address)
            wrong = requests(given.requests, address, folder, files, psutil.Process(server.pid))
            wrong += swaps(given.swaps, address, files)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    print("all held" if not wrong else "; ".join(wrong))
    return 1 if wrong else 0


def requests(n: int, address: str, folder: Path, files: dict[str, Path], process: psutil.Process) -> list[str]:
    good, large = picture(), bomb()
    altered = bytearray(files["linear1"].read_bytes())
    altered[-5] ^= 1
    chance = random.Random(0)
    statuses: Counter[str] = Counter()
    wrong: list[str] = []
    before = files_below(folder)
    with httpx.Client(base_url=address, timeout=60) as client:

        def sound() -> object:
            answer = client.post("/v1/predict", content=good, headers={"content-type": "image/jpeg"})
            return answer.json()["predictions"]

        expected = sound()
        memory = [process.memory_info().rss]
        for k in range(n):
            request = hostile(chance, good, large, bytes(altered))
            if raw := request.pop("raw", b""):
                statuses[cut_off(address, raw)] += 1
                continue
            try:
                answer = client.request(request.pop("method"), request.pop("path"), **request)
                statuses[str(answer.status_code)] += 1
                if answer.status_code >= 500:
                    wrong.append(f"{answer.status_code}: {answer.text[:200]}")
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
            if (k + 1) % (n // 10) == 0:
                memory.append(process.memory_info().rss)
        if sound() != expected:
            wrong.append("a sound request is answered differently")
    grown = files_below(folder) - before
    print(f"{n} requests: {dict(statuses)}")
    print("memory, MiB:", *(round(rss / 2**20) for rss in memory))
    print("files that appeared:", *sorted(path.name for path in grown) or ["none"])
    left = {path for path in grown if path.name != "tasks.json" and path.suffix != ".safetensors"}
    return wrong[:5] + [f"{path} was written" for path in left]


def cut_off(address: str, raw: bytes) -> str:
    """Sends bytes and hangs up."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 10) as to:
        to.sendall(raw)
        to.shutdown(socket.SHUT_WR)
        said = to.recv(100)
    status = said.split(b" ")[1].decode() if said.startswith(b"HTTP") else "hung up"
    if status.startswith("5"):
        raise RuntimeError(f"{status} for {raw[:80]!r}")
    return status


def swaps(n: int, address: str, files: dict[str, Path]) -> list[str]:
    """One task, whose adapter is replaced all the time, asked by four clients."""
    good, token = picture(), {"Authorization": f"Bearer {TOKEN}"}
    contents = [files[name].read_bytes() for name in ("linear1", "lora0")]
    known: list[object] = []
    with httpx.Client(base_url=address, timeout=60) as client:
        for content in contents:
            client.put("/v1/tasks/it", content=content, headers=token).raise_for_status()
            answer = client.post("/v1/tasks/it/predict", content=good, headers={"content-type": "image/jpeg"})
            known.append(answer.json()["predictions"])
    counts: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while not stop.is_set():
                answer = client.post("/v1/tasks/it/predict", content=good, headers={"content-type": "image/jpeg"})
                right = answer.status_code == 200 and answer.json()["predictions"] in known
                counts["right" if right else f"wrong {answer.status_code}"] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    with httpx.Client(base_url=address, timeout=60) as client:
        for k in range(n):
            client.put("/v1/tasks/it", content=contents[k % 2], headers=token).raise_for_status()
    seconds = time.perf_counter() - began
    stop.set()
    for thread in threads:
        thread.join()
    print(f"{n} swaps in {seconds:.0f} s under load: {dict(counts)}")
    return [f"{k}: {v}" for k, v in counts.items() if k != "right"]


if __name__ == "__main__":
    sys.exit(main())
