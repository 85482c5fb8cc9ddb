"""The life of a model: read it, run the passes, make a program of it."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from llmc.codegen import reference
from llmc.codegen.triton.compile import check_triton
from llmc.compiled_model import CompiledModel
from llmc.errors import BadOption
from llmc.frontend.lengths import CONDITIONS, SHORTEST, shorter_as_way_out
from llmc.frontend.read import Read, read
from llmc.gpu import GpuPrograms, emit_gpu, on_this_machine
from llmc.ir.model import UNLIMITED_CONTEXT, Model
from llmc.ir.pass_manager import Pass, Report, run_passes
from llmc.loading import load
from llmc.native import NativeProgram, emit_native, native_compiler
from llmc.options import Options
from llmc.packaging import Build
from llmc.pipeline import pipeline
from llmc.quantize import cache_dtype, weight_packing
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.program import CacheSpec, Program
from llmc.runtime.session import Session
from llmc.runtime.tokenizer import Tokenizer

Progress = Callable[[str, float | None, dict[str, object]], None]
"""Told that a phase begins (seconds None), and that it ended after so many seconds with these facts."""

STEP_TOKENS, SEQUENCES = 8192, 256
"""Tokens and sequences in one step at most."""


def compile(
    model: str | Path | nn.Module | fx.GraphModule | torch.export.ExportedProgram,
    *,
    dtype: str | None = None,
    max_context: int | None = None,
    prove: bool = True,
    dump: str | Path | None = None,
    stop_after: int | None = None,
    quantize: str | None = None,
    head: str | None = None,
    kv_dtype: str | None = None,
    program: str | None = None,
    strict: bool = False,
    target: str | None = None,
    progress: Progress | None = None,
) -> CompiledModel:
    """Compile a model for inference.

    Args:
        model: a Hugging Face directory, a GGUF file, a module or traced program that maps tokens [1, S] to logits
            [1, S, V].
        dtype: what to compute in: "float32", "float16" or "bfloat16"; the checkpoint's own when None (GGUF: float32).
            A live module has its dtype already.
        max_context: longest sequence to serve, in tokens; what the model was made for when None.
        prove: test every rewrite on the subgraph it replaces.
        dump: directory for the graph after each pass.
        stop_after: make only the first so many rewrites.
        quantize: how weights are stored: "float", "fp8", "int8", "int6", "int4" (also "int4:64", "int4:128"), or
            "keep" for the blocks of a GGUF file.
        head: how the projection to the logits is stored when the weights are rounded; when None, "int6" or "int8"
            beside four bits, by its size, and else as the others.
        kv_dtype: how keys and values are stored in the cache: a dtype, or "int8" or "fp8" (e4m3; has no native form for
            CPUs) with a scale for each token and head; a dtype that fits the weights when None.
        program: "cpu" for native code, "reference" for the graph in eager torch; native code where a C++ compiler is
            found, when None.
        strict: refuse a model of which a part has no native form; otherwise torch computes that part, or the model as a
            whole where the part cannot be taken out, and the report says so.
        target: what to build for, separated by commas: "cpu", and GPUs such as "sm_90", which need not be there, or
            "cuda" for the one that is. The model that is returned runs on this machine's GPU if it is one of them.
        progress: told of the beginning and end of each phase.

    Raises:
        UnsupportedModel: the model cannot be compiled; the message names the op, the module and the source line.
        BadInput: its files are damaged. BadOption: an argument is wrong. BuildFailed: a rewrite is not equal to what
            it replaces. MissingTool: native code is asked for and there is no compiler, or "cuda" and there is no GPU.
    """
    options = Options.read(
        dtype=dtype,
        max_context=max_context,
        prove=prove,
        dump=dump,
        stop_after=stop_after,
        quantize=quantize,
        head=head,
        kv_dtype=kv_dtype,
        program=program,
        strict=strict,
        target=target,
    )
    options = on_this_machine(options)
    compiler, reason = native_compiler(options)
    if options.gpus:
        check_triton()
    began = time.perf_counter()
    if progress is not None:
        progress("read", None, {})
    source = read(model, getattr(torch, options.dtype) if options.dtype else None, options.max_context)
    if progress is not None:
        nodes = sum(1 for _ in source.model.calls())
        progress("read", time.perf_counter() - began, {"nodes": nodes, "weights": len(source.model.weights)})
    with shorter_as_way_out(source.model):
        report = run_passes(
            source.model,
            _phases(source, options, packed=compiler is not None or bool(options.gpus)),
            dump=options.dump,
            stop_after=options.stop_after,
            prove=options.prove,
            progress=progress,
        )
    native = None
    caches = reference.cache_specs(source.model)
    if compiler is not None:
        native, reason = emit_native(source.model, caches, compiler, strict=options.strict)
    build = _build(source, report, options, native, reason, emit_gpu(source.model, caches, options.gpus), caches)
    asked = options.program
    return CompiledModel(lambda: _session(build, asked), build.report, build)


def _phases(source: Read, options: Options, *, packed: bool) -> Mapping[str, Sequence[Pass]]:
    if options.quantize is None and not packed:
        return pipeline(cache=options.kv_dtype)
    packing = weight_packing(options.quantize, source.origin.kind, options.head)
    return pipeline(packing, cache_dtype(source.model, packing, options.kv_dtype))


def _session(build: Build, asked: str | None) -> Session:
    """Runs on the GPU that was built for if it is here, unless another program was `asked` for by name."""
    tokenizer = None
    if build.tokenizer is not None:
        files = build.tokenizer
        tokenizer = Tokenizer(files.tokenizer_json.decode(), files.config, files.chat_template)
    if build.gpu is not None and asked is None and (on_gpu := build.gpu.open(build.model)) is not None:
        return Session(on_gpu, build.facts, build.ranges, tokenizer, block_size=on_gpu.plan.block_size)
    program: Program = reference.from_model(build.model) if build.native is None else build.native.open(build.model)
    return Session(program, build.facts, build.ranges, tokenizer)


def _build(
    source: Read,
    report: Report,
    options: Options,
    native: NativeProgram | None,
    reason: str,
    gpu: GpuPrograms | None,
    caches: Sequence[CacheSpec],
) -> Build:
    model, info = source.model, source.model.info
    output: Any = model.graph.output_node().args[0]
    vocabulary = int(output[0].meta["val"].shape[-1])
    limit = info.get("max_positions")
    context = options.max_context or (limit if isinstance(limit, int) else UNLIMITED_CONTEXT)
    if isinstance(limit, int) and context > limit:
        raise BadOption(f"max context: {context} tokens, the model was made for {limit}; use {limit} or less")
    ends = info.get("eos_token_ids")
    facts = ModelFacts(
        vocab_size=vocabulary,
        max_positions=limit if isinstance(limit, int) else None,
        eos_token_ids=tuple(ends) if isinstance(ends, (list, tuple)) else (),
        bos_token_id=info["bos_token_id"] if isinstance(info.get("bos_token_id"), int) else None,  # type: ignore[arg-type]
    )
    ranges = Ranges(tokens=STEP_TOKENS, sequences=SEQUENCES, context=context)
    return Build(
        model=model,
        source=source.origin,
        facts=facts,
        ranges=ranges,
        tokenizer=source.tokenizer,
        options=_spelled(options),
        report={
            **_report(model, report),
            "program": _program(native, reason),
            "gpu": {} if gpu is None else gpu.report(),
        },
        caches=caches,
        native=native,
        gpu=gpu,
    )


def _program(native: NativeProgram | None, reason: str) -> dict[str, object]:
    """What runs the model, and why it is not native code if it is not."""
    if native is None:
        return {"kind": "reference", "reason": reason}
    return {"kind": "cpu", "compiler": native.compiler.version, **native.source.description}


def _spelled(options: Options) -> dict[str, object]:
    return {
        "dtype": options.dtype,
        "max_context": options.max_context,
        "prove": options.prove,
        "stop_after": options.stop_after,
        "quantize": options.quantize,
        "head": options.head,
        "kv_dtype": options.kv_dtype,
        "program": options.program,
        "target": ",".join(options.targets),
    }


def _report(model: Model, report: Report) -> dict[str, object]:
    """What the build did, as plain data."""
    counts = Counter(str(node.target) for node in model.calls() if isinstance(node.target, torch._ops.OpOverload))
    everything: dict[str, object] = json.loads(json.dumps(report.as_dict(), default=str))
    return {
        "passes": everything["passes"],
        "rewrites": everything["applied"],
        "refused": everything["refused"],
        "ops": dict(sorted(counts.items())),
        "masks": _masks(model),
        "lengths": {name: model.info[name] for name in (SHORTEST, CONDITIONS) if name in model.info},
    }


def _masks(model: Model) -> dict[str, int]:
    masks: Counter[str] = Counter()
    for node in model.calls(torch.ops.llmc.cached_attention.default):
        mask, bias = str(node.args[12]), str(node.args[13])
        masks[mask if bias == "0" else f"{mask}; bias {bias}"] += 1
    return dict(masks)


__all__ = ["Progress", "compile", "load"]
