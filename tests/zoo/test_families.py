"""Every promised family compiles and gives eager's logits, however its tokens are fed; the others are refused."""

import pytest
from zoo.variants import DEPENDS_ON_LENGTH, NOT_CAUSAL, RECURRENT, REQUIRED, VARIANTS

import llmc
from llmc.errors import UnsupportedModel
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
def test_rope_that_depends_on_the_whole_length_is_refused(variant: str) -> None:
    family, changes = DEPENDS_ON_LENGTH[variant]
    with pytest.raises(UnsupportedModel):
        llmc.compile(tiny(family, **changes), prove=False)


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
