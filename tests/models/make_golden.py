"""Make the goldens of the real models with transformers alone: python tests/models/make_golden.py smollm2 gemma3.

For each prompt: its token ids, the 64 tokens that transformers takes greedily in float32 (end tokens do not end it),
their text, the log-probability of each, and how far the second likeliest was behind. Takes minutes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.models import model_file

FOLDER = Path(__file__).with_name("golden")
NEW_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "1, 2, 4, 8, 16,",
    "Dear Sir or Madam,\n\nI am writing to",
    "Les enfants jouent dans",
    "The three laws of thermodynamics are:\n1.",
    "Q: Why is the sky blue?\nA:",
    '{"name": "Ada", "born": 1815, "field":',
)


def make(model: str) -> dict[str, object]:
    """The golden of `smollm2` or `gemma3`."""
    file = model_file(model)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    module: Any = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    continuations = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        tokens, logprobs, gaps = continue_greedily(module, ids)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        continuations.append(
            {"prompt": prompt, "prompt_ids": ids, "token_ids": tokens, "text": text, "logprobs": logprobs, "gaps": gaps}
        )
        print(f"{model}: {prompt!r} -> {text[:60]!r}", flush=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"model": file.name, "made_with": versions, "continuations": continuations}


@torch.inference_mode()
def continue_greedily(module: Any, prompt: list[int]) -> tuple[list[int], list[float], list[float]]:
    """Tokens, their log-probabilities, and the distance to the second likeliest at each place."""
    tokens: list[int] = []
    logprobs: list[float] = []
    gaps: list[float] = []
    step, past = torch.tensor([prompt]), None
    while len(tokens) < NEW_TOKENS:
        out = module(step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        best = out.logits[0, -1].double().log_softmax(-1).topk(2)
        tokens.append(int(best.indices[0]))
        logprobs.append(round(best.values[0].item(), 6))
        gaps.append(round((best.values[0] - best.values[1]).item(), 6))
        step = best.indices[:1][None]
    return tokens, logprobs, gaps


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(make(name), indent=1, ensure_ascii=False) + "\n")
