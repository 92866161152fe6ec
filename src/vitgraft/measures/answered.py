"""What the evaluations of whole pictures have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, eq=False)
class Answered:
    """Answers for the n pictures of one split, whose files are `paths`. A subclass adds truth and answers."""

    metric: ClassVar[str]

    split: str
    classes: tuple[str, ...]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def value(self) -> float:
        raise NotImplementedError

    @property
    def interval(self) -> tuple[float, float]:
        raise NotImplementedError

    @property
    def numbers(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def headline(self) -> str:
        """The value with its interval, in words."""
        low, high = self.interval
        return f"{self.metric} {self.value:.2%} ({low:.1%} to {high:.1%}) on {len(self)} pictures of {self.split}"

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the pictures, ready for JSON."""
        return {
            "split": self.split,
            "pictures": len(self),
            "classes": list(self.classes),
            **self.numbers,
            "interval": list(self.interval),
        }
