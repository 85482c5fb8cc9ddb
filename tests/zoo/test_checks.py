"""The judges judged: the checks accept a program that is right and find every kind of wrong one."""

import copy

import pytest
import torch
from torch import nn
from zoo.recomputed import RecomputedProgram, no_fault

from llmc.errors import NumericsGateFailed
from llmc.zoo import tiny
from llmc.zoo.checks import CHECKS, check, require, sequences
from llmc.zoo.oracle import is_causal, logits_of, true_logits_of
from llmc.zoo.steps import BLOCK_SIZE, Driver, cut

VOCAB = 128


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    return tiny("gpt2")


@pytest.fixture(scope="module")
def mistral() -> nn.Module:
    return tiny("mistral")


def wrong(program: RecomputedProgram, module: nn.Module) -> set[str]:
    return {outcome.check for outcome in check(program, module, VOCAB) if not outcome.passed}


def test_a_right_program_passes_every_check(gpt2: nn.Module) -> None:
    assert wrong(RecomputedProgram(gpt2), gpt2) == set()


def test_every_parameter_that_can_matter_is_noticed_when_it_changes(gpt2: nn.Module) -> None:
    unnoticed = []
    for name, _ in gpt2.named_parameters():
        other = copy.deepcopy(gpt2)
        other.get_parameter(name).data.mul_(1.01)
        if wrong(RecomputedProgram(other), gpt2) != set(CHECKS):
            unnoticed.append(name)
    assert unnoticed == []


def test_a_window_of_another_size_is_noticed_wherever_a_sequence_is_longer(mistral: nn.Module) -> None:
    wider = tiny("mistral", sliding_window=9)
    assert wrong(RecomputedProgram(wider), mistral) == set(CHECKS) - {"single token"}


def test_a_forgotten_token_is_noticed_only_where_there_is_a_past(mistral: nn.Module) -> None:
    def forget_first(tokens: list[int], new: int) -> list[int]:
        return tokens[1:] if len(tokens) > new else tokens

    assert wrong(RecomputedProgram(mistral, forget_first), mistral) == {"decode", "chunks", "ragged"}


def test_attention_to_later_tokens_is_noticed(gpt2: nn.Module) -> None:
    def swap_ends(tokens: list[int], new: int) -> list[int]:
        return [tokens[-1], *tokens[1:-1], tokens[0]] if len(tokens) > 1 else tokens

    assert wrong(RecomputedProgram(gpt2, swap_ends), gpt2) == set(CHECKS) - {"single token"}


def test_not_a_number_does_not_pass(gpt2: nn.Module) -> None:
    broken = copy.deepcopy(gpt2)
    broken.get_parameter("transformer.ln_f.bias").data[0] = float("nan")
    assert wrong(RecomputedProgram(broken), gpt2) == set(CHECKS)


def test_the_failure_names_the_model_and_the_checks(gpt2: nn.Module) -> None:
    outcomes = check(RecomputedProgram(tiny("gpt2", seed=1), no_fault), gpt2, VOCAB)
    with pytest.raises(NumericsGateFailed, match=r"gpt2: logits differ from eager torch in prefill by .* is allowed"):
        require(outcomes, "gpt2")
    require(check(RecomputedProgram(gpt2), gpt2, VOCAB), "gpt2")


def test_float64_is_closer_to_the_truth_than_float32_and_changes_nothing(gpt2: nn.Module) -> None:
    tokens = sequences(VOCAB)[0]
    before = logits_of(gpt2, tokens)
    true = true_logits_of(gpt2, [tokens])[0]
    assert true.dtype == torch.float64
    assert 0 < (before.double() - true).abs().max().item() < 1e-4
    assert torch.equal(logits_of(gpt2, tokens), before)
    assert torch.get_default_dtype() == torch.float32


def test_a_norm_that_asks_for_float32_is_computed_in_float64() -> None:
    class Norm(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = tokens[..., None].to(torch.float32) / 3
            return x.float() * torch.ones(1, dtype=torch.float32)

    assert true_logits_of(Norm(), [[1]])[0].item() == 1 / 3


def test_causal_models_are_told_from_others(gpt2: nn.Module) -> None:
    tokens = sequences(VOCAB)[0]
    assert is_causal(gpt2, tokens)
    assert not is_causal(tiny("bert", is_decoder=False), tokens)


def test_blocks_of_one_sequence_are_scattered(gpt2: nn.Module) -> None:
    driver = Driver(RecomputedProgram(gpt2))
    batch = driver._batch({"a": list(range(2 * BLOCK_SIZE)), "b": [1]})
    assert batch.blocks.tolist() == [[0, 11], [22, 0]]
    assert batch.slots.tolist() == [0, 1, 2, 3, 44, 45, 46, 47, 88]
    assert batch.lengths.tolist() == [8, 1]


def test_tokens_are_cut_into_pieces_of_the_sizes_asked_for() -> None:
    assert cut([1, 2, 3, 4, 5], [1, 3]) == [[1], [2, 3, 4], [5]]
    assert cut([1, 2], [2]) == [[1, 2]]
