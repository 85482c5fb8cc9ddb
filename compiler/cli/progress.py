"""Progress of long work on stderr: one line for each phase with its time, and a spinner while it lasts."""

from types import TracebackType

from rich.console import Console
from rich.status import Status

from llmc.cli.output import duration, size


class PhaseProgress:
    """Prints the phases of a build as they end; to be called by the driver.

    In a terminal the phase that is running spins; elsewhere only finished lines are printed. `quiet` prints nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        """Write to stderr, unless `quiet`."""
        self.phases: list[dict[str, object]] = []
        """What was reported so far: {"phase", "seconds", and the facts of the phase}."""
        self._console = None if quiet else Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None

    def __enter__(self) -> "PhaseProgress":
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop spinning, however the work ended."""
        self._stop()

    def __call__(self, phase: str, seconds: float | None, info: dict[str, object]) -> None:
        """Report `phase`: it begins when `seconds` is None, else it ended after `seconds` with the facts in `info`."""
        if seconds is not None:
            self.phases.append({"phase": phase, "seconds": seconds, **info})
        if self._console is None:
            return
        self._stop()
        if seconds is not None:
            facts = ", ".join(describe(name, value) for name, value in info.items())
            self._console.print(f"  {phase:<14} {duration(seconds):>12}  {facts}".rstrip(), markup=False)
        elif self._console.is_terminal:
            self._status = self._console.status(f"{phase} ...")
            self._status.start()

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def describe(name: str, value: object) -> str:
    """One fact for people: `bytes` as a size, any other as `198 nodes`."""
    if name == "bytes" and isinstance(value, int | float):
        return size(value)
    if isinstance(value, float):
        value = f"{value:.3g}"
    return f"{value} {name.replace('_', ' ')}"
