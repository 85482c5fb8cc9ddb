"""Random recipes: every combination that a plain model can be written in."""

from dataclasses import replace

from hypothesis import strategies as st
from properties.plain_models import ACTIVATIONS, Recipe

NORMS = ("rms", "rms_offset", "rms_function", "rms_float_weight", "layer", "layer_no_bias", "layer_by_hand")
ROTARY = ("half", "interleaved", "complex", "polar", "partial")
OTHER_POSITIONS = ("learned", "sinusoidal", "alibi", "none")


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """A recipe whose parts go together; it shrinks towards a plain pre-norm Llama block with a causal SDPA."""
    positions = draw(st.sampled_from(ROTARY + OTHER_POSITIONS))
    kv_heads, groups = draw(st.sampled_from([(2, 2), (4, 1), (1, 4), (3, 2)]))
    sizes = (8, 12, 16) if positions in ROTARY else (8, 5, 7, 16)
    recipe = Recipe(
        layers=draw(st.integers(1, 2)),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_size=draw(st.sampled_from(sizes)),
        hidden=draw(st.sampled_from([32, 20, 42])),
        norm=draw(st.sampled_from(NORMS)),
        norm_place=draw(st.sampled_from(["pre", "post", "sandwich"])),
        positions=positions,
        fused_qkv=draw(st.booleans()),
        parallel=draw(st.booleans()),
        bias=draw(st.booleans()),
        tied=draw(st.booleans()),
        mlp=draw(st.sampled_from(["gated", "plain"])),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        qk_norm=draw(st.booleans()),
        embedding_scale=draw(st.sampled_from([1.0, 4.5])),
        final_softcap=draw(st.sampled_from([None, 3.0])),
    )
    return draw(_attention(recipe))


@st.composite
def _attention(draw: st.DrawFn, recipe: Recipe) -> Recipe:
    kind = draw(st.sampled_from(["sdpa", "eager"]))
    window = draw(st.sampled_from([None, 6]))
    masks = ["tril_buffer", "triu_inf", "arange", "where"]
    if kind == "sdpa" and window is None and recipe.positions != "alibi":
        masks.insert(0, "is_causal")
    return replace(
        recipe,
        attention=kind,
        window=window,
        mask=draw(st.sampled_from(masks)),
        repeat=draw(st.sampled_from(["interleave", "expand", *(["gqa"] if kind == "sdpa" else [])])),
        softcap=draw(st.sampled_from([None, 2.0])) if kind == "eager" else None,
        sinks=draw(st.booleans()) if kind == "eager" else False,
    )
