"""The manifest of an artifact: what it was made from, what it serves, and the hash of every file."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmc.errors import ArtifactRejected
from llmc.runtime.checked_json import Field, Json, canonical, parse
from llmc.runtime.program import CacheSpec

FORMAT = "llmc"
FORMAT_VERSION = 2
"""The version of the artifact format that this llmc writes."""
READER_VERSION = 2
"""The newest format that this llmc reads: artifacts whose `min_reader` is higher are refused."""
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
LIBRARIES = frozenset({"avx512", "avx2", "portable"})
"""Roles of a native program's libraries: the level of instructions that each needs."""
GPU_PARTS = ("bin", "py", "explanation")
"""What belongs to the plan of a GPU target, whose role is its name: code, source and, maybe, what people are told."""
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 10_000

_MAX_INT = (1 << 63) - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GPU_TARGET = re.compile(r"sm_[0-9]{2,3}|gfx[0-9a-f]{3,5}")
_REQUIRED = (
    "format", "format_version", "min_reader", "digest", "llmc_version", "source", "model", "options", "ranges", "kv",
    "programs", "passes", "rewrites", "report", "files",
)  # fmt: skip
_ROLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "reference": (("graph",), ()),
    "cpu": (("source",), (*sorted(LIBRARIES), "explanation", "graph", "torch")),
}
"""For each program that this llmc knows the roles that must be there, and those that may."""


@dataclass(frozen=True)
class Source:
    """The model that the artifact was compiled from."""

    kind: str
    """Such as "gguf", "huggingface" or "module"."""
    name: str
    """File or directory name, without its path."""
    hash: str
    """What identifies its content; empty for a live module."""


@dataclass(frozen=True)
class ModelFacts:
    """What the runtime must know of a model to feed it."""

    vocab_size: int
    """Rows of the logits; token ids are below it."""
    max_positions: int | None = None
    """Longest sequence that the model itself was made for; None if it knows no limit."""
    eos_token_ids: tuple[int, ...] = ()
    """Generation stops after any of these."""
    bos_token_id: int | None = None


@dataclass(frozen=True)
class Ranges:
    """The largest sizes that an artifact serves; the smallest are 1."""

    tokens: int
    """Tokens in one step, of all sequences together."""
    sequences: int
    """Sequences in one step."""
    context: int
    """Tokens in one sequence."""


@dataclass(frozen=True)
class PassRecord:
    """One pass of the build."""

    name: str
    changes: int


@dataclass(frozen=True)
class RewriteRecord:
    """One rewrite of the build and the error that its test measured."""

    number: int
    rule: str
    origin: str
    error: float | None
    """None for a rewrite that was not tested."""


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of a file."""

    sha256: str
    bytes: int
    pieces: int | None = None
    """Where there is a number, the hash is that of the hashes of pieces of so many bytes (see
    `llmc.runtime.piece_hash`)."""

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        pieces = {} if self.pieces is None else {"pieces": self.pieces}
        return {"bytes": self.bytes, "sha256": self.sha256, **pieces}


@dataclass(frozen=True)
class Manifest:
    """A manifest whose every field has been checked."""

    digest: str
    """SHA-256 of the canonical manifest without this field: it identifies the artifact, since it covers all hashes."""
    format_version: int
    min_reader: int
    llmc_version: str
    source: Source
    model: ModelFacts
    options: Mapping[str, Json]
    """The options of the build, plain values."""
    ranges: Ranges
    kv: tuple[CacheSpec, ...]
    """The cache of each attention layer, in the order of the program's caches."""
    programs: Mapping[str, Mapping[str, str]]
    """For each program its files by role: {"reference": {"graph": "program/graph.json"}}; of the native one the source
    and a library for each level of instructions: {"cpu": {"source": "program/cpu.cpp", "avx2": "program/cpu-avx2.so"}};
    of GPUs a plan, code and source for each target: {"cuda": {"sm_90": ..., "sm_90.bin": ..., "sm_90.py": ...}}.
    """
    passes: tuple[PassRecord, ...]
    rewrites: tuple[RewriteRecord, ...]
    report: Mapping[str, Json]
    """Findings of the build for people; the runtime does not read them."""
    files: Mapping[str, FileRecord]
    """Every file of the artifact but the manifest, by relative name."""
    content: Mapping[str, Json]
    """The same as the JSON object it was read from."""

    @staticmethod
    def read(content: bytes) -> "Manifest":
        """Parse and check the bytes of a manifest. Raises ArtifactRejected."""
        if len(content) > MAX_MANIFEST_BYTES:
            raise ArtifactRejected(
                f"{MANIFEST}: {len(content)} bytes, at most {MAX_MANIFEST_BYTES} are allowed; build the artifact again"
            )
        document = parse(content, MANIFEST)
        _check_version(document)
        fields = document.members(_REQUIRED)
        members = document.value
        assert isinstance(members, dict), "members() rejects everything else"
        _check_digest(content, members, fields["digest"])
        files = _read_files(fields["files"])
        return Manifest(
            digest=fields["digest"].text(_SHA256),
            format_version=fields["format_version"].integer(1, READER_VERSION),
            min_reader=fields["min_reader"].integer(1, READER_VERSION),
            llmc_version=fields["llmc_version"].text(),
            source=_read_source(fields["source"]),
            model=_read_model(fields["model"]),
            options={name: item.value for name, item in fields["options"].entries(256)},
            ranges=_read_ranges(fields["ranges"]),
            kv=_read_kv(fields["kv"]),
            programs=_read_programs(fields["programs"], files),
            passes=tuple(_read_pass(item) for item in fields["passes"].items(10_000)),
            rewrites=tuple(_read_rewrite(item) for item in fields["rewrites"].items(100_000)),
            report={name: item.value for name, item in fields["report"].entries(256)},
            files=files,
            content=members,
        )


def seal(facts: Mapping[str, object], files: Mapping[str, FileRecord]) -> bytes:
    """The bytes of a manifest: `facts` (source, model, options, ...), format, versions, file hashes and the digest.

    The result is read back, so facts that no reader would accept raise ArtifactRejected here, before anything is
    published. Facts that have no JSON spelling raise TypeError or ValueError.
    """
    content: dict[str, object] = {
        **facts,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "min_reader": 1 if all(record.pieces is None for record in files.values()) else 2,
        "files": {name: record.to_json() for name, record in files.items()},
    }
    content.pop("digest", None)
    content["digest"] = hashlib.sha256(canonical(content)).hexdigest()
    written = canonical(content)
    Manifest.read(written)
    return written


def _check_version(document: Field) -> None:
    """Refuse other formats first: a newer one may have other fields."""
    if not isinstance(document.value, dict):
        document.reject("an object")
    value = document.value
    Field(value.get("format"), f"{MANIFEST}.format").choice(FORMAT)
    needed = Field(value.get("min_reader"), f"{MANIFEST}.min_reader").integer(1, _MAX_INT)
    version = Field(value.get("format_version"), f"{MANIFEST}.format_version").integer(1, _MAX_INT)
    if needed > READER_VERSION:
        raise ArtifactRejected(
            f"{MANIFEST}: format {version} needs a reader of version {needed}, this llmc has {READER_VERSION};"
            " update llmc or build the artifact again"
        )
    if needed > version or version > READER_VERSION:
        raise ArtifactRejected(
            f"{MANIFEST}: format_version {version} with min_reader {needed} is not a version that llmc has released;"
            " build the artifact again"
        )


def _check_digest(content: bytes, members: Mapping[str, Json], digest: Field) -> None:
    said = digest.text(_SHA256)
    found = hashlib.sha256(canonical({name: item for name, item in members.items() if name != "digest"})).hexdigest()
    if found != said or canonical(members) != content:
        raise ArtifactRejected(
            f"{MANIFEST}: it was altered after it was written (digest {said[:12]}, its content has {found[:12]});"
            " build the artifact again or get an unaltered copy"
        )


def _read_files(field: Field) -> dict[str, FileRecord]:
    files: dict[str, FileRecord] = {}
    folded: set[str] = set()
    for name, item in field.entries(MAX_FILES):
        checked = Field(name, f"{field.where} name").file_name()
        if checked.casefold() in folded or checked.casefold() == MANIFEST:
            raise ArtifactRejected(f"{item.where}: two files differ only in case; build the artifact again")
        folded.add(checked.casefold())
        record = item.members(("sha256", "bytes"), ("pieces",))
        pieces = record["pieces"].integer(1 << 20, 64 << 20) if "pieces" in record else None
        files[checked] = FileRecord(record["sha256"].text(_SHA256), record["bytes"].integer(0, _MAX_INT), pieces)
    if WEIGHTS not in files:
        raise ArtifactRejected(f"{field.where}: {WEIGHTS} is missing; build the artifact again")
    return files


def _read_source(field: Field) -> Source:
    members = field.members(("kind", "name", "hash"))
    return Source(members["kind"].text(), members["name"].text(), members["hash"].text())


def _read_model(field: Field) -> ModelFacts:
    known = ("vocab_size", "max_positions", "eos_token_ids", "bos_token_id")
    for name, item in field.entries(256):
        if name not in known and isinstance(item.value, list | dict):
            item.reject("a plain value: facts of a model beside the known ones are not nested")
    members = field.members(known, tuple(name for name, _ in field.entries(256)))
    vocabulary = members["vocab_size"].integer(1, 1 << 31)
    ids = tuple(item.integer(0, vocabulary - 1) for item in members["eos_token_ids"].items(1024))
    return ModelFacts(
        vocab_size=vocabulary,
        max_positions=members["max_positions"].optional(lambda item: item.integer(1, 1 << 40)),
        eos_token_ids=ids,
        bos_token_id=members["bos_token_id"].optional(lambda item: item.integer(0, vocabulary - 1)),
    )


def _read_ranges(field: Field) -> Ranges:
    members = field.members(("tokens", "sequences", "context"))
    return Ranges(*(_read_range(members[name]) for name in ("tokens", "sequences", "context")))


def _read_range(field: Field) -> int:
    ends = field.items(2)
    if len(ends) != 2:
        field.reject("a list of two integers")
    ends[0].integer(1, 1)
    return ends[1].integer(1, 1 << 40)


def _read_kv(field: Field) -> tuple[CacheSpec, ...]:
    layers = field.members(("layers",))["layers"].items(100_000)
    return tuple(_read_layer(layer) for layer in layers)


def _read_layer(field: Field) -> CacheSpec:
    members = field.members(("heads", "key_size", "value_size", "dtype"))
    return CacheSpec(
        heads=members["heads"].integer(1, 1 << 20),
        key_size=members["key_size"].integer(1, 1 << 20),
        value_size=members["value_size"].integer(1, 1 << 20),
        dtype=members["dtype"].choice("float32", "float16", "bfloat16", "int8", "fp8"),
    )


def _read_programs(field: Field, files: Mapping[str, FileRecord]) -> dict[str, dict[str, str]]:
    programs: dict[str, dict[str, str]] = {}
    for name, program in field.entries(64):
        Field(name, f"{field.where} name").text(_NAME)
        programs[name] = {}
        for role, item in program.entries(1024):
            programs[name][Field(role, f"{program.where} role").text(_NAME)] = item.file_name()
            if item.value not in files:
                item.reject("a file that the manifest lists")
        if name in _ROLES:
            program.members(*_ROLES[name])
        if name == "cpu" and not LIBRARIES.intersection(programs[name]):
            program.reject(f"at least one library: {', '.join(sorted(LIBRARIES))}")
        if name == "cuda":
            _check_targets(program, programs[name])
    return programs


def _check_targets(program: Field, roles: Mapping[str, str]) -> None:
    targets = tuple(role for role in roles if "." not in role)
    for target in targets:
        Field(target, f"{program.where} role").text(_GPU_TARGET)
    if not targets:
        program.reject("the plan of at least one target, such as sm_90")
    code, source, told = ([f"{target}.{part}" for target in targets] for part in GPU_PARTS)
    program.members((*targets, *code, *source), tuple(told))


def _read_pass(field: Field) -> PassRecord:
    members = field.members(("name", "changes"))
    return PassRecord(members["name"].text(), members["changes"].integer(0, _MAX_INT))


def _read_rewrite(field: Field) -> RewriteRecord:
    members = field.members(("number", "rule", "origin"), ("error",))
    error = members["error"].optional(Field.number) if "error" in members else None
    return RewriteRecord(
        members["number"].integer(0, _MAX_INT), members["rule"].text(), members["origin"].text(), error
    )
