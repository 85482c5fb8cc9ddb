"""Every promised family compiles and gives eager's logits, however its tokens are fed; the others are refused."""

import pytest
import torch
from zoo.variants import DEPENDS_ON_LENGTH, NOT_CAUSAL, RECURRENT, REQUIRED, VARIANTS, longrope, rope

import llmc
from llmc.errors import BadOption, UnsupportedModel
from llmc.zoo import tiny
from llmc.zoo.checks import check, require

VOCAB = 128


@pytest.mark.parametrize("family", REQUIRED)
def test_a_required_family_compiles_and_matches_eager(family: str) -> None:
    module = tiny(family)
    compiled = llmc.compile(module)
    require(check(compiled.session.program, module, VOCAB), family)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_a_family_compiles_and_matches_eager(variant: str) -> None:
    family, changes = VARIANTS[variant]
    module = tiny(family, **changes)
    compiled = llmc.compile(module, prove=False)  # the same rewrites are proved on the required families
    require(check(compiled.session.program, module, VOCAB), variant)


@pytest.mark.parametrize("variant", DEPENDS_ON_LENGTH)
def test_rope_that_depends_on_the_whole_length_is_that_of_the_context(variant: str) -> None:
    family, changes, shortest = DEPENDS_ON_LENGTH[variant]
    module = tiny(family, **changes)
    compiled = llmc.compile(module, prove=False)
    lengths = compiled.report["lengths"]
    assert isinstance(lengths, dict)
    assert lengths.get("shortest", 1) == shortest
    require(check(compiled.session.program, module, VOCAB, shortest), variant)


def test_the_short_factors_of_longrope_are_those_of_a_short_context() -> None:
    module = tiny("phi3", **longrope(8))
    tokens = torch.arange(4, 12)[None]
    short = llmc.compile(module, max_context=8, prove=False, program="reference")
    assert torch.allclose(short(tokens), module(tokens).logits, atol=1e-4)
    long = llmc.compile(module, max_context=9, prove=False, program="reference")
    assert not torch.allclose(long(tokens), module(tokens).logits, atol=1e-2)


def test_dynamic_rope_is_not_served_beyond_the_length_that_its_angles_are_for() -> None:
    module = tiny("llama", **rope("dynamic", factor=4.0), max_position_embeddings=8)
    with pytest.raises(BadOption, match="the model was made for 8"):
        llmc.compile(module, max_context=9, prove=False)


@pytest.mark.parametrize("family", RECURRENT)
def test_a_recurrent_family_is_refused_by_op_module_and_source_line(family: str) -> None:
    """The op is named, or, of a Python loop over tokens, that it fixes the length."""
    what = r"(aten\.\w+|computes with sizes|becomes a constant)"
    where = r"\.(layers|blocks)\.\d+\.\w+\S* at modeling_\w+\.py:\d+"
    with pytest.raises(UnsupportedModel, match=rf"{what}.*{where}"):
        llmc.compile(tiny(family), prove=False)


@pytest.mark.parametrize("family", NOT_CAUSAL)
def test_a_family_that_looks_ahead_is_refused(family: str) -> None:
    with pytest.raises(UnsupportedModel):
        llmc.compile(tiny(family), prove=False)
