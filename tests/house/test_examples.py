"""Every example runs, prints something, and fits on a page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from house.package import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PRINTS = {
    "01_see_a_graph.py": "cached_attention",
    "02_build_and_generate.py": "20 tokens given, next tokens [74, 70, 44, 26, 77, 34, 11, 41], as eager: True",
    "03_write_a_rule.py": "sigmoid_1 is also used elsewhere",
}
"""Something that each example must print."""


def test_every_example_is_checked() -> None:
    assert {path.name for path in EXAMPLES} == set(PRINTS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert PRINTS[path.name] in done.stdout
    assert list(tmp_path.iterdir()) == [], "an example leaves nothing behind"
