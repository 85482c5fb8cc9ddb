"""Thousands of damaged artifacts: each is refused by ArtifactRejected or harmless; none crashes or hangs."""

import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from support import small_artifact
from support.small_artifact import reseal, rewrite_header

from llmc.errors import ArtifactRejected
from llmc.runtime.artifact import Artifact

WEIGHTS = "weights.safetensors"


@pytest.mark.slow
def test_two_thousand_mutations_are_refused_or_harmless_and_nothing_else(tmp_path: Path) -> None:
    """Bytes, lengths, JSON fields, names and links are changed; about half of the time all hashes are made right."""
    draw = random.Random(20261121)
    path, pristine = small_artifact.write(tmp_path / "a.llmc"), tmp_path / "pristine"
    shutil.copytree(path, pristine)
    refused, slowest = 0, 0.0
    for _ in range(2000):
        mutate(path, draw)
        began = time.perf_counter()
        try:
            for view in Artifact.open(path).weights().values():
                view.sum()
        except ArtifactRejected as error:
            refused += 1
            assert "; " in str(error), "a refusal names the way out"
        slowest = max(slowest, time.perf_counter() - began)
        shutil.rmtree(path)
        shutil.copytree(pristine, path)
    assert 1200 < refused < 2000
    assert slowest < 5


def mutate(path: Path, draw: random.Random) -> None:
    file = path / draw.choice(["manifest.json", "manifest.json", WEIGHTS, WEIGHTS, "program/graph.json"])
    kind = draw.choice(["flip", "cut", "splice", "field", "field", "field", "header", "header", "name", "link", "add"])
    content = file.read_bytes()
    at = draw.randrange(len(content))
    if kind == "flip":
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
    elif kind == "cut":
        file.write_bytes(content[:at])
    elif kind == "splice":
        other = draw.randrange(len(content))
        file.write_bytes(content[:at] + content[other : other + draw.randrange(200)] + content[at:])
    elif kind == "field":
        reseal(path, lambda manifest: change_field(manifest, draw))
        return
    elif kind == "header":
        rewrite_header(path, lambda header: change_field(header, draw))
        return
    elif kind == "name":
        file.rename(file.with_name(draw.choice(["x", "Graph.json", "manifest.json ", "weights", "a\x00b"[:1]])))
    elif kind == "link":
        file.rename(path.with_name("moved"))
        file.symlink_to(path.with_name("moved"))
    else:
        (path / draw.choice(["x", "program/y", "tokenizer/z.so", "-", "é"])).write_bytes(content[:at])
    if draw.random() < 0.5 and (path / "manifest.json").is_file() and file.name != "manifest.json":
        reseal(path)


def change_field(document: dict[str, Any], draw: random.Random) -> None:
    """Replace, remove or add one value, at any depth, by something unlikely."""
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(place[key], dict | list) and draw.random() < 0.8:
            place = place[key]
            continue
        break
    action = draw.random()
    if action < 0.15:
        del place[key]
    elif action < 0.25 and isinstance(place, dict):
        place[draw.choice(["x", "..", "", "a/../b", "weights.safetensors"])] = place[key]
    else:
        place[key] = draw.choice(
            [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**40, 0.5, 1e308, -0.0, "", "x", "..", "/", "\ud800", "\x00",
             [], {}, [[]], {"a": {}}, ["x"] * 50, math.pi, place[key], [place[key]], "F32", [0, 64], [1, 2**62]]
        )  # fmt: skip
