"""What a comparison must meet, as users write it: `max error < 1e-3`."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmc.errors import BadOption

if TYPE_CHECKING:
    from llmc.compare import Comparison

MEASURES = {"max error": "largest", "rms error": "error", "kl": "kl", "top1": "top1"}
"""What can be asked for, and the field of `Comparison` that holds it."""

_TEXT = re.compile(r"\s*(?P<measure>[a-z][a-z0-9 ]*?)\s*(?P<sign>[<>])\s*(?P<limit>\S+)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Threshold:
    """A limit on one measure of a comparison; one that is not a number never meets it."""

    measure: str
    """A key of `MEASURES`."""
    below: bool
    """Whether the measure must be less than the limit, or more."""
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Threshold":
        """Read `MEASURE < NUMBER` or `MEASURE > NUMBER`. Raises BadOption."""
        match = _TEXT.fullmatch(text)
        measure = " ".join(match["measure"].lower().split()) if match else ""
        limit = _number(match["limit"]) if match else None
        if match is None or measure not in MEASURES or limit is None:
            known = ", ".join(MEASURES)
            raise BadOption(f"check: {text!r} cannot be read; write such as 'max error < 1e-3', with one of {known}")
        return cls(measure, match["sign"] == "<", limit)

    def met(self, found: "Comparison") -> bool:
        """Whether `found` meets it."""
        value: float = getattr(found, MEASURES[self.measure])
        return value < self.limit if self.below else value > self.limit


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
