"""What the tests of the benchmark share: an artifact of a tiny llama."""

from pathlib import Path

import pytest
from support.tiny_models import tiny

import llmc


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference program of a llama with two layers, 64 tokens in the vocabulary and a context of 128."""
    directory = tmp_path_factory.mktemp("bench") / "tiny.llmc"
    return llmc.compile(tiny("llama"), prove=False, program="reference").save(directory)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("bench") / "tiny-llama"
    tiny("llama").save_pretrained(directory)
    return directory
