"""Tokens chosen by compiled kernels, in whole parts of a row and in a broken one: those of the host."""

import pytest
from support import choice_steps, gpu_choices
from support.compiled_kernels import run_compiled


@pytest.mark.parametrize("level", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("vocabulary", "rounded"), [(4096, False), (5003, True)])
def test_tokens_are_those_of_the_host(
    monkeypatch: pytest.MonkeyPatch, level: str, vocabulary: int, rounded: bool
) -> None:
    run_compiled(monkeypatch, level, choice_steps)
    gpu_choices.tokens_are_those_of_the_host(level, vocabulary, rounded=rounded)
