"""Generated source: readable, the same for the same model, one function for regions that do the same."""

import re

import pytest

import llmc
from llmc.codegen.cpp.emit_linear import unit_tiles
from llmc.zoo import tiny


def text_of(family: str, **options: object) -> str:
    build = llmc.compile(tiny(family), program="cpu", strict=True, prove=False, **options)._build
    assert build is not None and build.native is not None
    return build.native.source.text


def test_equal_models_give_equal_source() -> None:
    assert text_of("llama") == text_of("llama")


def test_functions_name_the_module_they_were_first_made_for() -> None:
    text = text_of("llama")
    assert "// model.layers.0.self_attn.{q_proj,k_proj,v_proj}" in text
    assert re.search(r"// lm_head at modeling_llama\.py:\d+\nvoid linear_\d+\(", text)


def test_the_repeated_layer_is_a_loop_over_a_table_of_weights() -> None:
    text = text_of("llama")
    assert "for (int i = 0; i < 2; ++i) {" in text
    assert re.search(r"constexpr int kWeights0\[\]\[\d+\] = \{\{", text)


def test_masks_become_predicates_with_bounds() -> None:
    text = text_of("mistral")
    assert "bool visible(int64_t q, int64_t k, int h) const { return" in text
    assert "int64_t last(int64_t q) const { return q; }" in text


def test_windows_bound_the_first_key() -> None:
    begin = r"std::max<int64_t>\(\(q - int64_t\(\d+\)\), int64_t\(0\)\)"
    assert re.search(rf"first\(int64_t q\) const \{{ return {begin}; \}}", text_of("gemma2"))


def test_quantized_linears_are_told_apart_by_format() -> None:
    text = text_of("llama", quantize="int4")
    assert "linear<Int4, " in text and "linear<Int8, " in text  # the head keeps eight bits
    assert "using Element = BF16;" in text


@pytest.mark.parametrize("tiles", [1, 2, 3, 5, 7, 12, 36, 60, 61])
def test_units_are_of_one_to_four_tiles_and_waste_little(tiles: int) -> None:
    size = unit_tiles(tiles)
    units = -(-tiles // size)
    assert 1 <= size <= 4
    assert tiles < 8 or -(-units // 2) * 2 * size <= 1.25 * tiles
