"""The texts that `llmc build`, `inspect` and `doctor` print: plain values in, lines out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from llmc.cli.output import duration, size
from llmc.doctor import Examination

if TYPE_CHECKING:
    from llmc.compare import Comparison


def build_summary(directory: str, report: Mapping[str, object], written: int, seconds: float) -> Iterator[str]:
    """What `llmc build` says at the end: where the artifact is, what was rewritten, what comes next."""
    rewrites, refused = _length(report.get("rewrites")), _length(report.get("refused"))
    yield f"{directory}: {size(written)} in {duration(seconds)}; {rewrites} rewrites, {refused} near misses"
    yield from program_lines(_section(report, "program"))
    yield from gpu_lines(_section(report, "gpu"))
    yield from length_lines(_section(report, "lengths"))
    yield f"run it:     llmc run {directory} 'Once upon a time'"
    yield f"look at it: llmc explain {directory}"


def program_lines(program: Mapping[str, object]) -> Iterator[str]:
    """What runs a model, from the report of its build, and what of it is not native code and why."""
    if program.get("kind") == "reference":
        yield f"program for CPUs: the graph in eager torch ({program.get('reason')})"
        return
    share, left = program.get("native"), program.get("torch")
    if not isinstance(share, float) or not isinstance(left, Sequence):
        return
    yield f"program: native code for {_percent(share)} of the ops" + ("; torch computes the others:" if left else "")
    for item in left:
        if isinstance(item, Mapping):
            times = f"{item['count']} x at" if item.get("count") != 1 else "at"
            yield f"  {item.get('op')}: {times} {item.get('origin')}: {item.get('reason')}"


def gpu_lines(programs: Mapping[str, object]) -> Iterator[str]:
    """The programs for GPUs, from the report of a build."""
    for level, facts in programs.items():
        if isinstance(facts, Mapping):
            yield f"{level}: {facts.get('regions')} regions, {facts.get('kernels')} kernels"


def length_lines(lengths: Mapping[str, object]) -> Iterator[str]:
    """For which lengths of a sequence a model was compiled, where its own code tells them apart."""
    conditions, shortest = lengths.get("conditions"), lengths.get("shortest")
    if not isinstance(conditions, Sequence):
        return
    yield f"compiled for sequences where {' and '.join(str(condition) for condition in conditions)}"
    if isinstance(shortest, int):
        yield f"  one of fewer than {shortest} tokens is computed as the beginning of a longer one, which the model"
        yield f"  itself does otherwise; --max-context {shortest - 1} compiles for those alone"


def manifest_summary(directory: str, manifest: Mapping[str, object]) -> Iterator[str]:
    """An artifact's manifest for people, section by section."""
    source = _section(manifest, "source")
    yield f"{directory}: format {manifest.get('format_version')}, written by llmc {manifest.get('llmc_version')}"
    yield f"source    {source.get('kind', 'unknown')} {source.get('name', '')}".rstrip()
    for title in ("model", "options", "ranges"):
        for name, value in _section(manifest, title).items():
            yield f"{title:<9} {name} {_plain(value)}"
    layers = _section(manifest, "kv").get("layers")
    if isinstance(layers, Sequence):
        yield from (f"kv        {line}" for line in _cache_lines(layers))
    for name, roles in _section(manifest, "programs").items():
        targets = [role for role in roles if "." not in role] if name == "cuda" and isinstance(roles, Mapping) else []
        yield " for ".join([f"program   {name}", *([", ".join(targets)] if targets else [])])
    report = _section(manifest, "report")
    yield from (f"          {line}" for line in program_lines(_section(report, "program")))
    yield from (f"          {line}" for line in gpu_lines(_section(report, "gpu")))
    yield from (f"          {line}" for line in length_lines(_section(report, "lengths")))
    passes = manifest.get("passes")
    for record in passes if isinstance(passes, Sequence) else ():
        yield f"pass      {record.get('name')}: {record.get('changes')} changes"
    files = _section(manifest, "files")
    for name, facts in files.items():
        length = facts.get("bytes") if isinstance(facts, Mapping) else None
        yield f"file      {name} {size(length) if isinstance(length, int) else ''}".rstrip()


def comparison_lines(found: "Comparison") -> Iterator[str]:
    """How far an artifact is from its source."""
    yield f"logits of {found.tokens} tokens against the source in float64:"
    if found.kl_limit is None:
        yield f"  error {found.error:.2e}, eager torch {found.eager_error:.2e}, limit {found.limit:.2e}"
    else:
        yield f"  weights are rounded: divergence {found.kl:.2e} nats, limit {found.kl_limit:.2e}"
    yield f"  largest difference {found.largest:.2e}, same likeliest token {found.top1:.1%}, KL {found.kl:.1e} nats"


def examination_lines(found: Examination) -> Iterator[str]:
    """What `llmc doctor` found."""
    yield f"llmc      {found.llmc}"
    yield f"python    {found.python} ({found.executable})"
    yield f"system    {found.system}"
    for package in found.packages:
        required = f" (needs {package.required})" if package.required and not package.ok else ""
        optional = " (optional)" if package.required is None else ""
        yield f"package   {package.name} {package.version or 'not installed'}{required}{optional}"
    processor = found.processor
    yield f"cpu       {processor.name}, {processor.architecture}, {processor.cores} cores"
    yield f"isa       {' '.join(processor.isa) or 'unknown'}"
    yield f"levels    {' '.join(processor.levels)}"
    yield f"memory    {size(found.memory_bytes)}"
    compiler = found.compiler
    yield f"compiler  {f'{compiler.path}: {compiler.version}' if compiler.path else compiler.version}"
    for gpu in found.gpus:
        yield f"gpu       {gpu.name}, {size(gpu.memory_bytes)}, {gpu.target}, driver for CUDA {gpu.driver}"
        yield f"          library for linears of many rows: {gpu.products}"
    if not found.gpus:
        yield f"gpu       none: {found.gpu_problem}"
    yield f"cache     {found.cache}"


def _cache_lines(layers: Sequence[object]) -> Iterator[str]:
    """Layers that store K and V alike share a line: `12 layers: 3 heads, key 64, value 64, float32`."""
    counts: dict[str, int] = {}
    for layer in layers:
        if isinstance(layer, Mapping):
            text = (
                f"{layer.get('heads')} heads, key {layer.get('key_size')}, value {layer.get('value_size')}, "
                f"{layer.get('dtype')}"
            )
            counts[text] = counts.get(text, 0) + 1
    for text, count in counts.items():
        yield f"{count} layers: {text}"


def _section(manifest: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = manifest.get(name)
    return value if isinstance(value, Mapping) else {}


def _length(value: object) -> int:
    return len(value) if isinstance(value, Sequence) else 0


def _percent(share: float) -> str:
    """A share that is 100 % only if it is all."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.9):.1f} %"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(_plain(item) for item in value)
    return str(value)
