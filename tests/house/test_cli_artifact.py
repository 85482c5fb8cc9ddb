"""The command line on a tiny artifact: what each command prints, streams and refuses."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from house.conftest import Llmc, document

from llmc.runtime.manifest import MANIFEST


@pytest.fixture
def copy(tiny_artifact: Path, tmp_path: Path) -> Path:
    """The artifact once more, to be damaged."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "copy.llmc"))


def test_a_build_says_its_phases_on_stderr_and_its_result_on_stdout(tiny_build) -> None:
    folder, done = tiny_build
    phases = [line.split()[0] for line in done.stderr.splitlines()]
    assert phases == ["read", "tidy", "recognize", "incremental", "specialize", "settle", "save"]
    assert "\x1b" not in done.stderr, "no colours and no spinner outside of a terminal"
    assert done.stdout.startswith(f"{folder / 'tiny.llmc'}: ")
    assert any("make_incremental" in path.name for path in (folder / "graphs").glob("*.py"))


def test_a_build_replaces_an_artifact_only_by_force_and_reports_in_json(
    llmc: Llmc, tiny_model: Path, copy: Path
) -> None:
    assert llmc("build", tiny_model, "-o", copy).returncode == 2
    done = llmc("build", tiny_model, "-o", copy, "--force", "--json", "--quiet", "--max-context", 64)
    fields = document(done)
    assert done.stderr == ""
    assert fields["bytes"] == sum(path.stat().st_size for path in copy.rglob("*") if path.is_file())
    assert all(phase["seconds"] >= 0 for phase in fields["phases"])
    assert fields["report"]["rewrites"]
    assert json.loads((copy / MANIFEST).read_text())["ranges"]["context"] == [1, 64]


def test_a_run_streams_the_text_to_stdout_and_nothing_else(llmc_here: Llmc, tiny_artifact: Path) -> None:
    done = llmc_here("run", tiny_artifact, "once", "--max-new-tokens", 5)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("loaded in ")
    again = document(llmc_here("run", tiny_artifact, "once", "--max-new-tokens", 5, "--json"))
    assert done.stdout == f"{again['text']}\n"
    assert llmc_here("run", tiny_artifact, "-", "--max-new-tokens", 5, "--quiet", input="once").stdout == done.stdout


def test_a_seed_makes_sampling_repeatable(llmc_here: Llmc, tiny_artifact: Path) -> None:
    def text(seed: int) -> object:
        options = ("--max-new-tokens", 12, "--temperature", 1.0, "--seed", seed, "--json")
        return document(llmc_here("run", tiny_artifact, "once", *options))["text"]

    assert text(1) == text(1) != text(2)


def test_chat_uses_the_template(llmc_here: Llmc, tiny_artifact: Path) -> None:
    plain = document(llmc_here("run", tiny_artifact, "hello", "--max-new-tokens", 4, "--json"))
    chat = document(llmc_here("run", tiny_artifact, "hello", "--chat", "--max-new-tokens", 4, "--json"))
    spelled = document(llmc_here("run", tiny_artifact, "[user] hello\n[assistant] ", "--max-new-tokens", 4, "--json"))
    assert chat["text"] == spelled["text"]
    assert plain["prompt"] == chat["prompt"] == "hello"


def test_generation_stops_before_a_stop_text(llmc_here: Llmc, tiny_artifact: Path) -> None:
    whole = document(llmc_here("run", tiny_artifact, "once", "--max-new-tokens", 8, "--json"))["text"]
    assert isinstance(whole, str) and len(whole) > 3
    stop = whole[3]
    cut = document(llmc_here("run", tiny_artifact, "once", "--max-new-tokens", 8, "--stop", stop, "--json"))["text"]
    assert cut == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", "2"], "top_p"),
        (["--seed", "-1"], "seed"),
        (["--stop", ""], "stop"),
        (["--max-new-tokens", "0"], "max-new-tokens"),
        (["--max-new-tokens", "4000"], "128"),
    ],
)
def test_a_request_outside_of_what_is_served_ends_in_2(
    llmc_here: Llmc, tiny_artifact: Path, options: list[str], message: str
) -> None:
    done = llmc_here("run", tiny_artifact, "x" * 100, *options)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert done.stdout == ""


def test_inspect_shows_the_manifest(llmc_here: Llmc, tiny_artifact: Path) -> None:
    done = llmc_here("inspect", tiny_artifact)
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("source    ", "model     vocab_size 258", "kv        2 layers: 2 heads, key 8, value 8, float32"):
        assert line in done.stdout
    fields = document(llmc_here("inspect", tiny_artifact, "--json"))
    assert fields["manifest"] == json.loads((tiny_artifact / MANIFEST).read_text())


def test_inspect_and_explain_import_no_torch(tiny_artifact: Path) -> None:
    code = f"""
import sys
from llmc.cli import main
assert main(["inspect", {str(tiny_artifact)!r}]) == main(["explain", {str(tiny_artifact)!r}]) == 0
print(sorted(set(sys.modules) & {{"torch", "transformers", "sympy"}}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_explain_says_what_was_fused_and_groups_equal_layers(llmc_here: Llmc, tiny_artifact: Path) -> None:
    done = llmc_here("explain", tiny_artifact)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fuse_qkv: 2 x at model.layers.*.self_attn" in done.stdout
    fields = document(llmc_here("explain", tiny_artifact, "fuse_qkv", "--json"))
    assert [item["count"] for item in fields["done"]] == [2]
    assert fields["ops"] == {}


def test_explain_knows_ops_and_modules(llmc_here: Llmc, tiny_artifact: Path) -> None:
    assert "cached_attention" in llmc_here("explain", tiny_artifact, "cached_attention").stdout
    assert "recognize_rope" in llmc_here("explain", tiny_artifact, "self_attn").stdout
    done = llmc_here("explain", tiny_artifact, "fuse_qvk")
    assert (done.returncode, "did you mean fuse_qkv" in done.stderr) == (2, True)


def test_verify_finds_an_artifact_intact_and_right(llmc_here: Llmc, tiny_artifact: Path, tiny_model: Path) -> None:
    done = llmc_here("verify", tiny_artifact, "--against", tiny_model)
    assert (done.returncode, done.stderr) == (0, "")
    assert "files intact" in done.stdout
    fields = document(llmc_here("verify", tiny_artifact, "--against", tiny_model, "--json"))
    assert fields["comparison"]["passed"] is True
    assert fields["comparison"]["tokens"] > 100


def test_a_damaged_artifact_ends_in_3(llmc_here: Llmc, copy: Path) -> None:
    weights = copy / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for command in (["verify", copy], ["run", copy, "once"]):
        done = llmc_here(*command)
        assert (done.returncode, "damaged or altered" in done.stderr) == (3, True), done.stderr
        assert done.stdout == ""
    assert llmc_here("inspect", copy).returncode == 0, "inspect does not read the weights"
    (copy / MANIFEST).write_text("{}")
    assert llmc_here("inspect", copy).returncode == llmc_here("explain", copy).returncode == 3
    assert llmc_here("run", copy.parent / "nothing", "once").returncode == 3


def test_an_artifact_of_another_model_ends_in_5(
    llmc_here: Llmc, tiny_artifact: Path, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    import transformers

    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(tiny_model)).save_pretrained(other)
    done = llmc_here("verify", tiny_artifact, "--against", other)
    assert (done.returncode, "logits differ from the source by" in done.stderr) == (5, True), done.stderr
    done = llmc_here("verify", tiny_artifact, "--against", other, "--json")
    assert (done.returncode, document(done)["comparison"]["passed"]) == (5, False)


def test_a_model_that_cannot_be_read_ends_in_1(llmc_here: Llmc, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    done = llmc_here("build", tmp_path / "model", "-o", tmp_path / "a.llmc")
    assert (done.returncode, "config.json" in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "a.llmc").exists()
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00")
    done = llmc_here("build", tmp_path / "model.gguf", "-o", tmp_path / "a.llmc")
    assert (done.returncode, "model.gguf" in done.stderr) == (1, True), done.stderr


def test_text_appears_while_it_is_generated(tiny_artifact: Path) -> None:
    command = [sys.executable, "-m", "llmc", "run", str(tiny_artifact), "once", "--max-new-tokens", "100", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        arrivals = []
        while process.stdout.read1(1 << 16):
            arrivals.append(time.monotonic())
    assert process.returncode == 0
    assert len(arrivals) > 5, "the text came in one piece"
