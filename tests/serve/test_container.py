"""The steps of the Dockerfile as a script: what it copies suffices to install the package and to serve a bank."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from helpers_bank import write_adapter
from helpers_cli import environment, free_port, make_backbone, wait_for

from vitgraft.backbones import Backbone

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(int(version("setuptools").partition(".")[0]) < 77, reason="setuptools 77 builds the package")
def test_what_is_copied_serves_a_bank(tmp_path):
    steps = re.findall(r"^([A-Z]+) (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    image, installed, bank = tmp_path / "app", tmp_path / "installed", tmp_path / "bank"
    image.mkdir()
    bank.mkdir()
    for kind, words in steps:
        if kind == "COPY":
            *sources, target = words.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, image / target, ignore=shutil.ignore_patterns("*.egg-info"))
                else:
                    shutil.copy(ROOT / source, image / target)
    assert ("RUN", "pip install '.[serve]'") in steps
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", installed, "."], cwd=image, check=True, timeout=300)
    weights = make_backbone(bank / "backbone.safetensors")
    adapter = write_adapter(bank / "it.safetensors", Backbone.load(str(weights)), ("lora", {}))
    (bank / "bank.yaml").write_text(f"backbone: {weights.name}\ntasks:\n  it: {adapter.name}\n")
    (command,) = (words for kind, words in steps if kind == "CMD" and words.startswith("["))
    program, *words = [
        word.replace("/bank/", f"{bank}/") for word in shlex.split(command.strip("[]").replace(",", " "))
    ]
    assert program == "vitgraft"
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "vitgraft.commands.cli", *words, "--port", str(port)],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(installed), "PATH": os.environ["PATH"]},
    )

    def answers():
        assert process.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v1/tasks").json()["tasks"][0]["name"] == "it"
        except httpx.TransportError:
            return False

    try:
        wait_for(answers)
        assert "Ask about a picture" in httpx.get(f"http://127.0.0.1:{port}/").text  # templates were installed too
    finally:
        process.terminate()
        process.wait(60)
