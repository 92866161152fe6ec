"""What was answered, and the numbers: accuracy, mIoU, COCO's average precision. Knows no model."""

from __future__ import annotations

from typing import Any, Protocol


class Evaluation(Protocol):
    """What a model answered on the pictures of one split, and the numbers that follow from it."""

    def __len__(self) -> int: ...
    @property
    def metric(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def paths(self) -> list[str]: ...
    @property
    def value(self) -> float:
        """The metric, 0..1."""
        ...

    @property
    def interval(self) -> tuple[float, float] | None:
        """The value's 95 % interval, where there is one."""
        ...

    @property
    def numbers(self) -> dict[str, Any]:
        """Every number over the whole split, by name; the `value` is one of them."""
        ...

    @property
    def note(self) -> str:
        """A sentence that helps to judge the value; may be empty."""
        ...

    def lines(self) -> list[str]:
        """The numbers in words."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the pictures, ready for JSON."""
        ...
