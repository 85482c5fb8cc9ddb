"""The report of a build, grouped for reading: equal layers in one line, near misses with their reasons."""

import pytest

from llmc.cli.explanation import explain, place
from llmc.errors import BadOption

MANIFEST = {
    "passes": [{"name": "fuse_qkv", "changes": 3}, {"name": "fuse_gate_up", "changes": 0}],
    "rewrites": [
        {"number": 7, "rule": "fuse_qkv", "origin": "model.layers.0.self_attn at modeling_llama.py:10", "error": 1e-7},
        {"number": 8, "rule": "fuse_qkv", "origin": "model.layers.1.self_attn at modeling_llama.py:10", "error": 3e-7},
        {"number": 9, "rule": "fold_norm", "origin": "model.norm", "error": None},
    ],
    "report": {
        "refused": [
            {"rule": "fuse_gate_up", "node": "a", "origin": "model.layers.0.mlp", "reason": "up_proj has a bias"},
            {"rule": "fuse_gate_up", "node": "b", "origin": "model.layers.1.mlp", "reason": "up_proj has a bias"},
            {"rule": "fuse_gate_up", "node": "c", "origin": "model.layers.2.mlp", "reason": "sizes differ"},
        ],
        "ops": {"aten.linear.default": 9, "llmc.rms_norm.default": 5},
    },
}


def test_equal_layers_share_a_line() -> None:
    assert list(explain(MANIFEST).lines()) == [
        "done: 3 rewrites",
        "  fuse_qkv: 2 x at model.layers.*.self_attn (from #7, largest error 3.0e-07)",
        "  fold_norm: at model.norm (from #9, not proved)",
        "not done: 3 near misses",
        "  fuse_gate_up: 2 x at model.layers.*.mlp: up_proj has a bias",
        "  fuse_gate_up: at model.layers.*.mlp: sizes differ",
        "ops: 14 in the compiled graph",
        "      9  aten.linear.default",
        "      5  llmc.rms_norm.default",
    ]


@pytest.mark.parametrize(
    ("op", "done", "not_done", "ops"),
    [
        ("fuse_qkv", ["fuse_qkv"], [], []),
        ("fuse_gate_up", [], ["fuse_gate_up", "fuse_gate_up"], []),
        ("rms_norm", [], [], ["llmc.rms_norm.default"]),
        ("self_attn", ["fuse_qkv"], [], []),
        ("model.layers.1.mlp", [], ["fuse_gate_up", "fuse_gate_up"], []),
    ],
)
def test_a_name_selects_a_rule_an_op_or_a_module(op: str, done, not_done, ops) -> None:
    found = explain(MANIFEST, op)
    assert [item.rule for item in found.done] == done
    assert [miss.rule for miss in found.not_done] == not_done
    assert list(found.ops) == ops


@pytest.mark.parametrize(
    ("op", "hint"),
    [("fuse_qvk", "did you mean fuse_qkv"), ("rmsnorm", "did you mean rms_norm"), ("zzz", "leave it out to see all")],
)
def test_an_unknown_name_is_answered_with_the_nearest(op: str, hint: str) -> None:
    with pytest.raises(BadOption, match=hint):
        explain(MANIFEST, op)


def test_a_pass_that_did_nothing_is_known_but_says_nothing() -> None:
    quiet = {**MANIFEST, "report": {}}
    assert list(explain(quiet, "fuse_gate_up").lines()) == [
        "done: 0 rewrites",
        "not done: 0 near misses",
        "ops: 0 in the compiled graph",
    ]


def test_a_place_is_a_module_without_its_layer() -> None:
    assert place("model.layers.12.mlp.experts.3 at modeling_mixtral.py:99") == "model.layers.*.mlp.experts.*"
    assert place("") == "unknown origin"
