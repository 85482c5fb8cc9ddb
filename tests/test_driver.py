"""The front door: compile whatever maps tokens to logits, save it, load it, and get the same again."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import llmc
from llmc.compiled_model import CompiledModel
from llmc.errors import ArtifactRejected, BadOption, BadRequest, BuildFailed, UnsupportedModel
from llmc.frontend.export import LogitsOf, export
from llmc.ir.weights import Constant

VOCAB, WIDTH = 32, 12
TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]]


class Small(nn.Module):
    """One causal attention layer with learned positions, tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.table = nn.Embedding(64, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.table(torch.arange(tokens.shape[1]))
        q, k, v = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return functional.linear(self.norm(x + mixed.transpose(1, 2).flatten(2)), self.embed.weight)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return Small().eval()


@pytest.fixture(scope="module")
def compiled(module: nn.Module) -> CompiledModel:
    return llmc.compile(module)


def expected(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(torch.tensor([row])) for row in TOKENS])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


def test_a_module_compiles_to_its_own_logits(module: nn.Module, compiled: CompiledModel) -> None:
    close(compiled(TOKENS), expected(module))
    close(compiled(torch.tensor(TOKENS)), expected(module))
    assert compiled(TOKENS).dtype == torch.float32


def test_an_exported_program_and_a_graph_module_compile_too(module: nn.Module) -> None:
    program = export(LogitsOf(module))
    assert isinstance(program, torch.export.ExportedProgram)
    close(llmc.compile(program)(TOKENS), expected(module))
    graph = program.module()
    assert isinstance(graph, fx.GraphModule)
    close(llmc.compile(graph)(TOKENS), expected(module))


def test_the_module_is_left_as_it_was() -> None:
    module = Small().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    llmc.compile(module, prove=False)
    assert module.training
    assert list(before) == list(module.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_greedy_generation_takes_the_likeliest_token(module: nn.Module, compiled: CompiledModel) -> None:
    row = list(TOKENS[0])
    with torch.no_grad():
        for _ in range(4):
            row.append(int(module(torch.tensor([row]))[0, -1].argmax()))
    (found,) = compiled.generate([TOKENS[0]], max_new_tokens=4, temperature=0.0)
    assert list(found.token_ids) == row[-4:]


def test_the_report_says_what_was_done(compiled: CompiledModel) -> None:
    report = compiled.report
    assert set(report) == {"passes", "rewrites", "refused", "ops", "masks", "lengths", "program", "gpu"}
    assert report["program"] == {"kind": "reference", "reason": "native code was not asked for"}
    assert report["masks"] == {"k <= q": 1}
    rules = [done["rule"] for done in report["rewrites"]]  # type: ignore[attr-defined]
    assert {"recognize_attention", "lift_masks", "make_incremental"} <= set(rules)
    assert [done["number"] for done in report["rewrites"]] == list(range(1, len(rules) + 1))  # type: ignore[attr-defined]
    assert report["ops"]["llmc.cached_attention.default"] == 1  # type: ignore[index]


def test_a_saved_model_loads_to_the_same_logits(compiled: CompiledModel, tmp_path: Path) -> None:
    directory = compiled.save(tmp_path / "small.llmc")
    loaded = llmc.load(directory)
    assert torch.equal(loaded(TOKENS), compiled(TOKENS))
    assert loaded.report["masks"] == {"k <= q": 1}
    with pytest.raises(BadOption, match="this model was loaded from an artifact; copy its directory"):
        loaded.save(tmp_path / "again.llmc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.llmc"]


def test_an_artifact_that_is_there_is_replaced_only_when_told(compiled: CompiledModel, tmp_path: Path) -> None:
    directory = compiled.save(tmp_path / "small.llmc")
    before = digest(directory)
    with pytest.raises(BadOption):
        compiled.save(directory)
    assert digest(directory) == before
    (directory / "manifest.json").write_bytes(b"{}")
    compiled.save(directory, force=True)
    assert digest(directory) == before


def test_a_weight_that_cannot_be_read_leaves_nothing_behind(
    compiled: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(weight: Constant) -> Tensor:
        raise OSError("the disk is gone")

    bad = llmc.compile(export(LogitsOf(Small().eval())), prove=False)
    monkeypatch.setattr(Constant, "evaluate", broken)
    with pytest.raises(BuildFailed, match="the disk is gone"):
        bad.save(tmp_path / "small.llmc")
    assert list(tmp_path.iterdir()) == []


def digest(directory: Path) -> str:
    """One hash of every file's name and bytes."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    parts = [f"{path.relative_to(directory)}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


BUILD = """
import sys, torch
torch.set_num_threads(1)
import test_driver, llmc
llmc.compile(test_driver.Small().eval()).save(sys.argv[1])
"""


def test_builds_in_two_processes_give_equal_bytes(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", BUILD, str(tmp_path / seed)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype: 'float8' is not a dtype of a compiled model"),
        ({"dtype": "float16"}, "dtype: a Small has its dtype already; convert it before compiling"),
        ({"max_context": 0}, "max context: 0 is less than 1 token"),
        ({"stop_after": -1}, "stop after: -1 rewrites cannot be performed"),
        ({"dump": __file__}, "test_driver.py is a file; name a directory"),
    ],
)
def test_an_option_without_sense_is_refused_before_anything_is_done(
    module: nn.Module, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BadOption, match=message):
        llmc.compile(module, **options)  # type: ignore[arg-type]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"model: a dict cannot be compiled; expected a path, an nn\.Module"):
        llmc.compile({})  # type: ignore[arg-type]
    with pytest.raises(BadOption, match=r"there is no .*nowhere; expected a Hugging Face directory or a \.gguf file"):
        llmc.compile(tmp_path / "nowhere")


def test_a_context_longer_than_the_model_was_made_for_is_refused(module: nn.Module) -> None:
    class Configured(Small):
        class Config:
            max_position_embeddings = 64
            eos_token_id = 2
            model_type = "small"

        config = Config()

    with pytest.raises(BadOption, match="max context: 65 tokens, the model was made for 64; use 64 or less"):
        llmc.compile(Configured().eval(), max_context=65, prove=False)
    compiled = llmc.compile(Configured().eval(), max_context=16, prove=False)
    with pytest.raises(BadRequest):
        compiled([[1] * 17])


def test_a_module_that_gives_no_logits_is_refused() -> None:
    class Nothing(nn.Module):
        def forward(self, tokens: Tensor) -> str:
            return "none"

    with pytest.raises(UnsupportedModel, match="Nothing returns str; expected logits: a tensor, a tuple that starts"):
        llmc.compile(Nothing())


def test_control_flow_on_token_values_is_refused_with_the_reason() -> None:
    class Branches(Small):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * (2 if tokens[0, 0] > 3 else 1)

    with pytest.raises(UnsupportedModel, match=r"Branches cannot be traced with a dynamic length: .*control flow"):
        llmc.compile(Branches())


def test_requests_that_are_no_rows_of_tokens_are_refused(compiled: CompiledModel) -> None:
    for wrong, message in [
        ([], r"expected token ids of shape \[B, S\]"),
        (torch.tensor([1, 2]), r"expected token ids of shape \[B, S\]"),
        ([[1, 2], [3]], "rows of different lengths make no tensor"),
    ]:
        with pytest.raises(BadRequest, match=message):
            compiled(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=r"sampling: .*warmth.*; expected any of .*temperature"):
        compiled.generate([[1, 2]], warmth=3)
    with pytest.raises(BadRequest, match="chat: expected prompts as text, found token ids"):
        compiled.generate([[1, 2]], chat=True)


def test_a_directory_that_is_no_artifact_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRejected):
        llmc.load(tmp_path)


def test_fewer_rewrites_make_a_graph_that_does_not_run_step_by_step(module: nn.Module) -> None:
    """Bisection needs every prefix of the rewrites to build; the packed form is the last that must be there."""
    with pytest.raises((ArtifactRejected, BuildFailed, UnsupportedModel)):
        llmc.compile(module, stop_after=0)(TOKENS)
