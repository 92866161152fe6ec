"""`python -m vitgraft.testing FILE [words for pytest]`: the behaviour matrix over the method of a file of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..common import plugins
from ..common.errors import RequestError


def main(words: list[str]) -> int:
    """Runs the matrix in a fresh process; pytest's exit code, or 2 where the file holds no method."""
    try:
        from ..method import Method

        if not words or words[0].startswith("-"):
            raise RequestError("Name the file of a method: python -m vitgraft.testing mine.py.")
        (module,) = plugins.add(words[0])
        if not plugins.classes_in(module, Method):
            raise RequestError(f"{words[0]} holds no subclass of vitgraft.Method: add one.")
    except RequestError as error:
        print(f"vitgraft: {error}", file=sys.stderr)
        return error.exit_code
    name = module.__name__.rpartition(".")[2]
    tests = Path(__file__).with_name("test_methods.py")
    command = [sys.executable, "-m", "pytest", "-p", "vitgraft.testing.fixtures", "--rootdir", str(tests.parent)]
    return subprocess.call([*command, str(tests), *words[1:]], env={**os.environ, "VITGRAFT_TESTED": name})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
