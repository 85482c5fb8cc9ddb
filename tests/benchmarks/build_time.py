"""Where the time of a build goes: python tests/benchmarks/build_time.py [MODEL ...].

For `import llmc`, a tiny llama and SmolLM2 (or the models named), each in a process of its own: processor seconds of
the phases of `llmc build`, and processor and wall-clock seconds of the whole command.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_BUILD = """
import json, sys, time
from llmc import driver
began = time.process_time()
phases = {"import": began}
def progress(name, seconds, facts):
    global began
    if seconds is None:
        began = time.process_time()
    else:
        phases[name] = phases.get(name, 0.0) + time.process_time() - began
compiled = driver.compile(sys.argv[1], progress=progress)
began = time.process_time()
compiled.save(sys.argv[2])
phases["save"] = time.process_time() - began
passes = sorted(compiled.report["passes"], key=lambda done: -done["seconds"])[:5]
slowest = {done["name"]: done["seconds"] for done in passes}
print(json.dumps({"phases": phases, "slowest": slowest}))
"""


def timed(command: list[str]) -> tuple[str, float, float]:
    """What the command printed, its processor seconds (of all threads) and its wall-clock seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def write_tiny(directory: Path) -> Path:
    """A llama of two layers with random weights."""
    from llmc.zoo import tiny

    module = tiny("llama")
    module.save_pretrained(directory)  # type: ignore[operator]
    return directory


def main(models: list[str]) -> None:
    """Measure and print."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    _, processor, wall = timed([sys.executable, "-c", "import llmc"])
    print(f"import llmc: {processor:.2f} s of processor, {wall:.2f} s of wall clock")
    with tempfile.TemporaryDirectory() as folder:
        named = models or [str(write_tiny(Path(folder) / "tiny-llama")), _smollm2()]
        for place, model in enumerate(named):
            text, processor, wall = timed([sys.executable, "-c", _BUILD, model, f"{folder}/{place}.llmc"])
            found = json.loads(text)
            print(f"{Path(model).name}: {processor:.1f} s of processor, {wall:.1f} s of wall clock")
            print("  " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in found["phases"].items()))
            print("  slowest passes (wall): " + ", ".join(f"{n} {s:.1f}" for n, s in found["slowest"].items()))


def _smollm2() -> str:
    from support.models import model_file

    return str(model_file("smollm2"))


if __name__ == "__main__":
    main(sys.argv[1:])
