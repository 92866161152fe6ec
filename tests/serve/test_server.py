"""The server answers in every form, refuses in one sentence, bounds what it takes, loses nothing when it is killed."""

import asyncio
import base64
import io
import os
import signal
import threading

import httpx
import numpy as np
import pytest
from helpers_bank import write_adapter
from helpers_cli import free_port, make_backbone, start, wait_for
from PIL import Image

from vitgraft.backbones import Backbone
from vitgraft.common.errors import RequestError
from vitgraft.serve.asked import Limits
from vitgraft.serve.server import create
from vitgraft.serve.stored import Stored

TOKEN = "a secret"
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}


def jpeg(size=(40, 30), seed=0, format="JPEG"):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, format)
    return content.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A backbone in a file, and adapters on it."""
    root = tmp_path_factory.mktemp("serve")
    make_backbone(root / "backbone.safetensors")
    backbone = Backbone.load(str(root / "backbone.safetensors"))
    files = {}
    for k, (name, arguments) in enumerate([("linear", {}), ("lora", {}), ("hst", {"detached": True})]):
        files[name] = write_adapter(root / f"{name}.safetensors", backbone, (name, arguments), seed=k)
    other = make_backbone(root / "other.safetensors", seed=1)
    files["other"] = write_adapter(root / "foreign.safetensors", Backbone.load(str(other)), ("linear", {}))
    return root, files


@pytest.fixture
def bank_file(made, tmp_path):
    root, files = made
    file = tmp_path / "bank.yaml"
    tasks = "".join(f"  {name}: {files[name]}\n" for name in ("linear", "lora"))
    file.write_text(f"backbone: {root / 'backbone.safetensors'}\nprecision: '32'\ntasks:\n{tasks}")
    return file


class Served:
    """The application in this process."""

    def __init__(self, file, limits=None, token=TOKEN):
        self.stored = Stored(file)
        self.app = create(self.stored, limits, token)

    def __call__(self, method, path, **how):
        async def ask():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://bank") as client:
                return await client.request(method, path, **how)

        return asyncio.run(ask())

    def close(self):
        self.stored.bank.close()


@pytest.fixture
def served(bank_file):
    server = Served(bank_file)
    yield server
    server.close()


def error(answer, status):
    assert answer.status_code == status, answer.text
    (text,) = answer.json().values()
    assert text
    return text


def files_of(*contents):
    return [("pictures", (f"{k}.jpg", content, "image/jpeg")) for k, content in enumerate(contents)]


def test_one_task_in_every_form(served):
    expected = served.stored.bank.predict(jpeg(), "lora").rows[0]["probabilities"]
    path = "/v1/tasks/lora/predict"
    text = base64.b64encode(jpeg()).decode()
    forms = [
        {"files": files_of(jpeg())},
        {"json": {"pictures": [text]}},
        {"json": {"pictures": text}},
        {"json": {"pictures": ["data:image/jpeg;base64," + text]}},
        {"content": jpeg(), "headers": {"content-type": "image/jpeg"}},
    ]
    for how in forms:
        found = served("POST", path, **how).json()
        assert found["task"] == "lora"
        assert found["predictions"][0]["rows"][0]["probabilities"] == expected
        assert found["milliseconds"] > 0
    many = served("POST", path, files=files_of(jpeg(), jpeg(seed=1))).json()["predictions"]
    assert [each["picture"] for each in many] == ["0.jpg", "1.jpg"]
    assert many[0]["rows"][0]["probabilities"] == expected


def test_several_tasks_and_all(served):
    found = served("POST", "/v1/predict", files=files_of(jpeg())).json()["predictions"]
    assert found[0]["tasks"].keys() == {"linear", "lora"}
    some = served("POST", "/v1/predict", files=files_of(jpeg()), data={"tasks": "lora"}).json()["predictions"]
    assert some[0]["tasks"]["lora"] == found[0]["tasks"]["lora"]
    both = served("POST", "/v1/predict", files=files_of(jpeg()), data={"tasks": "lora,linear"}).json()["predictions"]
    assert both == found
    text = base64.b64encode(jpeg()).decode()
    assert served("POST", "/v1/predict", json={"pictures": [text], "tasks": ["lora"]}).json()["predictions"][0][
        "tasks"
    ] == {
        "lora": {
            **found[0]["tasks"]["lora"],
            "rows": [{**found[0]["tasks"]["lora"]["rows"][0], "picture": "picture 1"}],
        }
    }


def test_what_there_is(served):
    told = served("GET", "/v1/tasks").json()
    assert [task["name"] for task in told["tasks"]] == ["linear", "lora"]
    assert [task["shares_pass"] for task in told["tasks"]] == [True, False]
    assert served("GET", "/v1/tasks/lora").json()["method"] == "lora"
    assert served("GET", "/health").json() == {"status": "ok", "tasks": 2, "waiting": 0}
    served("POST", "/v1/tasks/lora/predict", files=files_of(jpeg(), jpeg()))
    served("POST", "/v1/tasks/nobody/predict", files=files_of(jpeg()))
    metrics = served("GET", "/metrics").text
    assert 'vitgraft_answers_total{task="lora"} 2.0' in metrics
    assert 'vitgraft_refusals_total{status="404"} 1.0' in metrics
    assert 'vitgraft_batch_size_bucket{le="1"} 2.0' in metrics
    assert "vitgraft_waiting 0.0" in metrics
    assert {"/v1/predict", "/v1/tasks/{name}/predict"} <= served("GET", "/openapi.json").json()["paths"].keys()
    front = served("GET", "/").text
    assert "Ask about a picture" in front
    assert "tiny" in front or "vit" in front


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ({"files": files_of(jpeg()[:100])}, 422, "0.jpg"),
        ({"files": files_of(b"no picture")}, 422, "no picture that can be read"),
        ({"files": files_of(b"%!PS-Adobe-3.0 EPSF-3.0\n")}, 422, "no picture that can be read"),
        ({"files": files_of(b"")}, 400, "No picture came"),
        ({"data": {"tasks": "lora"}}, 415, "Send pictures as"),
        ({"json": {}}, 400, "no pictures in the JSON"),
        ({"json": []}, 400, "no object"),
        ({"json": {"pictures": [1]}}, 400, "no pictures in the JSON"),
        ({"json": {"pictures": ["%%%"]}}, 400, "no base64"),
        ({"json": {"pictures": ["AAAA"], "tasks": 7}}, 400, "no list of names"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"content": b"[" * 100000, "headers": {"content-type": "application/json"}}, 400, "JSON"),
        ({"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, ""),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "Send pictures as"),
        ({"content": b""}, 415, "Send pictures as"),
        ({"files": files_of(*[jpeg()] * 5)}, 413, "at most"),
        ({"files": files_of(jpeg((300, 300)))}, 413, "90,000 pixels"),
        ({"content": b"x" * 300_000, "headers": {"content-type": "image/jpeg"}}, 413, "more than 200,000 bytes"),
        ({"files": files_of(jpeg()), "params": {"draw": "perhaps"}}, 422, "draw"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(bank_file, how, status, said):
    served = Served(bank_file, Limits(bytes=200_000, pictures=4, pixels=10_000))
    try:
        assert said in error(served("POST", "/v1/tasks/lora/predict", **how), status)
        assert served.stored.bank.passes.total() == 0
    finally:
        served.close()


def test_names_of_tasks_lead_nowhere_else(served, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for name in ("nobody", "%2e%2e%2fbank.yaml", "..%2f..%2fetc%2fpasswd", "a" * 300, "%00", "lora%0a"):
        for method, path, how in (
            ("POST", f"/v1/tasks/{name}/predict", {"files": files_of(jpeg())}),
            ("GET", f"/v1/tasks/{name}", {}),
            ("PUT", f"/v1/tasks/{name}", {"content": b"x", "headers": AUTHORISED}),
            ("DELETE", f"/v1/tasks/{name}", {"headers": AUTHORISED}),
        ):
            assert 400 <= served(method, path, **how).status_code < 500
    assert sorted(tmp_path.rglob("*")) == before


def test_adapters_come_and_go_with_the_token_alone(made, served, bank_file):
    _, files = made
    content = files["hst"].read_bytes()
    assert "token" in error(served("PUT", "/v1/tasks/new", content=content), 401)
    assert "token" in error(served("DELETE", "/v1/tasks/lora", headers={"Authorization": "Bearer no"}), 401)
    made_new = served("PUT", "/v1/tasks/new", content=content, headers=AUTHORISED)
    assert (made_new.status_code, made_new.json()) == (201, {"name": "new", "new": True})
    answer = served("POST", "/v1/tasks/new/predict", files=files_of(jpeg())).json()
    assert served("PUT", "/v1/tasks/lora", content=content, headers=AUTHORISED).status_code == 200
    assert served("DELETE", "/v1/tasks/linear", headers=AUTHORISED).status_code == 200
    error(served("DELETE", "/v1/tasks/linear", headers=AUTHORISED), 404)
    # what cannot be used changes nothing
    assert "altered" in error(served("PUT", "/v1/tasks/new", content=content[:-4] + b"1234", headers=AUTHORISED), 422)
    assert "fingerprint" in error(
        served("PUT", "/v1/tasks/new", content=files["other"].read_bytes(), headers=AUTHORISED), 422
    )
    error(served("PUT", "/v1/tasks/new", content=b"", headers=AUTHORISED), 422)
    assert (
        served("POST", "/v1/tasks/new/predict", files=files_of(jpeg())).json()["predictions"] == answer["predictions"]
    )
    assert len(list(served.stored.folder.glob("*.safetensors"))) == 1
    # another start knows all of it
    again = Served(bank_file, token="")
    assert again.stored.bank.tasks == ("lora", "new")
    assert again("POST", "/v1/tasks/new/predict", files=files_of(jpeg())).json()["predictions"] == answer["predictions"]
    assert "takes no adapters" in error(again("PUT", "/v1/tasks/x", content=content), 403)
    again.close()


def test_too_much_at_once_is_refused_and_the_rest_answered(bank_file, monkeypatch):
    served = Served(bank_file, Limits(waiting=2, seconds=0.3))
    bank, gate = served.stored.bank, threading.Event()
    computed = type(bank)._computed
    monkeypatch.setattr(type(bank), "_computed", lambda self, of: gate.wait(20) and computed(self, of))
    assert "more than 2" in error(served("POST", "/v1/predict", files=files_of(jpeg(), jpeg())), 413)

    async def several():
        transport = httpx.ASGITransport(served.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://bank") as client:
            asked = [client.post("/v1/tasks/lora/predict", files=files_of(jpeg())) for _ in range(5)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(several())
    assert sorted(answer.status_code for answer in answers) == [429] * 3 + [504] * 2
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
    # given up, but still under way: nothing more is taken until it is done
    error(served("POST", "/v1/predict", files=files_of(jpeg())), 429)
    gate.set()
    wait_for(lambda: served("GET", "/health").json()["waiting"] == 0)
    assert served("POST", "/v1/tasks/lora/predict", files=files_of(jpeg())).status_code == 200
    served.close()


def test_a_body_that_does_not_arrive(bank_file):
    served = Served(bank_file, Limits(seconds=0.2))

    async def drip():
        yield b"--x\r\n"
        await asyncio.sleep(5)

    async def ask():
        sent = []
        scope = {
            "type": "http", "method": "POST", "path": "/v1/tasks/lora/predict", "raw_path": b"", "query_string": b"",
            "headers": [(b"content-type", b"multipart/form-data; boundary=x")], "scheme": "http", "http_version": "1.1",
            "server": ("bank", 80), "client": ("me", 1), "root_path": "",
        }  # fmt: skip
        body = drip()

        async def receive():
            return {"type": "http.request", "body": await anext(body), "more_body": True}

        async def send(message):
            sent.append(message)

        await served.app(scope, receive, send)
        return sent

    sent = asyncio.run(ask())
    assert sent[0]["status"] == 408
    served.close()


def test_a_file_that_is_no_bank(tmp_path, made, refused):
    root, files = made
    wrong = {
        "[1, 2]": "is no bank",
        "tasks: [a]": "not names with runs",
        "task: {a: b}": "Did you mean 'tasks'",
        "tasks: {a: nowhere}": "There is no run",
        "tasks: {../a: FILE}": "is no name of a task",
        ": :": "cannot be read as YAML",
        "tasks: {}": "needs a backbone",
        "backbone: BACKBONE\nbatch: many": "of another kind",
    }
    for text, said in wrong.items():
        file = tmp_path / "bank.yaml"
        text = text.replace("FILE", str(files["lora"])).replace("BACKBONE", str(root / "backbone.safetensors"))
        file.write_text(text)
        with pytest.raises(RequestError, match=said):
            Stored(file)
    with pytest.raises(RequestError, match="There is no file"):
        Stored(tmp_path / "nowhere.yaml")
    refused("serve", tmp_path / "nowhere.yaml", "--port", "0")
    refused("serve", file, "--port", "70000")
    refused("serve", file, "--seconds", "0")


@pytest.fixture
def process(bank_file):
    """The command in a process of its own."""
    running = []

    def begin():
        port = free_port()
        process = start(["serve", str(bank_file), "--port", str(port), "--token", TOKEN], bank_file.parent / "log")
        running.append(process)
        address = f"http://127.0.0.1:{port}"

        def answers():
            assert process.process.is_alive(), process.said()
            try:
                return httpx.get(f"{address}/health").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(answers)
        return process, address

    yield begin
    for process in running:
        if process.process.is_alive():
            os.kill(process.process.pid, signal.SIGKILL)


def test_killed_under_load_it_starts_with_all_it_had_answered_for(process, made):
    _, files = made
    first, address = process()
    expected = httpx.post(f"{address}/v1/tasks/lora/predict", files=files_of(jpeg())).json()["predictions"]
    put: list[str] = []
    stop = threading.Event()

    def upload():
        for k in range(200):
            try:
                content = files["hst" if k % 2 else "linear"].read_bytes()
                httpx.put(f"{address}/v1/tasks/task{k}", content=content, headers=AUTHORISED).raise_for_status()
            except httpx.TransportError:
                return
            put.append(f"task{k}")

    def ask():
        while not stop.is_set():
            try:
                httpx.post(f"{address}/v1/predict", files=files_of(jpeg()), timeout=10)
            except httpx.TransportError:
                return

    threads = [threading.Thread(target=of) for of in (upload, ask)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(put) >= 5)
    os.kill(first.process.pid, signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join()
    _, address = process()
    names = {task["name"] for task in httpx.get(f"{address}/v1/tasks").json()["tasks"]}
    assert {*put, "linear", "lora"} <= names
    assert httpx.post(f"{address}/v1/tasks/lora/predict", files=files_of(jpeg())).json()["predictions"] == expected


def test_told_to_stop_it_answers_what_it_took(process):
    running, address = process()
    answers = []
    asked = [
        threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{address}/v1/predict", files=files_of(*[jpeg()] * 8), timeout=30)
            )
        )
        for _ in range(3)
    ]
    for thread in asked:
        thread.start()

    def taken():
        health = httpx.get(f"{address}/health").json()
        return len(answers) + health["waiting"] / (8 * health["tasks"]) >= 3

    wait_for(taken)
    os.kill(running.process.pid, signal.SIGTERM)
    for thread in asked:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert running.ends() in (0, -signal.SIGTERM)
