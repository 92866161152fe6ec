"""A bank on a Ray cluster of two machines, one of which dies under load."""

import os
import threading
import time
from collections import Counter

import httpx
import pytest
from helpers_bank import write_adapter
from helpers_cli import free_port, make_backbone, wait_for
from test_server import AUTHORISED, TOKEN, files_of, jpeg

from vitgraft.backbones import Backbone
from vitgraft.common.errors import RequestError
from vitgraft.serve.asked import Limits

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vitgraft[serve-ray]'")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'vitgraft[serve-ray]'")

from vitgraft.serve import on_ray  # noqa: E402

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster():
    """A node that coordinates and listens, and two that have a replica each; all on this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(__file__)), prepend=os.pathsep)
        patch.delenv("RAY_ADDRESS", raising=False)
        head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
        made = Cluster(initialize_head=True, head_node_args=head)
        nodes = [made.add_node(**NODE) for _ in range(2)]
        ray.init(made.address, log_to_driver=False)
        yield made, nodes
        on_ray.serve.shutdown()
        ray.shutdown()
        made.shutdown()


def test_one_of_two_machines_dies_under_load(cluster, tmp_path):
    made, nodes = cluster
    backbone = make_backbone(tmp_path / "backbone.safetensors")
    loaded = Backbone.load(str(backbone))
    files = {
        name: write_adapter(tmp_path / f"{name}.safetensors", loaded, variant, seed=k)
        for k, (name, variant) in enumerate(
            {"linear": ("linear", {}), "lora": ("lora", {}), "sct": ("sct", {})}.items()
        )
    }
    file = tmp_path / "bank.yaml"
    tasks = "".join(f"  {name}: {files[name]}\n" for name in ("linear", "lora"))
    file.write_text(f"backbone: backbone.safetensors\nprecision: '32'\ntasks:\n{tasks}")
    port = free_port()
    on_ray.begin(file, host="127.0.0.1", port=port, limits=Limits(), token=TOKEN, replicas=2)
    address = f"http://127.0.0.1:{port}"
    expected = {}
    with on_ray.Bank(loaded, {name: files[name] for name in ("linear", "lora")}, precision="32") as bank:
        for name in ("linear", "lora"):
            expected[name] = bank.predict(jpeg(), name).rows[0]["probabilities"]

    def ask(name):
        return httpx.post(f"{address}/v1/tasks/{name}/predict", files=files_of(jpeg()), timeout=60)

    for name in ("linear", "lora"):
        assert ask(name).json()["predictions"][0]["rows"][0]["probabilities"] == expected[name]
    both = httpx.post(f"{address}/v1/predict", files=files_of(jpeg()), timeout=60).json()["predictions"][0]["tasks"]
    assert both.keys() == {"linear", "lora"}
    assert ask("nobody").status_code == 404
    assert httpx.post(f"{address}/v1/tasks/lora/predict", files=files_of(b"no")).status_code == 422
    content = files["sct"].read_bytes()
    assert httpx.put(f"{address}/v1/tasks/sct", content=content, headers=AUTHORISED, timeout=60).status_code == 201
    assert httpx.put(f"{address}/v1/tasks/x", content=content[:99], headers=AUTHORISED, timeout=60).status_code == 422
    assert ask("sct").json()["predictions"][0]["text"].startswith("sct ")

    counts: Counter[str] = Counter()
    stop = threading.Event()

    def load(name):
        while not stop.is_set():
            answer = ask(name)
            right = answer.status_code == 200
            right = right and answer.json()["predictions"][0]["rows"][0]["probabilities"] == expected[name]
            counts["right" if right else f"{answer.status_code} {answer.text[:80]}"] += 1

    threads = [threading.Thread(target=load, args=(name,)) for name in ("linear", "lora") * 2]
    for thread in threads:
        thread.start()
    wait_for(lambda: counts["right"] > 20)
    made.remove_node(nodes[1], allow_graceful=False)
    before = counts["right"]
    time.sleep(3)
    wait_for(lambda: counts["right"] > before + 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert not +Counter({kind: n for kind, n in counts.items() if kind != "right"}), counts


def test_what_cannot_begin(tmp_path):
    (tmp_path / "bank.yaml").write_text("backbone: x\n")
    how = {"host": "127.0.0.1", "port": 0, "limits": Limits(), "token": ""}
    with pytest.raises(RequestError, match="has no task yet"):
        on_ray.begin(tmp_path / "bank.yaml", replicas=1, **how)
    with pytest.raises(RequestError, match="0 replicas"):
        on_ray.begin(tmp_path / "bank.yaml", replicas=0, **how)
