"""The tokenizer in the metadata of a GGUF file, as tokenizer.json.

The vocabulary is handed to transformers' converter. Going through `AutoTokenizer` instead gives the same file, but
parses the metadata three more times: 15 s for gemma 3 against 3 s here (2 cores, 2026-11).
"""

from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, processors
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

from llmc.errors import BadInput, UnsupportedModel
from llmc.frontend.gguf import GgufFile
from llmc.frontend.tokenizer import TokenizerFiles

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Special tokens, and what GGUF calls their ids."""


def gguf_tokenizer(file: GgufFile) -> TokenizerFiles:
    """Convert the tokenizer of the file.

    Raises:
        BadInput: the vocabulary is missing or contradicts itself.
        UnsupportedModel: transformers has no converter for this kind of tokenizer.
    """
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise BadInput(f"{file.path}: tokenizer.ggml.tokens is no list of strings; expected a vocabulary")
    names = {name: _token(file, tokens, kind) for name, kind in _SPECIAL.items()}
    tokenizer = _convert(file)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in names.values() if token is not None])
    bos, eos = names["bos_token"], names["eos_token"]
    add_bos, add_eos = bos is not None and _adds_bos(file), eos is not None and bool(_get(file, "add_eos_token"))
    tokenizer.post_processor = _template(tokenizer, bos if add_bos else None, eos if add_eos else None)
    ends = (_id(file, tokens, kind) for kind in ("eos", "eot", "eom"))
    template = file.metadata.get("tokenizer.chat_template")
    return TokenizerFiles(
        tokenizer_json=str(tokenizer.to_str()).encode(),
        config={
            "add_bos_token": add_bos,
            "add_eos_token": add_eos,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: token for name, token in names.items() if token is not None},
        },
        chat_template=template if isinstance(template, str) else None,
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        bos_token_id=_id(file, tokens, "bos"),
    )


def _convert(file: GgufFile) -> Tokenizer:
    """The tokenizer without what surrounds a text."""
    kind = _get(file, "model")
    if kind not in ("gpt2", "llama", "t5", "gemma4"):
        raise UnsupportedModel(f"{file.path}: tokenizer {kind!r}, expected gpt2, llama, t5 or gemma4")
    renames = GGUF_TOKENIZER_MAPPING["tokenizer"]
    parts: dict[str, Any] = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for key, name in renames.items()
        if (value := file.metadata.get(f"tokenizer.{key}")) is not None
    }
    try:
        tokenizer: Tokenizer
        tokenizer, _ = convert_gguf_tokenizer(str(file.metadata.get("general.architecture")), parts)
    except Exception as error:
        raise BadInput(f"{file.path}: the tokenizer's metadata is incomplete or wrong: {error!r}") from error
    return tokenizer


def _adds_bos(file: GgufFile) -> bool:
    """Whether texts start with the first token: always with a sentencepiece vocabulary that does not say otherwise,
    never with gemma 4's, whose chat template writes the token itself."""
    kind, says = _get(file, "model"), _get(file, "add_bos_token")
    return kind != "gemma4" and bool(kind == "llama" if says is None else says)


def _template(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> processors.TemplateProcessing:
    """What is put before and after a text, and each text of a pair."""
    single = f"{f'{bos}:0 ' if bos is not None else ''}$A:0{f' {eos}:0' if eos is not None else ''}"
    second = f"{f' {bos}:1' if bos is not None else ''} $B:1{f' {eos}:1' if eos is not None else ''}"
    added = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token is not None]
    return processors.TemplateProcessing(single=single, pair=single + second, special_tokens=added)


def _get(file: GgufFile, key: str) -> object:
    return file.metadata.get(f"tokenizer.ggml.{key}")


def _id(file: GgufFile, tokens: list[str], kind: str) -> int | None:
    number = _get(file, f"{kind}_token_id")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise BadInput(f"{file.path}: tokenizer.ggml.{kind}_token_id is {number}, expected 0 to {len(tokens) - 1}")
    return number


def _token(file: GgufFile, tokens: list[str], kind: str) -> str | None:
    number = _id(file, tokens, kind)
    return None if number is None else tokens[number]
