"""The tiny models: small, random in every parameter, and with every kind of layer of their family."""

import pytest
import torch
from zoo.variants import REQUIRED

from llmc.errors import BadOption
from llmc.zoo import families, tiny, tiny_config
from llmc.zoo.families import CORRECTIONS, NOT_A_DECODER
from llmc.zoo.shrink import SIZES, cover, set_field


def test_the_zoo_has_every_family_that_transformers_maps() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert set(families()) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert set(REQUIRED) <= set(families())
    assert set(NOT_A_DECODER) <= set(families())


def test_an_unknown_family_is_refused_with_the_way_out() -> None:
    with pytest.raises(BadOption, match=r"maps no causal LM 'lama'; see `python -m llmc.zoo --list`"):
        tiny("lama")


def test_a_family_without_a_decoder_is_refused_with_the_reason() -> None:
    with pytest.raises(BadOption, match="musicgen: reads several codebooks"):
        tiny("musicgen")


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    first, again, other = tiny("llama"), tiny("llama"), tiny("llama", seed=1)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert not torch.equal(parameter, other.get_parameter(name))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_oss", "deepseek_v3", "opt"])
def test_no_parameter_is_constant_or_without_spread(family: str) -> None:
    module = tiny(family)
    tensors = {
        **dict(module.named_parameters()),
        **{n: b for n, b in module.state_dict().items() if b.is_floating_point()},
    }
    assert {name for name, tensor in tensors.items() if tensor.numel() > 1 and tensor.std() < 0.05} == set()


def test_tied_weights_stay_tied() -> None:
    module = tiny("gpt2")
    assert module.get_parameter("lm_head.weight") is module.get_parameter("transformer.wte.weight")


def test_heads_are_grouped_also_where_the_family_does_not_by_default() -> None:
    config = tiny_config("llama")
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gemma3_text", {"sliding_attention", "full_attention"}),
        ("qwen3_next", {"linear_attention", "full_attention"}),
        ("lfm3", {"conv", "sliding_attention", "full_attention"}),
        ("llama", None),
    ],
)
def test_few_layers_show_every_kind_of_layer(family: str, kinds: set[str] | None) -> None:
    config = tiny_config(family)
    assert config.num_hidden_layers == max(2, len(kinds or ()))
    assert kinds is None or set(config.layer_types) == kinds


def test_windows_are_short_enough_to_be_crossed() -> None:
    assert tiny_config("mistral").sliding_window == SIZES["sliding_window"] == 8


def test_changes_are_made_on_top_of_the_small_configuration() -> None:
    config = tiny_config("mpt", **{"attn_config.clip_qkv": 0.5, "n_layers": 3})
    assert (config.attn_config.clip_qkv, config.n_layers, config.d_model) == (0.5, 3, 64)


def test_layers_are_chosen_to_show_every_value_of_every_column_in_order() -> None:
    assert cover([["a", "a", "b", "a"]], 4) == [2, 3]
    assert cover([["a", "b", "b", "b"], [1, 1, 1, 2]], 4) == [0, 3]
    assert cover([], 5) == [0, 4]
    assert cover([["a"]], 1) == [0]


def test_a_dotted_field_reaches_into_a_nested_configuration() -> None:
    fields: dict[str, object] = {"text_config": {"size": 1}}
    set_field(fields, "text_config.size", 2)
    set_field(fields, "vision_config.size", 3)
    assert fields == {"text_config": {"size": 2}, "vision_config": {"size": 3}}


def test_every_correction_has_a_reason_and_belongs_to_a_family() -> None:
    assert [name for name, correction in CORRECTIONS.items() if not correction.because] == []
    assert set(CORRECTIONS) - set(families()) == set()
