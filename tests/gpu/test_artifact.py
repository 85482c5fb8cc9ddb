"""Artifacts on the GPU: built for it, loaded without Triton, the text of the reference program."""

import subprocess
import sys
from pathlib import Path

from support.gpu import target_of
from support.models import model_file

import llmc
from llmc.runtime.cuda.driver import Gpu

QUESTION = "What is the capital of France?"


def test_smollm2_says_what_the_reference_says(gpu: Gpu, tmp_path: Path) -> None:
    model = llmc.compile(model_file("smollm2"), target=target_of(gpu), prove=False)
    model.save(tmp_path / "smollm2.llmc")
    texts = {
        program: llmc.load(tmp_path / "smollm2.llmc", program=program, trust=True)
        .generate(QUESTION, chat=True, max_new_tokens=32)[0]
        .text
        for program in ("cuda", "reference")
    }
    print(texts)
    assert "Paris" in texts["cuda"]
    assert texts["cuda"] == texts["reference"]


def test_a_loaded_artifact_needs_neither_torch_nor_triton(gpu: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "smollm2.llmc"
    llmc.compile(model_file("smollm2"), target=target_of(gpu), prove=False).save(path)
    code = f"""
import sys
for name in ("torch", "triton", "transformers"):
    sys.modules[name] = None
import llmc
print(llmc.load({str(path)!r}, trust=True).generate({QUESTION!r}, chat=True, max_new_tokens=16)[0].text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "Paris" in done.stdout) == (0, True), done.stderr
