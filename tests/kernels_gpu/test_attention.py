"""Attention over the paged cache in Triton against its definition."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support.attention_regions import Case, Sequences

F32, F16 = torch.float32, torch.float16


def _agree(sequences: Sequences, *steps: Sequence[int]) -> None:
    for counts in steps:
        found, wanted = sequences.step(counts)
        greatest = max(1.0, float(np.abs(wanted).max()))
        assert np.abs(found - wanted).max() <= sequences.case.tolerance * greatest, counts


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129])
def test_decode_after_prefill_at_the_edges_of_blocks(length: int) -> None:
    sequences = Sequences(Case(), [length + 2])
    _agree(sequences, [length], [1], [1])
    assert sequences.launches == ["attention_prefill" if length > 1 else "attention_decode"] + ["attention_decode"] * 2
