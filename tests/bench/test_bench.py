"""`llmc bench` on a tiny model: what it measures and says. How fast anything is, is not tested."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmc
from llmc.bench.engines.compiled import Engine
from llmc.cli import main, output

QUICK = ("-p", "8", "-n", "4", "-d", "24", "-b", "2", "-r", "2", "-t", "1", "--quiet")


def _bench(*arguments: object) -> tuple[int, str, str]:
    texts = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(texts[0]), contextlib.redirect_stderr(texts[1]):
        code = main(["bench", *map(str, arguments)])
    return code, texts[0].getvalue(), texts[1].getvalue()


@pytest.fixture(scope="module")
def measured(tiny_artifact: Path) -> dict[str, Any]:
    code, printed, errors = _bench(tiny_artifact, *QUICK, "--json")
    assert (code, errors) == (0, "")
    fields: dict[str, Any] = json.loads(printed)
    return fields


def test_the_document_says_what_was_measured_on_what(measured: dict[str, Any]) -> None:
    assert (measured["schema_version"], measured["schema"]) == (output.SCHEMA_VERSION, "llmc.bench/1")
    assert (measured["model"], measured["threads"]) == ("tiny.llmc", 1)
    assert [work["name"] for work in measured["workloads"]] == ["pp8", "tg4", "tg64@24", "b2"]
    machine = measured["machine"]
    assert machine["processor"]
    assert machine["peaks_operations_per_second"]["float32"] > 0
    assert len(machine["bandwidth_bytes_per_second"]) == 8, "one for each workload and round"
    assert all(pages > 0 for reading in machine["bandwidth_bytes_per_second"] for pages in reading.values())


def test_every_result_carries_its_fraction_of_the_limit(measured: dict[str, Any]) -> None:
    (engine,) = measured["engines"]
    assert (engine["name"], engine["format"], engine["program"]) == ("llmc", "float32", "ReferenceProgram")
    assert engine["load_seconds"] > 0
    assert engine["peak_rss_bytes"] > 1 << 20
    assert [test["limit"] for test in engine["tests"]] == ["arithmetic", *["bandwidth"] * 3]
    for test in engine["tests"]:
        rates = test["tokens_per_second"]
        assert len(rates["samples"]) == 2
        assert 0 < rates["min"] <= rates["median"] <= rates["max"]
        assert test["fraction_of_limit"] > 0
        assert test["cache_bytes_per_token"] > 0


def test_depths_keep_their_prompt_between_rounds(tiny_artifact: Path) -> None:
    """The engine gives the same logits whether the prompt is in the cache or not."""
    engine = Engine()
    engine.load(str(tiny_artifact), 1)
    prompts = [list(range(3, 33))]
    fresh = engine.run(prompts, 5, fresh=True)
    kept = engine.run(prompts, 5, fresh=False)
    assert [len(steps) for _, steps in (fresh, kept)] == [4, 4]
    assert [table.length for table in engine._tables] == [30 + 4]
    tokens = list(range(3, 40))
    expected = llmc.load(tiny_artifact).session.logits(tokens)
    np.testing.assert_array_equal(engine.logits(tokens), expected)


@pytest.mark.parametrize("style", [(), ("--md",)], ids=["plain", "markdown"])
def test_tables_for_people(tiny_artifact: Path, style: tuple[str, ...]) -> None:
    code, printed, errors = _bench(tiny_artifact, "-p", 8, "-n", 0, "-d", 0, "-b", 0, "-r", 1, *style)
    assert code == 0
    assert "round 1 of 1" in errors
    assert "streaming reads" in printed
    assert "llmc float32" in printed
    assert ("| engine |" in printed) == bool(style)


def test_a_missing_peer_is_answered_with_what_installs_it(
    tiny_artifact: Path, tiny_source: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    peers = ("--against", "llama.cpp", "--source", tiny_source, "--peer-python", bare, "--peer-models", tmp_path / "p")
    code, printed, errors = _bench(tiny_artifact, *QUICK, *peers)
    assert (code, printed) == (4, "")
    assert "no module named 'llama_cpp'" in errors
    assert "`pip install llama-cpp-python`" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--against", "llama.c"], "'llama.c' is not an engine that bench knows; use llama.cpp, openvino, ort"),
        (["--against", "ort:int3"], "ort has no format 'int3'; use int4, int8"),
        (["--against", "ort"], "name it with --source"),
        (["--prefill", "many"], "'many' is not a list of whole numbers"),
        (["--prefill", "4096", "-n", "0", "-d", "0", "-b", "0"], "nothing of pp4096 fits a context of 128"),
    ],
    ids=["engine", "format", "source", "sizes", "context"],
)
def test_wrong_options_end_in_2(tiny_artifact: Path, options: list[str], message: str) -> None:
    code, printed, errors = _bench(tiny_artifact, *options)
    assert (code, printed) == (2, "")
    assert message in errors
