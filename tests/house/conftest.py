"""What the house's tests share: a tiny model on disk, its artifact, and a way to run the command line."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from llmc.cli import main

Llmc = Callable[..., subprocess.CompletedProcess[str]]
"""Runs `llmc ARGUMENTS...` in a process of its own."""


@pytest.fixture(scope="session")
def llmc() -> Llmc:
    """`llmc("build", model, "-o", directory)`: run the command line as a user would, without the venv on PATH."""

    def run(
        *arguments: object, input: str | None = None, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llmc", *map(str, arguments)],
            capture_output=True,
            text=True,
            input=input,
            cwd=cwd,
            env={**os.environ, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: a llama with two layers and random weights, and a tokenizer of single bytes."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
    wrapped.save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_build(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, llmc: Llmc
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with the artifact of `tiny_model` and the dumped graphs, and what `llmc build` printed."""
    folder = tmp_path_factory.mktemp("built")
    done = llmc("build", tiny_model, "-o", folder / "tiny.llmc", "--dump", folder / "graphs")
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="session")
def tiny_artifact(tiny_build: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The artifact that `llmc build` makes of `tiny_model`."""
    return tiny_build[0] / "tiny.llmc"


@pytest.fixture
def llmc_here(monkeypatch: pytest.MonkeyPatch) -> Llmc:
    """Like `llmc`, in this process: quicker where torch is needed."""

    def run(*arguments: object, input: str = "") -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        texts = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(texts[0]), contextlib.redirect_stderr(texts[1]), warnings.catch_warnings():
            code = main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, texts[0].getvalue(), texts[1].getvalue())

    return run


def document(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The one JSON document that a command printed with `--json`."""
    fields = json.loads(done.stdout)
    assert fields["schema_version"] == 1
    return fields
