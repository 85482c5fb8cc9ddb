"""Cases of linears: what is multiplied, and what stands before and after it."""

from dataclasses import dataclass

from llmc.runtime.crossover import NEVER


@dataclass(frozen=True)
class Case:
    """One linear over `rows` rows."""

    format: str = "bf16"
    n: int = 48
    k: int = 64
    rows: int = 1
    source: str = ""
    """"" for stored rows, else the operation of the prologue."""
    bias: bool = False
    gate: str = ""
    chain: tuple[str, ...] = ()
    """Names of operations; "add" and the like have a residual, "scale" a number, "weigh" a vector."""
    heads: tuple[tuple[str, int], ...] = ()
    """Roles and numbers of heads, one after another."""
    interleaved_parts: bool = False
    """Whether the heads of the parts take turns."""
    head_size: int = 16
    rotated: int = 0
    interleaved: bool = False
    head_norm: str = ""
    cache: str = "bfloat16"
    domain: str = "T"
    flat: int = 4
    gemm: int = 65
    library: int = NEVER
    target: str = "sm_90"
    indirect: bool = False
    narrow: bool = False
    """Whether rows are stored in bfloat16 if their linear can read them so."""


def layer(features: int, wide: int, heads: int, key_heads: int, head_size: int) -> dict[str, Case]:
    """The linears of a layer of Llama; wide: features within its MLP."""
    parts = (("q", heads), ("k", key_heads), ("v", key_heads))
    n = (heads + 2 * key_heads) * head_size
    return {
        "qkv": Case(n=n, k=features, source="rms_norm", heads=parts, head_size=head_size, rotated=head_size),
        "o": Case(n=features, k=heads * head_size, chain=("add",), narrow=True),
        "up": Case(n=2 * wide, k=features, source="rms_norm", gate="silu"),
        "down": Case(n=features, k=wide, chain=("add",), narrow=True),
    }
