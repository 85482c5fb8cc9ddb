"""Machines as numbers."""

import json
import os
from pathlib import Path

import pytest

from llmc.codegen.target import NUMBERS, PRESETS, Target
from llmc.errors import BadOption


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_where_their_numbers_come_from(name: str) -> None:
    target = Target.preset(name)
    quantities = [target.bandwidth, target.overhead, *target.peaks.values()]
    assert all(item.value > 0 and item.source.split(":")[0].split(",")[0].split(" ")[0] in
               ("measured", "datasheet", "estimated") for item in quantities)  # fmt: skip
    assert set(target.peaks) == set(NUMBERS)
    document = json.loads(json.dumps(target.to_json()))
    assert document["bandwidth"] == {"value": target.bandwidth.value, "source": target.bandwidth.source}


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(BadOption, match="'sm_1' is not known; use one of avx512"):
        Target.preset("sm_1")


def test_this_machine() -> None:
    target = Target.here()
    assert target.kind == "cpu"
    assert target.cores == len(os.sched_getaffinity(0))


def test_caches_are_read_from_sysfs(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    for number, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M"), ("3", "Unified", "36864K")]
    ):
        entry = tmp_path / f"cpu{cpu}" / "cache" / f"index{number}"
        entry.mkdir(parents=True)
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (entry / name).write_text(f"{value}\n")
    assert Target.here(tmp_path).caches == (48 << 10, 2 << 20, 36 << 20)
    assert Target.here(tmp_path / "missing").caches == Target.preset("avx512").caches


def test_rates_scale_with_cores() -> None:
    two, one, four = (Target.preset("avx512").with_cores(cores) for cores in (2, 1, 4))
    assert one.peaks["int8"].value == two.peaks["int8"].value / 2
    assert four.peaks["int8"].value == two.peaks["int8"].value * 2
    assert one.bandwidth.value < two.bandwidth.value == four.bandwidth.value
    assert one.peaks["int8"].source.startswith("scaled from 2 cores: measured")
    assert two.with_bandwidth(36e9, "measured today").bandwidth.value == 36e9
