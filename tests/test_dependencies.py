"""Nothing is imported that is not asked for in pyproject.toml."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import vitgraft

# Parts of what is asked for, and what is used only where somebody has it.
BROUGHT = {"markupsafe": "jinja2", "starlette": "fastapi"}
IF_THERE = {"pillow_heif", "pyarrow", "supervision", "triton", "pytest"}


def imported():
    """Module -> a file that imports it, of all that is neither Python's nor ours."""
    found = {}
    root = Path(vitgraft.__file__).parent
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found |= {name.partition(".")[0]: file.relative_to(root) for name in names}
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names | {"vitgraft"}}


def test_all_that_is_imported_is_asked_for():
    def plain(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    asked = {plain(re.match(r"[\w.-]+", line)[0]) for line in requires("vitgraft")}
    belongs = packages_distributions()
    missing = {
        name: str(file)
        for name, file in imported().items()
        if name not in IF_THERE and not {plain(of) for of in belongs.get(BROUGHT.get(name, name), [name])} & asked
    }
    assert not missing, f"imported, but not among the dependencies: {missing}"
