"""Names and sizes of the workloads, in llama-bench's terms."""

import pytest

from llmc.bench.workloads import workloads
from llmc.errors import BadOption


def test_the_defaults_are_named_as_llama_bench_names_them() -> None:
    works = workloads([512], [128], [2048], [8], 4096)
    assert [work.name for work in works] == ["pp512", "tg128", "tg64@2048", "b8"]
    assert [work.tokens for work in works] == [512, 128, 64, 512]
    assert [work.kind for work in works] == ["prefill", "decode", "decode", "decode"]


def test_what_does_not_fit_the_context_is_left_out() -> None:
    assert [work.name for work in workloads([512, 64], [], [2048], [], 128)] == ["pp64"]
    with pytest.raises(BadOption, match="nothing of pp512 fits a context of 128"):
        workloads([512], [], [], [], 128)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(BadOption, match="tg: 0, expected 1 or more"):
        workloads([], [0], [], [], 128)


def test_prompts_differ_between_repetitions_and_repeat_between_runs() -> None:
    (work,) = workloads([], [], [], [3], 128)
    first, again, other = work.prompts(50, 0), work.prompts(50, 0), work.prompts(50, 1)
    assert first == again != other
    assert [len(prompt) for prompt in first] == [16] * 3
    assert {token for prompt in first for token in prompt} <= set(range(50))
