"""Compile a model in memory, save it, load it again, and generate from both: the same tokens, and eager's.

The model is tiny and random, so its text means nothing; a directory or a .gguf file is compiled in the same way. Run it
with `python examples/02_build_and_generate.py`; it takes about ten seconds.
"""

import json
import tempfile
from pathlib import Path

import torch
import transformers

import llmc

torch.manual_seed(0)
config = transformers.Qwen3Config(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
module = transformers.Qwen3ForCausalLM(config).eval()
prompts = [[1, 2, 3], [42], list(range(1, 21))]

compiled = llmc.compile(module)
tokens = torch.tensor([prompts[2]])
with torch.no_grad():
    difference = (compiled(tokens) - module(tokens).logits).abs().max().item()
print(f"largest difference from eager logits: {difference:.1e}")

with tempfile.TemporaryDirectory() as folder:
    directory = compiled.save(Path(folder) / "tiny.llmc")
    manifest = json.loads((directory / "manifest.json").read_text())
    print(f"the artifact: {', '.join(sorted(manifest['files']))}; caches {manifest['kv']['layers']}")
    loaded = llmc.load(directory)

    # Prompts of different lengths share each step; no padding.
    for prompt, made in zip(prompts, loaded.generate(prompts, max_new_tokens=8, ignore_eos=True), strict=True):
        given = torch.tensor([prompt])
        eager = module.generate(given, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        same = eager[0, len(prompt) :].tolist() == list(made.token_ids)
        print(f"{len(prompt):>2} tokens given, next tokens {list(made.token_ids)}, as eager: {same}")
