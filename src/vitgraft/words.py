"""Words of the command line that carry values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .errors import RequestError


def values(words: Sequence[str], where: str, example: str) -> dict[str, Any]:
    """NAME=VALUE, each value as JSON knows it (numbers, true, false) or a word; RequestError for anything else.

    where: what the options are of, example: one of them, both for the error.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise RequestError(f"{word!r} is no option of {where}: write NAME=VALUE, such as {example}.")
        try:
            found[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.replace("-", "_")] = value
    return found
