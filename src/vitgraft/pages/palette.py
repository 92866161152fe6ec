"""The colours of classes: told apart with any kind of colour vision, and the same wherever a class is drawn."""

from __future__ import annotations

Colour = tuple[int, int, int]
# The first seven are Okabe and Ito's; each of the others is as far as can be from those before it in Oklab, seen with
# normal colour vision and by the three kinds of dichromats (Machado et al. 2009).
# fmt: off
PALETTE = (
    "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7", "78001e", "78ffff", "4b1e87",
    "0000e1", "874b69", "a569ff", "00e1a5", "b40f00", "a5d2ff", "a5ffa5", "d200b4", "690f5a", "78b478",
)
# fmt: on
GREY: Colour = (128, 128, 128)


def colour(label: int) -> Colour:
    """The colour of a class, whatever else is in the picture; the 21st is a lighter first, the 41st a darker one."""
    text = PALETTE[label % len(PALETTE)]
    goal, share = ((0, 0.0), (255, 0.5), (0, 0.4))[label // len(PALETTE) % 3]
    red, green, blue = (round((1 - share) * int(text[k : k + 2], 16) + share * goal) for k in (0, 2, 4))
    return red, green, blue


SHADES = ((0, 0.0), (255, 0.4), (0, 0.4), (255, 0.7), (0, 0.65))


def shade(label: int, number: int) -> Colour:
    """One of five shades of a class's colour, the first that colour itself: for its objects that overlap."""
    goal, share = SHADES[number % len(SHADES)]
    red, green, blue = (round((1 - share) * part + share * goal) for part in colour(label))
    return red, green, blue


def is_background(name: str) -> bool:
    """Whether a class is what surrounds the others; its pixels stay as they are."""
    return name.strip().lower() == "background"


def bright(tint: Colour) -> bool:
    """Whether dark letters on it have the higher contrast (WCAG 2)."""
    red, green, blue = ((part / 255) ** 2.2 for part in tint)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18
