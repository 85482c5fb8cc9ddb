"""The PTX of an artifact on a GPU that came later, run where there is neither Torch nor Triton."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import software_driver
from support.gpu_zoo import VOCAB, same_but_for_ties

import llmc
from llmc.runtime.sample import SamplingParams
from llmc.zoo import tiny
from llmc.zoo.checks import sequences

NEW = 12


def run_beside_the_gpu(code: str, folder: Path) -> Any:
    """What a process prints as JSON that finds the GPU in software as it would find a real one."""
    (folder / "libcuda.so.1").symlink_to(software_driver.library()._name)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "LLMC_CUBLAS": "none"}
    del environment["LLMC_PROGRAM"]  # what tests without native code set: it asks for another program by name
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_its_ptx_chooses_the_tokens_of_the_reference(tmp_path: Path) -> None:
    path = llmc.compile(tiny("llama"), target="sm_80", prove=False).save(tmp_path / "tiny.llmc")
    prompts = [prompt[:12] for prompt in sequences(VOCAB)]
    code = f"""
import json, sys
for name in ("torch", "triton", "transformers"):
    sys.modules[name] = None
import llmc
model = llmc.load({str(path)!r}, program="cuda", trust=True)
found = model.generate({prompts!r}, max_new_tokens={NEW}, ignore_eos=True)
print(json.dumps([one.token_ids for one in found]))
"""
    found = run_beside_the_gpu(code, tmp_path)
    reference = llmc.load(path, program="reference").session
    wanted = reference.generate(prompts, SamplingParams(max_new_tokens=NEW, ignore_eos=True))
    for prompt, have, want in zip(prompts, found, wanted, strict=True):
        assert len(have) == NEW
        same_but_for_ties(reference, tuple(prompt), tuple(have), want.token_ids)


def test_a_model_compiled_for_the_gpu_that_is_here_runs_on_it(tmp_path: Path) -> None:
    prompt = sequences(VOCAB)[0][:12]
    code = f"""
import json
import llmc
from llmc.zoo import tiny
model = llmc.compile(tiny("llama"), target="cuda", prove=False)
(found,) = model.generate([{prompt!r}], max_new_tokens={NEW}, ignore_eos=True)
print(json.dumps([sorted(model.report["gpu"]), type(model.session.program).__name__, found.token_ids]))
"""
    targets, program, have = run_beside_the_gpu(code, tmp_path)
    assert (targets, program) == (["sm_80"], "GpuProgram")
    reference = llmc.compile(tiny("llama"), program="reference", prove=False).session
    (want,) = reference.generate([prompt], SamplingParams(max_new_tokens=NEW, ignore_eos=True))
    same_but_for_ties(reference, tuple(prompt), tuple(have), want.token_ids)
