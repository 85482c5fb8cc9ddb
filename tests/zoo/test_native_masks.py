"""Masks of models as native code: logits of eager, where blocks of keys are skipped by ranges or not at all."""

import pytest
from support.masked_models import MASKS, masked_model, prompt

import llmc
from llmc.zoo.oracle import logits_of
from llmc.zoo.steps import run_in_pieces


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_shows_what_eager_sees(name: str) -> None:
    module, tokens = masked_model(MASKS[name][0]), prompt().tolist()
    program = llmc.compile(module, program="cpu", strict=True, prove=False).session.program
    found, expected = run_in_pieces(program, tokens, [178, 1]), logits_of(module, tokens)
    assert ((found - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item() < 2e-5
