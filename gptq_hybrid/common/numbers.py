"""Lists of numbers on a command line."""

from __future__ import annotations

from .errors import HybridError


def parse_numbers(
    option: str, text: str, least: int, most: int, *, example: str = "1,4,16"
) -> tuple[int, ...]:
    """Parse a list of whole numbers with commas between: ascending, each once.

    Args:
        option: what the list was given with, for the error.
        text: the list.
        least, most: the range of its numbers.
        example: a list that the error shows.

    Raises:
        HybridError: ``text`` is no such list, or a number is out of range.
    """
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not least <= numbers[0] <= numbers[-1] <= most:
        raise HybridError(
            f"{option} {text!r} is no list of whole numbers from {least} to {most:,}",
            remedy=f"Give them with commas between, such as: {option} {example}",
        )
    return tuple(numbers)
