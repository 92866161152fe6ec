"""Publishing and fetching, against a stand-in of the hub's HTTP interface: repositories, commits, downloads."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import numpy as np
import pytest
from helpers_bank import write_adapter
from helpers_cli import call, make_backbone
from PIL import Image

import vitgraft
from vitgraft.adapters import file as adapter
from vitgraft.adapters import hub
from vitgraft.backbones import Backbone
from vitgraft.common.errors import RequestError, WorkError
from vitgraft.serve.bank import Bank

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a dict of files."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.tokens: list[str | None] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def say(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.tokens.append(self.headers.get("authorization"))
        if self.path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told.get('organization') or 'me'}/{told['name']}"
            self.server.repositories.setdefault(name, {})
            return self.say(200, json.dumps({"url": f"{self.server.address}/{name}"}).encode())
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]
            return self.say(200, json.dumps({"files": files}).encode())
        if self.path == "/api/validate-yaml":
            return self.say(200, b'{"errors": [], "warnings": []}')
        found = re.fullmatch(r"/api/models/(.+)/commit/main", self.path)
        for line in body.decode().splitlines():
            told = json.loads(line)
            if told["key"] == "file":
                value = told["value"]
                self.server.repositories[found[1]][value["path"]] = base64.b64decode(value["content"])
        done = {"commitOid": COMMIT, "commitUrl": f"{self.server.address}/{found[1]}/commit/{COMMIT}", "success": True}
        return self.say(200, json.dumps(done).encode())

    def do_GET(self):
        found = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", self.path)
        files = self.server.repositories.get(found[1])
        if files is None or found[2] not in ("main", COMMIT):
            kind = "RepoNotFound" if files is None else "RevisionNotFound"
            return self.say(404, X_Error_Code=kind)
        if found[3] not in files:
            return self.say(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        content = files[found[3]]
        etag = hashlib.sha256(content).hexdigest()
        return self.say(200, content, X_Repo_Commit=COMMIT, ETag=f'"{etag}"')

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with Hub() as stand_in:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stand_in.address)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            stand_in.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        threading.Thread(target=stand_in.serve_forever, daemon=True).start()
        yield stand_in
        stand_in.shutdown()


@pytest.fixture
def run(tmp_path):
    path = make_backbone(tmp_path / "backbone.safetensors")
    backbone = Backbone.load(str(path))
    return vitgraft.Run(write_adapter(tmp_path / "adapter.safetensors", backbone, ("lora", {})), backbone)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


def test_there_and_back(server, run, picture, tmp_path, capsys):
    backbone = tmp_path / "backbone.safetensors"
    how = {"endpoint": server.address, "token": "hf_token"}
    address = run.push_to_hub("me/birds", picture=picture, **how)
    assert address.endswith(COMMIT)
    assert server.tokens[0] == "Bearer hf_token"
    files = server.repositories["me/birds"]
    assert files.keys() == {"adapter.safetensors", "README.md", "picture.jpg"}
    assert str(tmp_path) not in files["README.md"].decode()
    assert str(tmp_path).encode() not in files["adapter.safetensors"]
    found = vitgraft.Run.from_hub("me/birds", str(backbone), endpoint=server.address)
    assert found.predict(picture).rows == run.predict(picture).rows
    assert call("predict", "hf://me/birds", picture, "--backbone", backbone, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["class"] == run.predict(picture).label
    with Bank(str(backbone), {"birds": "hf://me/birds"}) as bank:
        assert bank.predict(picture, "birds").label == run.predict(picture).label
    assert vitgraft.Run.from_hub("me/birds", str(backbone), revision=COMMIT, endpoint=server.address).classes


def test_the_card_says_what_was_reached_and_on_what(run):
    _, header = adapter.read(run.file)
    header["metrics"] = {"metric": "top-1 accuracy", "value": 0.8765, "interval": [0.8, 0.9], "split": "test"}
    header["backbone"] |= {"name": "vit_small_patch14_dinov2", "license": "apache-2.0"}
    card = hub.card(header, "me/birds")
    for part in (
        "library_name: ", 'base_model: "timm/vit_small_patch14_dinov2"', "# birds", "top-1 accuracy 87.65", "80.0",
        "`test`", "apache-2.0", "lora", 'Run.from_hub("me/birds")', "hf://me/birds", "image-classification",
    ):  # fmt: skip
        assert part in card
    header["metrics"] = {}
    assert "Not measured" in hub.card(header, "me/birds")


def test_what_is_not_there(server, run, tmp_path, refused):
    with pytest.raises(RequestError, match="There is no repository hf://me/nothing"):
        vitgraft.Run("hf://me/nothing")
    server.repositories["me/empty"] = {}
    with pytest.raises(RequestError, match=r"holds no adapter\.safetensors"):
        vitgraft.Run("hf://me/empty")
    with pytest.raises(RequestError, match="There is no repository"):
        vitgraft.Run("hf://a/b/c/d")
    assert "There is no repository" in refused("predict", "hf://me/nothing", "x.jpg")
    run.push_to_hub("me/birds", endpoint=server.address, token="t")
    server.repositories["me/birds"]["adapter.safetensors"] = b"altered"
    with pytest.raises(RequestError, match="no readable safetensors file"):
        vitgraft.Run.from_hub("me/birds", endpoint=server.address).classes  # noqa: B018
    server.shutdown()
    server.server_close()
    with pytest.raises(WorkError, match="could not be published"):
        run.push_to_hub("me/other", endpoint=server.address, token="t")
