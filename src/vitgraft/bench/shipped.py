"""The JSON files that describe suites, protocols and published tables: named by their file, read with care."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..common.errors import RequestError, near_misses

HERE = Path(__file__).parent


def names(kind: str) -> list[str]:
    """The files of one kind ("suites", "protocols", "published") without their ending."""
    return sorted(file.stem for file in (HERE / kind).glob("*.json"))


def path(kind: str, name: str, known: Collection[str], what: str) -> Path:
    """The file of a name; RequestError with the near misses unless it is one of `known`."""
    if name not in known:
        raise RequestError(
            f"There is no {what} {name!r}: there are {', '.join(known)}; choose one of these.{near_misses(name, known)}"
        )
    return HERE / kind / f"{name}.json"


def read(file: Path, what: str) -> dict[str, Any]:
    """What a file holds; RequestError unless it is a JSON object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{file} was to be read as a {what}, but cannot be ({error}): give an intact file."
        ) from error
    if not isinstance(value, dict):
        raise RequestError(f"{file} was to be read as a {what}, but is no JSON object: write one, with its fields.")
    return value


def check_fields(where: str, given: Any, needed: Collection[str], optional: Collection[str] = ()) -> None:
    """RequestError unless `given` is an object with all the needed fields and none beside the optional ones."""
    if not isinstance(given, Mapping):
        raise RequestError(f"{where} is {given!r}, but must be an object with {', '.join(needed)}: write one.")
    if missing := [name for name in needed if name not in given]:
        raise RequestError(f"{where} lacks {', '.join(missing)}, but needs {', '.join(needed)}: add what is missing.")
    known = [*needed, *optional]
    if extra := [name for name in given if name not in known]:
        raise RequestError(
            f"{where} has a field {extra[0]!r}, but there are {', '.join(known)}: rename or remove it."
            f"{near_misses(extra[0], known)}"
        )


def check_kinds(where: str, given: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """RequestError unless each of these fields, where it is given, is a list, an object (dict), a number or a text."""
    words = {list: "a list", dict: "an object", int: "a whole number", str: "a text"}
    for name, kind in kinds.items():
        if name in given and (not isinstance(given[name], kind) or isinstance(given[name], bool)):
            raise RequestError(f"{where} has {given[name]!r} as its {name}, but that is {words[kind]}: write one.")
