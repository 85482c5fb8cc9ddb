"""Llamas with random weights for benchmarks on a GPU, and their programs there."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from support.gpu import find_gpu, target_of
from support.sparse_llama import LLAMA_1B, LLAMA_8B, write_sparse_llama
from torch import nn

import llmc
from llmc.runtime.session import Session

SHAPES = {"1b": LLAMA_1B, "8b": LLAMA_8B}


def random_llama(name: str, layers: int | None = None) -> nn.Module:
    """The shape `1b` or `8b` of Llama 3 in bfloat16, on the host, with small random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with TemporaryDirectory() as folder:
        config = AutoConfig.from_pretrained(write_sparse_llama(Path(folder) / "model", SHAPES[name], layers))
    torch.manual_seed(0)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return fill(module.to_empty(device="cpu"))


def fill(module: nn.Module) -> nn.Module:
    """Random weights in place of what memory held, and the tables that modules compute for themselves."""
    module.tie_weights()
    for name, weight in module.named_parameters():
        weight.data.normal_(1.0 if "norm" in name else 0.0, 0.0 if "norm" in name else 0.02)
    rotary = module.model.rotary_emb
    fresh = type(rotary)(module.config)
    rotary.inv_freq, rotary.original_inv_freq = fresh.inv_freq, fresh.original_inv_freq
    return module.eval()


def gpu_session(module: nn.Module, quantize: str | None = None, max_context: int = 4096) -> Session:
    """Build the module for this machine's GPU, save it and load it as a user does."""
    _, gpu = find_gpu()
    options = {} if quantize is None else {"quantize": quantize}
    model = llmc.compile(module, target=target_of(gpu), max_context=max_context, prove=False, **options)
    with TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.llmc")
        return llmc.load(Path(folder) / "model.llmc", program="cuda", verify="fast", trust=True).session
