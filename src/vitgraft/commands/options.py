"""Words of the command line that carry values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ..common.errors import RequestError


def values(words: Sequence[str], where: str, example: str) -> dict[str, Any]:
    """NAME=VALUE, each value as JSON knows it (numbers, true, false) or a word; RequestError for anything else.

    where: what the options are of, example: one of them, both for the error.
    """
    return {name: _value(text) for name, text in _pairs(words, where, example)}


def lists(words: Sequence[str], where: str, example: str) -> dict[str, list[Any]]:
    """NAME=VALUE,VALUE, ...: a list for each name; else as `values`."""
    return {name: [_value(text) for text in texts.split(",")] for name, texts in _pairs(words, where, example)}


def _pairs(words: Sequence[str], where: str, example: str) -> Iterator[tuple[str, str]]:
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise RequestError(f"{word!r} is no option of {where}: write NAME=VALUE, such as {example}.")
        yield name.replace("-", "_"), value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def taken(words: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """What stands behind every `flag VALUE` and `flag=VALUE`, before any command is known; and the other words."""
    found, others, rest = [], [], iter(words)
    for word in rest:
        if word == flag:
            found.append(next(rest, ""))
        elif word.startswith(f"{flag}="):
            found.append(word.partition("=")[2])
        else:
            others.append(word)
    return found, others
