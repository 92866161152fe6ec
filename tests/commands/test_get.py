"""`vitgraft get` from a server on this machine: cut connections, wrong files, full disks, what is left to a person."""

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers_cli import call

from vitgraft.bench import shipped, suites
from vitgraft.bench.locks import held
from vitgraft.bench.suites import Suite, TaskOf
from vitgraft.commands import get as getting
from vitgraft.commands.get import fetch, get, unpack
from vitgraft.common.errors import RequestError, WorkError

CONTENT = bytes(range(256)) * 4000  # about a megabyte


class Server:
    """Files by name; knows HTTP's Range. `cuts`: after how many bytes the next answers end."""

    def __init__(self):
        self.files, self.cuts, self.asked, self.ranges, self.tag = {}, [], [], True, '"one"'
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *given):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *given: None  # who asked has left, as is meant
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request):
        name, given = request.path.removeprefix("/"), request.headers.get("Range")
        self.asked.append((name, given))
        if name not in self.files:
            return request.send_error(404)
        content, begin = self.files[name], 0
        if given and self.ranges and request.headers.get("If-Range") == self.tag:
            begin = int(given.removeprefix("bytes=").rstrip("-"))
            if begin >= len(content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(content)}")
                return request.end_headers()
        request.send_response(206 if begin else 200)
        request.send_header("Content-Length", str(len(content) - begin))
        request.send_header("ETag", self.tag)
        request.end_headers()
        request.wfile.write(content[begin:][: self.cuts.pop(0) if self.cuts else None])


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.zip"


def fetched(server, path, **known):
    server.files.setdefault("file.zip", CONTENT)
    fetch(f"{server.address}/file.zip", path, **known)
    return path.read_bytes()


# One file.


def test_fetched_and_verified(server, path, tmp_path):
    seen = []
    md5, sha256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
    known = {"md5": md5, "sha256": sha256, "bytes": len(CONTENT)}
    assert fetched(server, path, progress=lambda *given: seen.append(given), **known) == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [item.name for item in tmp_path.iterdir()] == ["file.zip"]


def test_goes_on_where_it_was_cut(server, path, tmp_path):
    server.cuts = [300_000, 200_000]
    assert fetched(server, path, md5=hashlib.md5(CONTENT).hexdigest()) == CONTENT
    assert [given for _, given in server.asked] == [None, "bytes=300000-", "bytes=500000-"]
    assert [item.name for item in tmp_path.iterdir()] == ["file.zip"]


def test_goes_on_at_the_next_start(server, path):
    server.cuts = [100_000] * 3
    with pytest.raises(WorkError, match=r"cut at 300,000 of 1,024,000 bytes\), 300,000 bytes are kept"):
        fetched(server, path)
    assert not path.exists()
    assert fetched(server, path) == CONTENT
    assert server.asked[-1] == ("file.zip", "bytes=300000-")


def test_killed_after_the_last_byte(server, path):
    path.with_name("file.zip.part").write_bytes(CONTENT)
    path.with_name("file.zip.tag").write_text(server.tag)
    assert fetched(server, path) == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("change", ["other file", "no ranges", "no tag"])
def test_begins_again_where_it_cannot_go_on(change, server, path):
    server.cuts = [100_000] * 3
    with pytest.raises(WorkError):
        fetched(server, path)
    other = CONTENT[::-1]
    server.files["file.zip"] = other
    if change == "other file":
        server.tag = '"two"'
    elif change == "no ranges":
        server.ranges = False
    else:
        path.with_name("file.zip.tag").unlink()
    assert fetched(server, path) == other


@pytest.mark.parametrize("known", [{"md5": "0" * 32}, {"sha256": "0" * 64}, {"bytes": 7}])
def test_another_file_leaves_nothing_behind(known, server, path, tmp_path):
    with pytest.raises(WorkError, match="another file"):
        fetched(server, path, **known)
    assert not list(tmp_path.iterdir())


def test_dead_address(server, path):
    with pytest.raises(WorkError, match=r"answers 404 .*: the address may be dead"):
        fetch(f"{server.address}/gone.zip", path)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(WorkError, match=r"could not be fetched whole \(.*refused\), 0 bytes are kept"):
        fetch(f"{server.address}/file.zip", path)


def test_disk_without_room(server, path, tmp_path, monkeypatch):
    usage = getting.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(getting.shutil, "disk_usage", lambda where: usage._replace(free=1000))
    with pytest.raises(WorkError, match=r"no room for file.zip \(1,024,000 bytes are to come, 1,000 are free\)"):
        fetched(server, path)
    assert not path.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, on which every write finds no room")
def test_disk_that_fills_up(server, path):
    path.with_name("file.zip.part").symlink_to("/dev/full")
    with pytest.raises(WorkError, match=r"no room for file.zip \(No space left on device\)"):
        fetched(server, path)
    assert not path.exists()


def test_broken_archive(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"a/1.jpg": CONTENT})[:2000])
    with pytest.raises(WorkError, match="is no whole archive"):
        unpack(path, tmp_path / "out")
    assert not path.exists()


def test_archive_that_leaves_its_folder(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"../outside.jpg": b"1"}))
    with pytest.raises(WorkError, match="is no whole archive"):
        unpack(path, tmp_path / "in" / "out")
    assert not (tmp_path / "in" / "outside.jpg").exists()


# Suites.


def tar(files):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return written.getvalue()


def zipped(files):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return written.getvalue()


def vtab(folder, count=2):
    """A task as NOAH lays it out: two pictures for each list, two classes."""
    lists = {"train800.txt": "train800", "val200.txt": "val200", "test.txt": "test"}
    made = {}
    for file, split in lists.items():
        names = [f"images/{split}/{number:06}.jpg" for number in range(count)]
        made |= {f"{folder}/{name}": b"jpg" for name in names}
        made[f"{folder}/{file}"] = "".join(f"{name} {i % 2}\n" for i, name in enumerate(names)).encode()
    return made


def task(name, *aliases, classes=2, sizes=None, **more):
    sizes = {"train": 2, "val": 2, "test": 2} if sizes is None else sizes
    return TaskOf(name, aliases, classes, "natural", "top-1 accuracy", sizes=sizes, **more)


@pytest.fixture
def offer(monkeypatch, tmp_path):
    """Makes a suite and where it comes from known under the name tiny."""

    def offered(tasks, *sets):
        suite = Suite("tiny", "Tiny", "made up", tuple(tasks))
        monkeypatch.setattr(suites, "find", lambda name, root=None: suite)
        (tmp_path / "here" / "sources").mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / "sources" / "tiny.json").write_text(json.dumps({"about": "made up", "sets": sets}))
        monkeypatch.setattr(shipped, "HERE", tmp_path / "here")

    return offered


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def test_folders_of_an_archive(server, offer, root):
    """One archive of all tasks, some under another name: as the copies of VTAB-1k are."""
    server.files["all.zip"] = zipped({**vtab("vtab/cifar100"), **vtab("vtab/svhn")})
    all_of_it = {"name": "all", "tasks": {"cifar": {}, "svhn": {}}, "files": [{"url": f"{server.address}/all.zip"}]}
    offer([task("cifar", "cifar100"), task("svhn")], {**all_of_it, "folders": "any"})
    said = []
    get("tiny", root, say=said.append)
    assert [line.split()[0] for line in said[1:]] == ["made", "made", "run"]
    assert sorted(item.name for item in root.iterdir()) == ["cifar", "svhn"]
    assert (root / "cifar" / "images" / "train800" / "000001.jpg").read_bytes() == b"jpg"
    get("tiny", root, say=said.append)
    assert [line.split()[0] for line in said[5:]] == ["there", "there", "run"]
    assert len(server.asked) == 1


def test_task_that_is_not_as_the_suite_says(server, offer, root):
    server.files["all.zip"] = zipped({**vtab("cifar", 4), **vtab("svhn")})
    all_of_it = {
        "name": "all",
        "tasks": {"cifar": {}, "svhn": {}, "dtd": {}},
        "folders": "any",
        "otherwise": "ask for ROOT",
    }
    offer([task("cifar"), task("svhn"), task("dtd")], {**all_of_it, "files": [{"url": f"{server.address}/all.zip"}]})
    said = []
    with pytest.raises(WorkError, match=r"2 of 3 tasks of Tiny are not in .* \(cifar, dtd\)"):
        get("tiny", root, say=said.append)
    assert "has 4 pictures, but that of cifar has 2" in said[1]
    assert "The archive has no folder dtd" in said[3]
    assert said[4] == f"otherwise ask for {root}."
    assert sorted(item.name for item in root.iterdir()) == [".get", "svhn"]
    with pytest.raises(WorkError):
        get("tiny", root, say=said.append)
    assert len(server.asked) == 1  # what was unpacked is still there


def few_shot(server, **changes):
    server.files["pets.tar.gz"] = tar({f"data/pets/{number}.jpg": b"jpg" for number in range(6)})
    server.files["train.1"] = b"0.jpg 0\n0.jpg 0\n1.jpg 1\n1.jpg 1\n"  # each twice, as in NOAH's Oxford-Pets
    server.files["train.2"] = b"0.jpg 0\n1.jpg 1\n2.jpg 0\n3.jpg 1\n"
    server.files["val"] = server.files["test"] = b"4.jpg 0\n5.jpg 1\n"
    url = f"{server.address}/pets.tar.gz"
    lists = {"train": f"{server.address}/train.{{shots}}", "val": f"{server.address}/val"}
    lists["test"] = f"{server.address}/test"
    made = {"name": "pets", "tasks": {"pets-1shot": {"shots": "1"}, "pets-2shot": {"shots": "2"}}, "lists": lists}
    return {**made, "pictures": "data/pets", "files": [{"url": url}], **changes}


TWO = [
    task("pets-1shot", sizes={"train": 2, "val": 2, "test": 2}),
    task("pets-2shot", sizes={"train": 4, "val": 2, "test": 2}),
]


def test_lists_that_share_pictures(server, offer, root):
    offer(TWO, few_shot(server))
    get("tiny", root, say=lambda line: None)
    assert sorted(item.name for item in root.iterdir()) == ["pets", "pets-1shot", "pets-2shot"]
    assert (root / "pets-1shot" / "train.txt").read_text() == "images/0.jpg 0\nimages/1.jpg 1\n"
    assert len(suites.read(TWO[1], root / "pets-2shot").splits["train"]) == 4
    assert [name for name, _ in server.asked].count("pets.tar.gz") == 1


def test_list_that_is_missing(server, offer, root):
    """One of the two tasks is made; at the next start only the other one is, without the pictures again."""
    offer(TWO, few_shot(server))
    there = server.files.pop("train.2")
    said = []
    with pytest.raises(WorkError, match=r"1 of 2 tasks .*\(pets-2shot\)"):
        get("tiny", root, say=said.append)
    assert "train.2 answers 404" in said[-1]
    server.files["train.2"] = there
    get("tiny", root, say=said.append)
    assert (root / "pets-2shot").is_dir()
    assert [name for name, _ in server.asked].count("pets.tar.gz") == 1
    assert not (root / ".get").exists()


def test_wrong_checksum_makes_no_task(server, offer, root):
    source = few_shot(server)
    source["files"][0]["md5"] = "0" * 32
    offer(TWO, source)
    said = []
    with pytest.raises(WorkError, match="2 of 2 tasks"):
        get("tiny", root, say=said.append)
    assert "gave another file, with md5" in said[1]
    assert not [item for item in root.rglob("*") if item.is_file() and item.name != "lock"]


def test_class_folders_of_a_shifted_set(server, offer, root):
    files = {"imagenet-a/README.txt": b"x", "imagenet-a/n01/1.jpg": b"1", "imagenet-a/n02/2.jpg": b"2"}
    server.files["imagenet-a.tar"] = tar(files)
    url = f"{server.address}/imagenet-a.tar"
    source = {"name": "a", "tasks": {"a": {}}, "files": [{"url": url}], "classes": "imagenet-a", "split": "test"}
    tested = task("a", sizes={"test": 2}, trained_on="imagenet")
    hand = {"name": "imagenet", "tasks": {"imagenet": {}}, "by_hand": "ask at the page of ImageNet"}
    offer([task("imagenet"), tested], hand, source)
    said = []
    with pytest.raises(WorkError, match=r"1 of 2 tasks .*\(imagenet\)"):
        get("tiny", root, say=said.append)
    assert said[1:] == ["left      imagenet: By hand: ask at the page of ImageNet.", "made      a"]
    assert sorted(str(file.relative_to(root / "a")) for file in (root / "a").rglob("*.jpg")) == [
        "test/n01/1.jpg",
        "test/n02/2.jpg",
    ]


def test_torchvision(server, offer, root, monkeypatch):
    """torchvision's own downloader and splits, from the server in place of its page."""
    scipy_io = pytest.importorskip("scipy.io", reason="torchvision reads Flowers102 with scipy")
    import numpy as np
    from torchvision.datasets import Flowers102

    mats = {"imagelabels.mat": {"labels": np.array([1, 2, 1, 2, 1, 2])}}
    mats["setid.mat"] = {"trnid": np.array([1, 2]), "valid": np.array([3, 4]), "tstid": np.array([5, 6])}
    for name, content in mats.items():
        written = io.BytesIO()
        scipy_io.savemat(written, content)
        server.files[name] = written.getvalue()
    server.files["102flowers.tgz"] = tar({f"jpg/image_{number:05}.jpg": b"jpg" for number in range(1, 7)})
    known = {
        key: (name, hashlib.md5(server.files[name]).hexdigest()) for key, (name, _) in Flowers102._file_dict.items()
    }
    monkeypatch.setattr(Flowers102, "_file_dict", known)
    monkeypatch.setattr(Flowers102, "_download_url_prefix", f"{server.address}/")
    source = {"name": "flowers", "tasks": {"flowers": {}}, "torchvision": "Flowers102"}
    offer([task("flowers")], {**source, "splits": ["train", "val", "test"]})
    get("tiny", root, say=lambda line: None)
    assert (root / "flowers" / "test.txt").read_text() == "images/image_00005.jpg 0\nimages/image_00006.jpg 1\n"
    assert sorted(item.name for item in root.iterdir()) == ["flowers"]


def test_what_a_person_has_put_there(offer, root):
    offer([task("cub", "CUB")], {"name": "cub", "tasks": {"cub": {}}, "by_hand": "ask"})
    for name, content in vtab("CUB").items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    get("tiny", root, say=lambda line: None)
    (root / "CUB" / "images" / "test" / "000000.jpg").unlink()
    said = []
    with pytest.raises(WorkError, match=r"not in .* as they should be"):
        get("tiny", root, say=said.append)
    assert "names the picture 'images/test/000000.jpg', but" in said[1]
    assert (root / "CUB").is_dir()


def test_two_at_once(server, offer, root):
    offer(TWO, few_shot(server))
    (root / ".get").mkdir(parents=True)
    with held(root / ".get" / "lock"), pytest.raises(WorkError, match="Another process is fetching into"):
        get("tiny", root, say=lambda line: None)
    assert not server.asked


# What is shipped, and the command.


@pytest.mark.parametrize("name", [name for name in suites.names() if name != suites.LOCAL])
def test_every_suite_says_where_it_comes_from(name):
    suite = suites.find(name)
    told = json.loads((shipped.HERE / "sources" / f"{name}.json").read_text())
    listed = [task for source in told["sets"] for task in source["tasks"]]
    assert sorted(listed) == sorted(suite.task_names)
    for source in told["sets"]:
        made = getting.Source(suite, source, shipped.HERE, lambda file: getting._silent)
        assert made.how == "by_hand" or source["otherwise"]
        assert re.search("https?://", source.get("by_hand") or source["otherwise"])
        for file in source.get("files", ()):
            assert set(file) <= {"url", "bytes", "md5", "sha256"}
            assert re.fullmatch("[0-9a-f]{32}", file.get("md5", "0" * 32))
        for task_name, values in source["tasks"].items():
            for address in source.get("lists", {}).values():
                assert "{" not in address.format(**values), task_name


def test_checksums_are_those_of_torchvision():
    from torchvision import datasets

    told = json.loads((shipped.HERE / "sources" / "few-shot.json").read_text())
    files = {source["name"]: source["files"][0] for source in told["sets"] if "files" in source}
    food, pets, flowers = datasets.Food101, datasets.OxfordIIITPet, datasets.Flowers102
    assert files["food101"] == {"url": food._URL, "md5": food._MD5}
    assert (files["pets"]["url"], files["pets"]["md5"]) == pets._RESOURCES[0]
    name, md5 = flowers._file_dict["image"]
    assert files["flowers102"] == {"url": flowers._download_url_prefix + name, "md5": md5}
    assert files["aircraft"] == {"url": datasets.FGVCAircraft._URL}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vtab-2k"], ["no suite 'vtab-2k'", "vtab-1k"]),
        (["local"], ["your own data sets"]),
        (["fgvc", "--here"], ["--here"]),
    ],
)
def test_bad_requests(words, said, root, capsys):
    assert call("get", *words, "--out", root) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error
    assert not root.exists()


def test_the_command(server, offer, root, capsys):
    offer(TWO, few_shot(server))
    assert call("get", "tiny", "--out", root) == 0
    assert "made      pets-1shot" in capsys.readouterr().err
    (root / "file").write_text("")
    assert call("get", "tiny", "--out", root / "file") == 2
    with pytest.raises(RequestError):
        get("local", root)
