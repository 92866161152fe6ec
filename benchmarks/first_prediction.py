"""From nothing to the first prediction on a folder of 100 pictures: seconds, each step of it, and lines of Python; ours
beside timm and peft put together by hand. Each in a fresh environment, which is removed.

python -m benchmarks.first_prediction DATA --backbone NAME=WEIGHTS      # DATA/train/CLASS/FILE
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import measure

ROOT = Path(__file__).parents[1]
PICTURES = 100
OURS = """
import sys, vitgraft
data, backbone, picture, out = sys.argv[1:]
run = vitgraft.fit(data, method="lora", backbone=backbone, image_size=112, epochs=10, batch_size=16, out=out)
print(run.predict(picture))
"""
BY_HAND = """
import math, random, sys
from pathlib import Path
import timm, torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

root, (name, weights), size = Path(sys.argv[1]), sys.argv[2].split("="), 112
classes = sorted(folder.name for folder in (root / "train").iterdir())
pairs = [(path, k) for k, c in enumerate(classes) for path in sorted((root / "train" / c).iterdir())]
held_out = set(random.Random(0).sample(range(len(pairs)), len(pairs) // 5))
own = {"file": weights}
model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=own, num_classes=len(classes), img_size=size)
config = LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
model = get_peft_model(model, config)
data = resolve_model_data_config(model.base_model.model)
transform = create_transform(**{**data, "input_size": (3, size, size)}, is_training=False)
images = torch.stack([transform(Image.open(path).convert("RGB")) for path, _ in pairs])
labels = torch.tensor([label for _, label in pairs])
train = [i for i in range(len(pairs)) if i not in held_out]
optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3, weight_decay=1e-4)
batch, epochs = 16, 10
steps = epochs * math.ceil(len(train) / batch)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.1)
for _ in range(epochs):
    model.train()
    order = random.sample(train, len(train))
    for k in range(0, len(order), batch):
        rows = order[k : k + batch]
        loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
model.eval()
with torch.no_grad():
    val = sorted(held_out)
    right = (model(images[val]).argmax(1) == labels[val]).float().mean()
    chances = model(transform(Image.open(sys.argv[3]).convert("RGB"))[None]).softmax(1)[0]
model.save_pretrained(sys.argv[4])
print(classes[int(chances.argmax())], float(chances.max()), f"{right:.1%}")
"""


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("data", type=Path, help="a folder DATA/train/CLASS/FILE")
    parser.add_argument("--backbone", required=True, metavar="NAME=WEIGHTS")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        photos = _hundred(given.data, Path(folder) / "photos")
        ways = {
            "vitgraft": ([str(ROOT)], OURS),
            "timm and peft by hand": (["torch", "torchvision", "timm", "peft"], BY_HAND),
        }
        found = {
            name: _tried(Path(folder) / str(k), packages, program, photos, given.backbone)
            for k, (name, (packages, program)) in enumerate(ways.items())
        }
    rows = (
        [name, f"{of['install']:.0f}", f"{of['run']:.0f}", str(of["statements"]), of["said"]]
        for name, of in found.items()
    )
    print(measure.table(["", "install, s", "fit and predict, s", "statements", "said"], rows))
    measure.write(given, found=found)


def _hundred(data: Path, photos: Path) -> Path:
    """So many pictures, of all classes in turn."""
    classes = [sorted(folder.iterdir()) for folder in sorted((data / "train").iterdir())]
    in_turn = [paths[k] for k in range(max(map(len, classes))) for paths in classes if k < len(paths)]
    for path in in_turn[:PICTURES]:
        (photos / "train" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, photos / "train" / path.parent.name)
    return photos


def _tried(folder: Path, packages: list[str], program: str, photos: Path, backbone: str) -> dict:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *packages], check=True)
    installed = time.perf_counter()
    picture = next((photos / "train").glob("*/*"))
    words = [python, "-c", program, photos, backbone, picture, folder / "run"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    done = time.perf_counter()
    statements = sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(program)))
    shutil.rmtree(folder, ignore_errors=True)
    return {"install": installed - begun, "run": done - installed, "statements": statements, "said": said}


if __name__ == "__main__":
    measure.run(main)
