"""The tokenizer of a model as the files that the runtime reads: no transformers is needed after the build."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmc.errors import BadInput, UnsupportedModel

_LIMIT = 512 << 20
"""Largest tokenizer file accepted, in bytes; gemma 3's, of 262,144 tokens, has 33 million."""


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer and its conventions, as files of an artifact."""

    tokenizer_json: bytes
    """tokenizer.json, for `tokenizers.Tokenizer`."""
    config: dict[str, Any]
    """tokenizer_config.json: names of the special tokens, whether they are added."""
    chat_template: str | None
    """chat_template.jinja, for a sandboxed Jinja only: it comes from the model."""
    eos_token_ids: tuple[int, ...]
    """Every token that ends a generation."""
    bos_token_id: int | None

    def contents(self) -> dict[str, bytes]:
        """The files by name."""
        contents = {
            "tokenizer.json": self.tokenizer_json,
            "tokenizer_config.json": (json.dumps(self.config, indent=2, sort_keys=True) + "\n").encode(),
        }
        if self.chat_template is not None:
            contents["chat_template.jinja"] = self.chat_template.encode()
        return contents

    def write(self, directory: Path) -> list[Path]:
        """Write the files into `directory`, made if need be; return them."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.contents().items():
            (directory / name).write_bytes(content)
        return [directory / name for name in self.contents()]


def read_tokenizer(directory: Path) -> TokenizerFiles:
    """The tokenizer of a Hugging Face directory; one without tokenizer.json is converted by transformers.

    Raises:
        BadInput: a file is damaged, or the directory has no tokenizer.
        UnsupportedModel: the tokenizer has no fast form, or needs code that comes with the model.
    """
    file = directory / "tokenizer.json"
    content = _read(file) if file.is_file() else _convert(directory)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the Rust library raises bare Exception
        raise BadInput(f"{file}: not a tokenizer: {error}") from error
    config = _json(directory / "tokenizer_config.json")
    bos = _token(config.get("bos_token"))
    return TokenizerFiles(
        content,
        {key: value for key, value in config.items() if key not in ("chat_template", "auto_map")},
        _chat_template(directory, config),
        _end_tokens(directory, tokenizer, config),
        tokenizer.token_to_id(bos) if bos is not None else None,
    )


def _convert(directory: Path) -> bytes:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise BadInput(
            f"{directory}: has no tokenizer.json, and transformers reads no other tokenizer: {error}"
        ) from error
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise UnsupportedModel(f"{directory}: {kind} has no fast form; save it with a tokenizer.json")
    return str(tokenizer.backend_tokenizer.to_str()).encode()


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    """The template of its own file, or the one in the configuration; of several named ones, the default."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return _text(file)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _end_tokens(directory: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> tuple[int, ...]:
    """The ends that generation_config.json names, else config.json, else the tokenizer's end token."""
    for name in ("generation_config.json", "config.json"):
        ends = _json(directory / name).get("eos_token_id")
        ends = ends if isinstance(ends, list) else [ends]
        found = tuple(end for end in ends if isinstance(end, int) and not isinstance(end, bool))
        if found:
            return found
    eos = _token(config.get("eos_token"))
    end = tokenizer.token_to_id(eos) if eos is not None else None
    return () if end is None else (end,)


def _token(token: object) -> str | None:
    """The text of a special token, which is spelled as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file}: holds {type(value).__name__}, expected a JSON object")
    return value


def _text(file: Path) -> str:
    try:
        return _read(file).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: not UTF-8: {error}") from error


def _read(file: Path) -> bytes:
    if file.stat().st_size > _LIMIT:
        raise BadInput(f"{file}: has {file.stat().st_size} bytes, expected at most {_LIMIT}")
    return file.read_bytes()
