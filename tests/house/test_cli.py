"""The command line without an artifact: help, usage, errors and their exit codes."""

import resource
import signal
import subprocess
import sys

import pytest
from house.conftest import Llmc, document

from llmc import errors
from llmc.cli import exit_codes, main

HEAVY = {"torch", "transformers", "numpy", "sympy", "safetensors", "tokenizers", "jinja2"}


def test_help_shows_the_commands_and_the_exit_codes(llmc: Llmc) -> None:
    done = llmc("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        "build",
        "run",
        "inspect",
        "verify",
        "bisect",
        "explain",
        "bench",
        "tune",
        "doctor",
        "zoo",
        "Exit codes",
    ):
        assert word in done.stdout


@pytest.mark.parametrize(
    "command", ["build", "run", "inspect", "verify", "bisect", "explain", "bench", "tune", "zoo", "doctor"]
)
def test_each_command_has_help_with_json_and_traceback(llmc: Llmc, command: str) -> None:
    done = llmc(command, "--help", COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout
    assert "--traceback" in done.stdout
    assert "Example" in done.stdout or command == "doctor"


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from llmc.cli import main
main(["--help"])
print(sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_help_costs_less_than_three_tenths_of_a_second(llmc: Llmc) -> None:
    """Processor time, the best of three: the wall clock of a busy machine says nothing."""

    def cost() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        llmc("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cost() for _ in range(3)) < 0.3


def test_the_version_is_printed(llmc: Llmc) -> None:
    done = llmc("--version")
    assert (done.returncode, done.stdout) == (0, "llmc 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bild"], "no such command 'bild'; did you mean 'build'; see `llmc --help`"),
        (
            ["build", "--dtpe"],
            "no such option: --dtpe; possible options: --dtype, --dump, --kv-dtype; see `llmc build --help`",
        ),
        (["build"], "missing argument 'MODEL'; see `llmc build --help`"),
        (["build", "m", "-o", "a", "--dtype", "int3"], "dtype: 'int3' is not a dtype of a compiled model"),
        (["build", "m", "-o", "a", "--max-context", "0"], "max context: 0 is less than 1 token"),
        (["build", "m", "-o", "a", "--stop-after", "-1"], "stop after: -1 rewrites cannot be performed"),
        (
            ["build", "some/where/else", "-o", "a"],
            "model: some/where/else does not exist; name a Hugging Face directory",
        ),
        (["build", "org/name", "-o", "a"], "llmc downloads nothing; `hf download org/name --local-dir name` does"),
    ],
    ids=["command", "option", "argument", "dtype", "context", "rewrites", "path", "hub"],
)
def test_usage_errors_say_the_way_out_and_end_in_2(llmc: Llmc, arguments: list[str], message: str) -> None:
    done = llmc(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_misspelt_path_is_answered_with_the_nearest(llmc: Llmc, tmp_path) -> None:
    (tmp_path / "smollm2").mkdir()
    done = llmc("build", tmp_path / "smolm2", "-o", tmp_path / "a")
    assert done.returncode == 2
    assert f"did you mean {tmp_path / 'smollm2'}" in done.stderr


def test_a_build_does_not_start_where_it_could_not_write(llmc: Llmc, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").write_text("")
    done = llmc("build", tmp_path / "model", "-o", tmp_path / "photos", "--force")
    assert (done.returncode, "is not an artifact; choose another name" in done.stderr) == (2, True)
    (tmp_path / "photos" / "manifest.json").write_text("{}")
    done = llmc("build", tmp_path / "model", "-o", tmp_path / "photos")
    assert (done.returncode, "replace it with --force" in done.stderr) == (2, True)


def test_errors_are_json_too(llmc: Llmc) -> None:
    done = llmc("build", "no/such/model", "-o", "a", "--json")
    error = document(done)["error"]
    assert (error["kind"], error["exit_code"], done.returncode) == ("BadOption", 2, 2)
    assert error["message"] in done.stderr


def test_the_traceback_is_shown_when_asked_for(llmc: Llmc) -> None:
    assert "Traceback" not in llmc("build", "no/such/model", "-o", "a").stderr
    assert "Traceback" in llmc("build", "no/such/model", "-o", "a", "--traceback").stderr


def test_a_wrong_environment_variable_is_an_error(llmc: Llmc) -> None:
    done = llmc("build", "m", "-o", "a", LLMC_STOP_AFTER="many")
    assert (done.returncode, "LLMC_STOP_AFTER: 'many' is not a whole number" in done.stderr) == (2, True)


def test_colours_are_for_terminals(llmc: Llmc) -> None:
    assert "\x1b" not in llmc("bild").stderr
    assert "\x1b" in llmc("bild", FORCE_COLOR="1").stderr


EXPECTED_CODES = [
    (errors.UnsupportedModel("x"), 1),
    (errors.InvalidGraph("x"), 1),
    (errors.BuildFailed("x"), 1),
    (errors.BadInput("x"), 1),
    (errors.BadOption("x"), 2),
    (errors.BadRequest("x"), 2),
    (errors.ArtifactRejected("x"), 3),
    (errors.MissingTool("x"), 4),
    (errors.DeviceFailed("x"), 4),
    (ModuleNotFoundError("x", name="torch"), 4),
    (errors.NumericsGateFailed("x"), 5),
    (KeyboardInterrupt(), 130),
    (RuntimeError("x"), 1),
    (errors.OutOfMemory("x"), 4),
    (MemoryError(), 4),
    (PermissionError(13, "Permission denied", "/root"), 1),
]


@pytest.mark.parametrize(("error", "code"), EXPECTED_CODES, ids=lambda value: type(value).__name__)
def test_each_error_ends_in_its_code(error: BaseException, code: int) -> None:
    assert exit_codes.exit_code(error) == code
    assert exit_codes.explain(error) == exit_codes.explain(error).rstrip(".")


def test_every_error_class_and_every_code_is_tested() -> None:
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type)} - {errors.LlmcError}
    assert classes <= {type(error) for error, _ in EXPECTED_CODES}
    assert {0} | {code for _, code in EXPECTED_CODES} == set(exit_codes.MEANING)


def test_a_missing_package_ends_in_4(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "llmc.driver", None)
    monkeypatch.delattr("llmc.driver", raising=False)
    assert main(["build", str(tmp_path), "-o", str(tmp_path / "a")]) == 4
    assert "package llmc.driver is not installed; see `llmc doctor`" in capsys.readouterr().err


def test_doctor_describes_this_machine(llmc: Llmc) -> None:
    found = document(llmc("doctor", "--json"))
    versions = {package["name"]: package["version"] for package in found["packages"]}
    assert found["missing"] == []
    assert found["executable"] == sys.executable
    assert versions["torch"].startswith("2.")
    assert found["processor"]["cores"] >= 1
    assert found["memory_bytes"] > 1 << 30
    text = llmc("doctor")
    assert (text.returncode, text.stderr) == (0, "")
    assert f"torch {versions['torch']}" in text.stdout


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", f"'{sys.executable}' -m llmc doctor --json | head -c 1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_in_130() -> None:
    """The prompt is read from a stdin that never ends; the interrupt arrives while it waits."""
    code = "from llmc.cli import main; print('ready', flush=True); raise SystemExit(main(['run', 'a', '-']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=60)
    assert (process.returncode, text) == (130, "error: interrupted\n")
