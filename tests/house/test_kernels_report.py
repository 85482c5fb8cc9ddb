"""`llmc explain` of a native program: the table of kernels, the reasons, and its file in the artifact."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import native_artifact

from llmc.cli import kernels, main
from llmc.codegen.explanation import (
    KernelRecord,
    LoopRecord,
    ProgramExplanation,
    RegionRecord,
    StepSizes,
    VariantUse,
    Work,
)
from llmc.errors import ArtifactRejected
from llmc.runtime.checked_json import canonical
from llmc.runtime.crossover import Crossover


def region(name: str, kernel: str, origin: str, predicted: float) -> RegionRecord:
    work = {"decode": Work(2048.0, 1e6, predicted), "prefill": Work(4096.0, 5e8, 300 * predicted)}
    return RegionRecord(name, kernel, origin, (name, f"{name}_norm"), False, work)


GEMV = VariantUse("gemv", 1, 1, (("flat", "predicted no faster for 1 row"),))
FLAT = VariantUse("flat", 2, None, (("gemv", "predicted 1.90 times as long for 2 rows"),))
PROGRAM = ProgramExplanation(
    target="avx512, 2 cores, 45.0 GB/s",
    memory="11264 bytes a token",
    kernels=(
        KernelRecord(
            "linear_0", "linear", "960 x 576, int4", ("rms_norm", "linear", "rope"), 77, "960x576:int4", (GEMV, FLAT)
        ),
        KernelRecord("attention_0", "attention", "9 heads on 3 of 64, k <= q", ("attention",), 120, "", ()),
    ),
    regions=(
        region("linear_packed", "linear_0", "model.layers.0.self_attn.{q_proj,k_proj} at m.py:1", 8e-6),
        region("attention", "attention_0", "model.layers.0.self_attn at m.py:2", 4e-6),
        region("linear_packed_4", "linear_0", "model.layers.1.self_attn.{q_proj,k_proj} at m.py:1", 8e-6),
        region("attention_1", "attention_0", "model.layers.1.self_attn at m.py:2", 4e-6),
    ),
    loops=(LoopRecord(0, 2, 2),),
    steps={"decode": StepSizes(1, 1, 1, 512), "prefill": StepSizes(512, 1, 1, 256)},
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = canonical(PROGRAM.to_json())
    return native_artifact.write(tmp_path_factory.mktemp("explained") / "tiny.llmc", explanation=written)


def test_equal_layers_share_a_row() -> None:
    columns, rows = kernels.table(PROGRAM)
    assert columns == [
        "kernel", "regions", "where", "what", "decode", "predicted", "moved", "prefill", "predicted", "moved",
    ]  # fmt: skip
    assert rows == [
        ["linear_0", 2, "model.layers.*.self_attn.{q_proj,k_proj}", "960 x 576, int4: rms_norm + linear + rope",
         "gemv", "16.0 us", "4.0 KiB", "flat", "4.8 ms", "8.0 KiB"],
        ["attention_0", 2, "model.layers.*.self_attn", "9 heads on 3 of 64, k <= q: attention",
         "", "8.0 us", "4.0 KiB", "", "2.4 ms", "8.0 KiB"],
    ]  # fmt: skip


def test_a_tuning_table_moves_the_crossovers() -> None:
    no_panels = ("gemm", "there are no panels of these")
    linear = replace(PROGRAM.kernels[0], variants=(replace(GEMV, others=(*GEMV.others, no_panels)), FLAT))
    program = replace(PROGRAM, kernels=(linear, PROGRAM.kernels[1]))
    tuned = program.with_crossovers(
        {"960x576:int4": Crossover(5, 9, "measured here"), "1x1:f32": Crossover(2, 2, "measured here")}
    )
    assert tuned.kernels[0].variants == (
        VariantUse("gemv", 1, 4, (("flat", "used from 5 rows on (measured here)"), no_panels)),
        VariantUse("flat", 5, None, (("gemv", "used from 1 rows on (measured here)"), no_panels)),
    )
    assert tuned.kernels[1] == PROGRAM.kernels[1]
    slower = replace(FLAT, others=(*FLAT.others, ("gemm", "predicted 1.20 times as long for 5 rows")))
    both = replace(linear, variants=(GEMV, slower)).with_crossovers(Crossover(5, 9, "measured here"))
    assert [(use.variant, use.first, use.last) for use in both.variants] == [
        ("gemv", 1, 4), ("flat", 5, 8), ("gemm", 9, None)
    ]  # fmt: skip
    every = linear.with_crossovers(Crossover(1, 1, "measured here"))
    assert [use.variant for use in every.variants] == ["flat"]
    never = PROGRAM.kernels[0].with_crossovers(Crossover(1 << 30, 1 << 30, "measured here"))
    assert [(use.variant, use.last, dict(use.others)["flat"]) for use in never.variants] == [
        ("gemv", None, "not used (measured here)")
    ]


def test_measurements_stand_beside_predictions() -> None:
    measured = PROGRAM.with_measured("decode", [1e-5, 2e-5, 3e-5, 4e-5])
    columns, rows = kernels.table(measured)
    assert columns[4:8] == ["decode", "predicted", "measured", "moved"]
    assert [row[6] for row in rows] == ["40.0 us", "60.0 us"]
    assert "  decode (1 tokens, 512 keys each): 24.0 us, measured 100.0 us" in list(kernels.heading(measured))
    assert ProgramExplanation.from_json(canonical(measured.to_json())) == measured
    with pytest.raises(ValueError, match="3 measurements of 4 regions"):
        PROGRAM.with_measured("decode", [1e-5, 2e-5, 3e-5])


@pytest.mark.parametrize(
    ("op", "names"),
    [
        ("linear_0", ["linear_packed", "linear_packed_4"]),
        ("attention", ["attention", "attention_1"]),
        ("linear_packed_4_norm", ["linear_packed_4"]),
        ("model.layers.1", ["linear_packed_4", "attention_1"]),
        ("model.layers.1.self_attn", ["linear_packed_4", "attention_1"]),
        ("q_proj", ["linear_packed", "linear_packed_4"]),
        ("nothing", []),
    ],
)
def test_an_op_selects_regions(op: str, names: list[str]) -> None:
    chosen = PROGRAM.concerning(op)
    assert [item.name for item in chosen.regions] == names
    assert {item.name for item in chosen.kernels} == {item.kernel for item in chosen.regions}


def test_explain_prints_the_kernels_of_an_artifact(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(artifact)]) == 0
    text = capsys.readouterr().out
    assert "kernels: 2 for 4 regions; arena 11264 bytes a token" in text
    assert "  loop: regions 0 to 1, 2 times" in text
    assert "not flat" not in text


def test_explain_of_a_kernel_says_why_not_the_others(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(artifact), "q_proj"]) == 0
    text = capsys.readouterr().out
    assert "linear_0 (line 77 of the generated source), first for linear_packed, linear_packed_norm" in text
    assert "  1 row: gemv\n    not flat: predicted no faster for 1 row\n  2 rows and more: flat" in text
    assert "attention_0" not in text
    assert main(["explain", str(artifact), "nothing"]) == 2


def test_measuring_needs_a_native_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = native_artifact.write(tmp_path / "plain.llmc")
    assert main(["explain", str(plain)]) == 0
    assert "kernels:" not in capsys.readouterr().out
    assert main(["explain", str(plain), "--measure"]) == 2
    assert "holds no native program" in capsys.readouterr().err


def test_explain_in_json(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(artifact), "attention_0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["program"] == json.loads(canonical(PROGRAM.concerning("attention_0").to_json()))


@pytest.mark.parametrize(
    "damaged",
    [
        {"version": 2},
        {"kernels": []},
        {"regions": [{"name": "x"}]},
        {"loops": [{"start": -1, "period": 1, "count": 2}]},
        {"target": 3},
        {"more": 1},
    ],
)
def test_a_damaged_explanation_is_refused(damaged: dict[str, object]) -> None:
    with pytest.raises(ArtifactRejected, match="explanation"):
        ProgramExplanation.from_json(canonical({**PROGRAM.to_json(), **damaged}))


def test_ranges_of_rows_read_well() -> None:
    assert [GEMV.rows, FLAT.rows, replace(FLAT, last=9).rows] == ["1 row", "2 rows and more", "2 to 9 rows"]
    assert GEMV.serves(1) and not GEMV.serves(2) and FLAT.serves(99)
