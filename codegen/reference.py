"""The reference program: the packed graph run op by op in eager torch. It is what every other program is judged by."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from llmc.errors import ArtifactRejected
from llmc.ir.cache_formats import CACHE_FORMATS, format_of, head_size, stored_width
from llmc.ir.model import STEP_INPUTS, Model
from llmc.ir.serialize import load_graph
from llmc.ir.weights import evaluate_each
from llmc.runtime.artifact import Artifact
from llmc.runtime.program import Batch, CacheSpec

DTYPES = {**CACHE_FORMATS, "float64": torch.float64}
"""The dtype of a cache by what its specification says."""


class ReferenceProgram:
    """Runs a packed graph on CPU tensors; implements `llmc.runtime.program.Program`."""

    block_multiple = 1

    def __init__(
        self, module: fx.GraphModule, weights: Mapping[str, torch.Tensor], caches: Sequence[CacheSpec]
    ) -> None:
        """Bind a graph in packed-token form to its weights, by placeholder name.

        Raises:
            ArtifactRejected: a weight is missing, or the graph's inputs are not those of a packed step.
        """
        self._module = module
        self._caches = tuple(caches)
        self._storage: list[torch.Tensor] = []
        names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
        given = [*STEP_INPUTS, *(f"{kind}_cache_{i}" for i in range(len(caches)) for kind in "kv")]
        if names[len(names) - len(given) :] != given:
            raise ArtifactRejected(f"the graph ends in inputs {names[-len(given) :]}; expected {given}")
        missing = [name for name in names[: len(names) - len(given)] if name not in weights]
        if missing:
            raise ArtifactRejected(
                f"the weights lack {missing[0]} (and {len(missing) - 1} more); expected every input of the graph"
            )
        self._weights = [weights[name] for name in names[: len(names) - len(given)]]

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Set aside zeroed caches: K [num_blocks, block_size, heads, key_size] and V likewise, for every layer.

        Formats with a scale take its bytes beside the last dimension (see `llmc.ir.cache_formats`).
        """
        self._storage = [
            torch.zeros(num_blocks, block_size, spec.heads, stored_width(size, dtype), dtype=dtype)
            for spec in self._caches
            for dtype in [DTYPES[spec.dtype]]
            for size in (spec.key_size, spec.value_size)
        ]

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Run the graph on one packed step; logits [R, V]."""
        inputs = [torch.from_numpy(np.ascontiguousarray(getattr(batch, name))) for name in STEP_INPUTS]
        with torch.inference_mode():
            (logits,) = self._module(*self._weights, *inputs, *self._storage)
            result: npt.NDArray[np.float32] = logits.float().numpy()
        return result

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block of every cache onto another."""
        for storage in self._storage:
            storage[target].copy_(storage[source])


def cache_specs(model: Model) -> list[CacheSpec]:
    """The caches that a packed graph asks for, in the order of its inputs."""
    found = {node.name: node.meta["val"] for node in model.inputs() if "_cache_" in node.name}
    specs = []
    for layer in range(len(found) // 2):
        key, value = found[f"k_cache_{layer}"], found[f"v_cache_{layer}"]
        key_size, value_size = (head_size(int(cache.shape[3]), cache.dtype) for cache in (key, value))
        specs.append(CacheSpec(int(key.shape[2]), key_size, value_size, format_of(key.dtype)))
    return specs


def from_model(model: Model) -> ReferenceProgram:
    """The program of a compiled model in this process; its weights are evaluated now, one by one."""
    weights = dict(evaluate_each(model.weights))
    model.graph_module.recompile()
    return ReferenceProgram(model.graph_module, weights, cache_specs(model))


def open_reference(artifact: Artifact) -> ReferenceProgram:
    """The reference program of an artifact, its weights mapped. Raises ArtifactRejected."""
    program = artifact.manifest.programs["reference"]
    module = load_graph(artifact.read(program["graph"]))
    dtypes = {name: info.dtype for name, info in artifact.weights_header.tensors.items()}
    weights = {name: torch_view(array, dtypes[name]) for name, array in artifact.weights().items()}
    return ReferenceProgram(module, weights, artifact.manifest.kv)


def torch_view(array: npt.NDArray[np.generic], dtype: str) -> torch.Tensor:
    """A tensor over the memory of a mapped array; numpy has no bfloat16, so it comes as uint16."""
    with warnings.catch_warnings():  # that it is mapped read-only is meant: nothing writes to weights
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        plain = torch.from_numpy(array.view(np.int16) if dtype == "bfloat16" else array)
    return plain.view(torch.bfloat16) if dtype == "bfloat16" else plain


__all__ = ["ReferenceProgram", "cache_specs", "from_model", "open_reference", "torch_view"]
