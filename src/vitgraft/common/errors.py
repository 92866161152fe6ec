"""Errors that a user can act on.

Each message is one sentence of three parts: what was asked, what exists, what to do. The command line prints it
without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitgraftError(Exception):
    """Base of the errors that are meant for the user."""

    exit_code = 1


class WorkError(VitgraftError):
    """The request was sound, but the work failed: a full disk, a loss that is not finite."""

    exit_code = 1


class RequestError(VitgraftError, ValueError):
    """The request was wrong: no such folder, an unknown method, an image size that the patch does not divide."""

    exit_code = 2


def near_misses(word: str, options: Iterable[str], most: int = 3) -> str:
    """`" Did you mean 'hst'?"` for the options that look like `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(options), n=most, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(name) for name in found)}?" if found else ""
