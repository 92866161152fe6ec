"""Nothing that a user starts needs a module that Windows lacks."""

import subprocess
import sys

from helpers_cli import environment, fit_words, make_ground, result_of

POSIX = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
# psutil needs one of them here, and another on Windows: what it would say there.
HIDDEN = (
    f"import sys; from types import SimpleNamespace as Any; sys.modules.update(dict.fromkeys({POSIX!r})); "
    "memory = Any(memory_info=lambda: Any(peak_wset=1 << 30)); sys.modules['psutil'] = Any(Process=lambda: memory); "
)


def run(code, *words):
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN + code, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported():
    code = (
        "import importlib, pkgutil, vitgraft; "
        "names = [m.name for m in pkgutil.walk_packages(vitgraft.__path__, 'vitgraft.') "
        "if not m.name.endswith(('methods.peft', 'bench.on_ray', 'serve.on_ray'))]; "
        "[importlib.import_module(name) for name in names]; print(len(names))"
    )
    assert int(run(code)) > 100


def test_fit_and_bench_run(tmp_path):
    ground = make_ground(tmp_path / "ground")
    main = "from vitgraft.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    run(main, *fit_words(ground, tmp_path / "run", "--method", "linear"))
    assert result_of(tmp_path / "run")["cost"]["peak_memory_bytes"] == 1 << 30
    (tmp_path / "sets").mkdir()
    ground.easy.rename(tmp_path / "sets" / "easy")
    words = ["--data", tmp_path / "sets", "--backbone", ground.backbone, "--out", tmp_path / "bench"]
    settings = ["--methods", "linear", "--seeds", 1, "--set", "epochs=1", "batch_size=12", "workers=0"]
    assert "1 done" in run(main, "bench", "run", *words, *settings)
