"""Bytes and operations of a step, against sums over the model's own parameters."""

from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny

import llmc
from llmc.bench.costs import arithmetic_of, costs_of, visible_keys
from llmc.runtime.artifact import Artifact


def _sizes(model: torch.nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def test_operations_are_two_for_each_weight_of_a_linear(tiny_artifact: Path) -> None:
    costs = costs_of(Artifact.open(tiny_artifact))
    sizes = _sizes(tiny("llama"))
    layers = sum(size for name, size in sizes.items() if name.endswith("_proj.weight"))
    assert costs.token_operations == 2 * layers
    assert costs.row_operations == 2 * sizes["model.embed_tokens.weight"]
    assert costs.format == "float32"


def test_a_table_that_is_only_looked_up_is_not_read(tiny_artifact: Path, tmp_path: Path) -> None:
    tied = tiny("llama", tie_word_embeddings=True)
    artifact = llmc.compile(tied, prove=False, program="reference").save(tmp_path / "tied.llmc")
    table = _sizes(tied)["model.embed_tokens.weight"] * 4
    apart, shared = (costs_of(Artifact.open(path)) for path in (tiny_artifact, artifact))
    assert abs(apart.weight_bytes - shared.weight_bytes) < 500, "whether the head has a table of its own or not"
    linears = 4 * sum(size for name, size in _sizes(tied).items() if "proj" in name)
    assert linears + table <= shared.weight_bytes < linears + table + 2000, "and norms and frequencies"


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_packed_weights_are_counted_as_what_they_stand_for(family: str, tmp_path: Path) -> None:
    """int4 pads rows and columns, which changes bytes, not operations; of experts only the chosen ones count."""
    plain, packed = (
        costs_of(
            Artifact.open(
                llmc.compile(tiny(family), prove=False, program="reference", quantize=how).save(
                    tmp_path / f"{how}.llmc"
                )
            )
        )
        for how in ("float", "int4")
    )
    assert packed.format == "int4"
    assert packed.row_operations == plain.row_operations
    assert packed.weight_bytes < plain.weight_bytes / 2
    assert plain.token_operations <= packed.token_operations < plain.token_operations * 1.7


@pytest.mark.parametrize(
    ("mask", "position", "seen"),
    [("k <= q", 9, 10), ("(k <= q) & (q < k + 4)", 9, 4), ("(k <= q) & (q < k + 4)", 1, 2), ("t0[k]", 9, 10)],
    ids=["causal", "window", "short", "table"],
)
def test_the_cache_that_a_token_reads_is_what_its_mask_shows(mask: str, position: int, seen: int) -> None:
    assert visible_keys(mask, position) == seen


def test_bytes_of_cache_grow_with_the_position(tiny_artifact: Path) -> None:
    artifact = Artifact.open(tiny_artifact)
    per_token = sum(4 * layer.heads * (layer.key_size + layer.value_size) for layer in artifact.manifest.kv)
    costs = costs_of(artifact)
    assert [costs.cache_bytes(position) for position in (0, 9)] == [per_token, 10 * per_token]


def test_quantized_formats_are_held_against_integer_arithmetic() -> None:
    found = {name: arithmetic_of(name) for name in ("int4", "int4m", "q4_k_m", "bf16", "bfloat16", "float32", "f16")}
    assert found == {
        "int4": "int8",
        "int4m": "int8",
        "q4_k_m": "int8",
        "bf16": "bfloat16",
        "bfloat16": "bfloat16",
        "float32": "float32",
        "f16": "float32",
    }
