"""One file per method. A file's name is the method's name; nothing else has to be edited to add one."""

from __future__ import annotations

from typing import Any

from ..combined import combine
from ..common import plugins
from ..common.errors import RequestError, near_misses
from ..method import Method


def names() -> list[str]:
    """The methods that exist: the files of `methods/`, and those from outside."""
    return plugins.names(__name__, Method)


def find(name: str) -> type[Method]:
    """The class of a method, or of several that adapt together (`hst+lora`); RequestError with the near misses if there
    is no such file."""
    kinds = tuple(plugins.find(__name__, each, Method, "method") for each in name.split("+"))
    return combine(kinds) if len(kinds) > 1 else kinds[0]


def create(name: str, *, dense: bool = False, **arguments: Any) -> Method:
    """A method by name, for a dense task or another; an argument that it does not have is a RequestError that names
    those it has."""
    cls = find(name)
    arguments = {**(cls.dense if dense else {}), **arguments}
    known = cls.defaults()
    for argument in arguments:
        if argument not in known:
            owners = [other for other in names() if argument in find(other).defaults()]
            raise RequestError(
                f"The method {name} has no option {argument!r}: it has {', '.join(known) or 'none'}"
                + (f"; {argument!r} belongs to {', '.join(owners)}" if owners else "")
                + f". Leave it out or choose another method.{near_misses(argument, known)}"
            )
    for argument, words in cls.choices.items():
        given = arguments.get(argument, known[argument])
        several = [given] if isinstance(given, str) else list(given)
        if repeated := [word for word in words if several.count(word) > 1]:
            raise RequestError(f"The {argument} of {name} have {repeated[0]!r} twice: give it once.")
        for word in several:
            if word not in words:
                raise RequestError(
                    f"The {argument} of {name} cannot be {word!r}: there is {', '.join(words)}; choose one of these."
                    f"{near_misses(str(word), words)}"
                )
    return cls(**arguments)
