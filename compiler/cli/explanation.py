"""What was done to a model and what was not: the report in an artifact's manifest, grouped for reading."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from llmc.errors import BadOption

_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""The number of a layer or of an expert in a module path."""


@dataclass(frozen=True)
class Done:
    """The rewrites of one rule at the same place of each layer."""

    rule: str
    place: str
    """Module path, with `*` for the numbers of the layers."""
    count: int
    first: int
    """Number of the first of these rewrites, for `--stop-after`."""
    error: float | None
    """The largest error that its tests measured; None if none was tested."""


@dataclass(frozen=True)
class NotDone:
    """The near misses of one rule, for one reason, at the same place of each layer."""

    rule: str
    place: str
    count: int
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What was fused and what was not, and what the program consists of."""

    done: tuple[Done, ...]
    not_done: tuple[NotDone, ...]
    ops: dict[str, int]
    """How often each op occurs in the compiled graph."""

    def to_json(self) -> dict[str, object]:
        """The same as plain values."""
        return {
            "done": [asdict(item) for item in self.done],
            "not_done": [asdict(item) for item in self.not_done],
            "ops": self.ops,
        }

    def lines(self) -> Iterator[str]:
        """The same as text."""
        yield f"done: {sum(item.count for item in self.done)} rewrites"
        for item in self.done:
            where = f"{item.count} x at {item.place}" if item.count > 1 else f"at {item.place}"
            proof = "not proved" if item.error is None else f"largest error {item.error:.1e}"
            yield f"  {item.rule}: {where} (from #{item.first}, {proof})"
        yield f"not done: {sum(miss.count for miss in self.not_done)} near misses"
        for miss in self.not_done:
            where = f"{miss.count} x at {miss.place}" if miss.count > 1 else f"at {miss.place}"
            yield f"  {miss.rule}: {where}: {miss.reason}"
        yield f"ops: {sum(self.ops.values())} in the compiled graph"
        for name, count in sorted(self.ops.items(), key=lambda entry: (-entry[1], entry[0])):
            yield f"  {count:>5}  {name}"


def explain(manifest: Mapping[str, object], op: str | None = None, *, elsewhere: bool = False) -> Explanation:
    """Group the report of `manifest`; with `op`, only what concerns that rule, op or module.

    Raises BadOption if nothing in the report has that name, unless something `elsewhere` does.
    """
    report = _mapping(manifest.get("report"))
    rewrites = _records(manifest.get("rewrites")) or _records(report.get("rewrites"))
    ops = {str(name): int(str(count)) for name, count in _mapping(report.get("ops")).items()}
    done = _group_done(rewrites)
    not_done = _group_not_done(_records(report.get("refused")))
    if op is None:
        return Explanation(done, not_done, ops)
    chosen = Explanation(
        tuple(item for item in done if _concerns(op, item.rule, item.place)),
        tuple(miss for miss in not_done if _concerns(op, miss.rule, miss.place)),
        {name: count for name, count in ops.items() if _concerns(op, name, "")},
    )
    passes = {str(record.get("name")) for record in _records(manifest.get("passes")) or _records(report.get("passes"))}
    if not (chosen.done or chosen.not_done or chosen.ops or op in passes or elsewhere):
        known = passes | {item.rule for item in done} | {miss.rule for miss in not_done} | ops.keys()
        raise BadOption(_unknown(op, sorted(known)))
    return chosen


def place(origin: str) -> str:
    """The module of `origin` with `*` for the numbers of the layers, so that equal layers read alike."""
    return _LAYER.sub("*", origin.partition(" at ")[0]) or "unknown origin"


def _group_done(rewrites: Sequence[Mapping[str, object]]) -> tuple[Done, ...]:
    groups: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for record in rewrites:
        groups.setdefault((str(record["rule"]), place(str(record.get("origin", "")))), []).append(record)
    return tuple(
        Done(
            rule,
            where,
            len(records),
            min(int(str(record.get("number", 0))) for record in records),
            max((float(str(error)) for record in records if (error := record.get("error")) is not None), default=None),
        )
        for (rule, where), records in groups.items()
    )


def _group_not_done(refused: Sequence[Mapping[str, object]]) -> tuple[NotDone, ...]:
    groups: dict[tuple[str, str, str], int] = {}
    for record in refused:
        key = (str(record["rule"]), place(str(record.get("origin", ""))), str(record.get("reason", "")))
        groups[key] = groups.get(key, 0) + 1
    return tuple(NotDone(rule, where, count, reason) for (rule, where, reason), count in groups.items())


def _concerns(op: str, name: str, where: str) -> bool:
    """Whether `op` is this name, its last part (`rms_norm` of `llmc.rms_norm.default`), or a part of the place."""
    return op == name or op in name.split(".") or (bool(where) and place(f".{op}")[1:] in where)


def _unknown(op: str, known: Sequence[str]) -> str:
    short = {name.removesuffix(".default").rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(op, short, n=3)
    hint = f"did you mean {' or '.join(near)}" if near else "leave it out to see all that there is"
    return f"explain: the report says nothing of {op!r}; {hint}"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _records(value: object) -> list[Mapping[str, object]]:
    return [record for record in value if isinstance(record, Mapping)] if isinstance(value, list | tuple) else []
