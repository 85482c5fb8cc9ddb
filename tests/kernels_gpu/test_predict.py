"""What decode steps of large models should take on an H200: a guard over kernels, launches and bytes.

The assumptions are those of `llmc.codegen.triton.predict`. Layers are alike, so one and two of them tell of any number.
"""

import dataclasses
from pathlib import Path

import pytest
from support.sparse_llama import LLAMA_1B, LLAMA_8B, Shape, write_sparse_llama

import llmc
from llmc.codegen.target import Target
from llmc.codegen.triton.predict import Prediction, predict_decode


def _predict(folder: Path, shape: Shape, quantize: str | None) -> dict[bool, Prediction]:
    """Without and with dependent launch."""
    found: list[dict[bool, dict[str, float]]] = []
    for layers in (1, 2):
        source = write_sparse_llama(folder / f"{layers}", shape, layers)
        build = llmc.compile(source, target="sm_90", quantize=quantize, prove=False)._build
        program, target = build.gpu.sources["sm_90"], Target.preset("sm_90")
        both = {kind: predict_decode(build.model, program, target, dependent=kind) for kind in (False, True)}
        found.append({kind: dataclasses.asdict(prediction) for kind, prediction in both.items()})
    one, two = found
    more = shape.layers - 1
    return {
        kind: Prediction(**{name: value + more * (two[kind][name] - value) for name, value in one[kind].items()})  # type: ignore[arg-type]
        for kind in (False, True)
    }


@pytest.mark.parametrize(
    ("shape", "quantize", "least", "least_dependent"),
    [(LLAMA_1B, None, 1230, 1450), (LLAMA_8B, None, 250, 265), (LLAMA_8B, "int4", 560, 600)],
    ids=["1B bf16", "8B bf16", "8B int4"],
)
def test_a_decode_step_is_as_fast_as_it_should_be(
    tmp_path: Path, shape: Shape, quantize: str | None, least: int, least_dependent: int
) -> None:
    predicted = _predict(tmp_path, shape, quantize)
    for dependent, tokens_per_second in ((False, least), (True, least_dependent)):
        print(f"{predicted[dependent].tokens_per_second:.0f} tokens/s: {predicted[dependent]}")
        assert predicted[dependent].launches == 5 * shape.layers + 2  # and the embedding, and the logits
        assert predicted[dependent].choices == 1
        assert predicted[dependent].tokens_per_second >= tokens_per_second
