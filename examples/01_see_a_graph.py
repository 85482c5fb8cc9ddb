"""What llmc makes of a model: its graph as a program, before and after the passes, and what each pass did.

Run it with `python examples/01_see_a_graph.py`; it takes about ten seconds.
"""

import torch
import transformers

from llmc.frontend.hf import from_module
from llmc.ir.pass_manager import run_passes
from llmc.ir.show import show
from llmc.pipeline import pipeline

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model = from_module(transformers.LlamaForCausalLM(config))
before = sum(1 for _ in model.calls())
report = run_passes(model, pipeline())

print(f"A llama of one layer: {before} ops as exported, {sum(1 for _ in model.calls())} after the passes.\n")
print(show(model))
print("What the passes did:")
for step in report.passes:
    print(f"  {step.phase:<12} {step.name:<20} {step.changes:>3} changes {step.seconds * 1e3:>8.1f} ms")
print("\nThe rewrites, each tested when it was made:")
for done in report.applied:
    print(f"  #{done.number} {done.rule} at {done.origin}: error {done.error:.1e}")
for miss in report.refused:
    print(f"  {miss.rule} did not fire at {miss.node}: {miss.reason}")
