"""Cut a stream of text before the first of some stop texts, without ever letting out a part of one."""

from collections.abc import Sequence


class StopTexts:
    """Holds back as much of the text as could be the beginning of a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False
        """Whether a stop text has come; all text after it is dropped."""

    def push(self, piece: str) -> str:
        """Take the next piece of text, return what is certain to stand before any stop text."""
        if self.found:
            return ""
        text = self._held + piece
        begins = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if begins:
            self.found, self._held = True, ""
            return text[: min(begins)]
        keep = len(text) - self._longest_beginning(text)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """The text that was held back: nothing follows, so it is no stop text."""
        text, self._held = self._held, ""
        return text

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop text begins with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
