"""Chromium without a window, told what to do over its debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import free_port, wait_for


class Browser:
    """One page. Its methods wait until what they do has happened."""

    def __init__(self, width: int = 1100, height: int = 900) -> None:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if not program:
            pytest.skip("there is no Chromium here")
        self._aiohttp = pytest.importorskip("aiohttp", reason="aiohttp speaks to the browser")
        self._profile = tempfile.TemporaryDirectory(prefix="vitgraft-browser-", ignore_cleanup_errors=True)
        self._port, self._size = free_port(), (width, height)
        self._process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--remote-debugging-port={self._port}", f"--user-data-dir={self._profile.name}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._number = 0
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Browser:
        pages: list[Any] = []

        def there() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/json", timeout=5) as answer:
                    pages[:] = [page for page in json.load(answer) if page["type"] == "page"]
            except OSError:
                return False
            return bool(pages)

        wait_for(there)
        self._loop.run_until_complete(self._connect(pages[0]["webSocketDebuggerUrl"]))
        width, height = self._size
        for domain in ("Page", "DOM", "Runtime"):
            self.tell(f"{domain}.enable")
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        return self

    async def _connect(self, address: str) -> None:
        self._session = self._aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(address, max_msg_size=1 << 28)

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.kill()
        self._process.wait()
        self._profile.cleanup()

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number

        async def ask() -> dict[str, Any]:
            await self._socket.send_json({"id": number, "method": method, "params": parameters})
            while True:
                answer = await self._socket.receive_json(timeout=60)
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return answer["result"]

        return self._loop.run_until_complete(ask())

    def open(self, address: str) -> None:
        self.tell("Page.navigate", url=address)
        wait_for(lambda: self.value("document.readyState") == "complete")

    def value(self, script: str) -> Any:
        return self.tell("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def choose(self, selector: str, file: Path) -> None:
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.tell("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def picture(self, file: Path) -> None:
        shown = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shown["data"]))
