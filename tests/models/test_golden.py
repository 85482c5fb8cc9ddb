"""SmolLM2 and gemma 3 say, token for token, what transformers says in float32 (see make_golden.py)."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.models import model_file

import llmc
from llmc.compiled_model import CompiledModel
from llmc.runtime.sample import logprobs_of

FOLDER = Path(__file__).with_name("golden")
CLOSE = 1e-3
"""Two tokens whose logits are closer than this may change places: float32 sums in another order."""
LOGPROB_TOLERANCE = 2e-3


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_ten_prompts_are_continued_as_by_transformers(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())["continuations"]
    model = llmc.compile(model_file(name))
    new_tokens = len(golden[0]["token_ids"])
    prompts = [item["prompt"] for item in golden]
    made = model.generate(prompts, max_new_tokens=new_tokens, ignore_eos=True, logprobs=0)
    for item, generation in zip(golden, made, strict=True):
        assert list(generation.prompt_token_ids) == item["prompt_ids"], item["prompt"]
        if list(generation.token_ids) != item["token_ids"]:
            assert_close_call(model, item, list(generation.token_ids))
            continue
        assert generation.text == item["text"]
        assert generation.logprobs is not None
        logprobs = [entry.logprob for entry in generation.logprobs]
        assert max(abs(x - y) for x, y in zip(logprobs, item["logprobs"], strict=True)) < LOGPROB_TOLERANCE


def assert_close_call(model: CompiledModel, item: dict[str, Any], tokens: list[int]) -> None:
    """The first other token was nearly as likely, and told the golden's tokens, the model finds them as likely."""
    pairs = zip(tokens, item["token_ids"], strict=True)
    first = next(place for place, (have, want) in enumerate(pairs) if have != want)
    gap = item["gaps"][first]
    assert gap < CLOSE, f"{item['prompt']!r}: token {first} is another, though the likeliest led by {gap}"
    prompt = item["prompt_ids"]
    rows = model.session.logits(prompt + item["token_ids"])[len(prompt) - 1 : -1]
    for place, (row, token) in enumerate(zip(rows, item["token_ids"], strict=True)):
        found = logprobs_of(row, token, 0).logprob
        assert abs(found - item["logprobs"][place]) < LOGPROB_TOLERANCE, f"{item['prompt']!r}: token {place}"
