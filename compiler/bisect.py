"""Finding the first bad rewrite of a build by binary search."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from llmc.errors import BuildFailed
from llmc.ir.rewrite import Applied

Built = TypeVar("Built")


def first_bad_rewrite(
    build: Callable[[int | None], tuple[Built, Sequence[Applied]]], is_good: Callable[[Built], bool]
) -> Applied | None:
    """The first rewrite without which the build is good; None when the whole build is good.

    Args:
        build: builds with at most so many rewrites (None for all), and returns the result and the rewrites made. A
            build that raises `BuildFailed` counts as bad.
        is_good: the check, which must fail for every build from the bad rewrite on.

    Raises `BuildFailed` when the build is bad without any rewrite.
    """
    made: list[Applied] = []

    def good(limit: int | None) -> bool:
        try:
            result, applied = build(limit)
        except BuildFailed:
            return False
        if len(applied) > len(made):
            made[:] = applied
        return is_good(result)

    if good(None):
        return None
    if not good(0):
        raise BuildFailed("the build is bad before any rewrite; the fault lies in the source or in the front end")
    low, high = 0, _bad_limit(good, len(made))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return _record(build, high, made)


def _bad_limit(good: Callable[[int], bool], known: int) -> int:
    """A number of rewrites with which the build is bad: doubled until it is, when the whole build told no number."""
    limit = max(known, 1)
    while good(limit):
        limit *= 2
    return limit


def _record(
    build: Callable[[int | None], tuple[Built, Sequence[Applied]]], number: int, made: Sequence[Applied]
) -> Applied:
    if number <= len(made):
        return made[number - 1]
    try:
        _, applied = build(number)
    except BuildFailed as error:
        return Applied(number, "a rewrite that fails its own proof", str(error), "", float("inf"), 0.0)
    return applied[number - 1]
