"""The server's page in a browser: a picture is chosen, tasks are asked, answers are shown; on a telephone too."""

import numpy as np
import pytest
from helpers_bank import write_adapter
from helpers_browser import Browser
from helpers_cli import free_port, make_backbone, start, wait_for
from PIL import Image

from vitgraft.backbones import Backbone

httpx = pytest.importorskip("httpx")


@pytest.mark.parametrize("width", [1100, 390])
def test_a_picture_and_its_answers(width, tmp_path):
    backbone = make_backbone(tmp_path / "backbone.safetensors")
    loaded = Backbone.load(str(backbone))
    tasks = ""
    for name in ("linear", "lora", "a-task-with-a-name-that-is-very-long-indeed-and-goes-on"):
        file = write_adapter(tmp_path / f"{name}.safetensors", loaded, ("lora" if name == "lora" else "linear", {}))
        tasks += f"  {name}: {file}\n"
    (tmp_path / "bank.yaml").write_text(f"backbone: {backbone}\ntasks:\n{tasks}")
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(picture)
    with Browser(width) as page:
        port = free_port()
        server = start(["serve", str(tmp_path / "bank.yaml"), "--port", str(port)], tmp_path / "log")
        try:
            address = f"http://127.0.0.1:{port}/"

            def answers():
                try:
                    return httpx.get(f"{address}health").is_success
                except httpx.TransportError:
                    return False

            wait_for(answers)
            page.open(address)
            wait_for(lambda: page.value("document.querySelectorAll('#tasks input').length") == 3)
            assert page.value("document.getElementById('go').disabled")
            page.choose("#file", picture)
            wait_for(lambda: not page.value("document.getElementById('go').disabled"))
            page.value("document.getElementById('go').click()")
            wait_for(lambda: page.value("document.querySelectorAll('#answers section').length") == 3)
            assert page.value("document.getElementById('said').textContent").startswith("3 tasks in ")
            assert page.value("document.querySelector('#answers .said').textContent").startswith("linear ")
            assert page.value("document.querySelectorAll('#answers section:first-child tr').length") == 5
            assert page.value("document.documentElement.scrollWidth") <= width
            page.value("document.getElementById('none').click()")
            assert page.value("document.getElementById('go').disabled")
            # what is no picture is refused in words
            (tmp_path / "text.png").write_bytes(b"no picture")
            page.value("document.getElementById('all').click()")
            page.choose("#file", tmp_path / "text.png")
            page.value("document.getElementById('go').click()")
            wait_for(lambda: "no picture that can be read" in page.value("document.getElementById('said').textContent"))
        finally:
            server.process.terminate()
            server.ends()
