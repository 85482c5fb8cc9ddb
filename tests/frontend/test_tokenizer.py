"""Tokenizers as files: from GGUF metadata and from directories, against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.gguf_files import ARRAY, I32, STRING, U32, gguf, pair, strings, text
from support.gguf_files import array as gguf_array
from support.models import model_file
from tokenizers import Tokenizer, models, pre_tokenizers

from llmc.errors import BadInput, UnsupportedModel
from llmc.frontend.gguf import GgufFile
from llmc.frontend.gguf_tokenizer import gguf_tokenizer
from llmc.frontend.tokenizer import TokenizerFiles, read_tokenizer

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces and\ttabs\n\n\nlines \r\n",
    "The year 2026, 3.14159, 1,000,000 and 0xdeadbeef",
    "naïve café, Straße, São Paulo, Łódź",
    "日本語のテキスト、中文文本\uff0c한국어 텍스트",
    "العربية עברית हिन्दी ไทย",
    "emoji 🙂👩‍👩‍👧‍👦🇩🇪 and zero-width\u200b\u200djoiners",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}  # comment\n",
    "https://example.org/path?query=1&other=%20#fragment",
    "I'm you're they'll we'd it's o'clock DON'T",
    "<|im_start|>user\nHi<|im_end|>\n<bos><eos><start_of_turn>model\n<unused5><pad>",
    "\ufeffbyte order mark \x00\x01\x7f control",
    "a" * 300 + " " * 50 + "b" * 3,
    "ﬁ ligature, ½ fraction, ① circled, e\u0301 combining",
]


@pytest.mark.parametrize("model", ["smollm2", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_texts_are_encoded_as_transformers_encodes_them(model: str) -> None:
    path = model_file(model)
    expected = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    files = gguf_tokenizer(GgufFile(path))
    tokenizer = Tokenizer.from_buffer(files.tokenizer_json)
    assert json.loads(files.tokenizer_json) == json.loads(expected.backend_tokenizer.to_str())
    assert [tokenizer.encode(content).ids for content in TEXTS] == [expected(content).input_ids for content in TEXTS]
    assert files.chat_template == expected.chat_template
    assert files.eos_token_ids == (expected.eos_token_id,)
    assert files.bos_token_id == expected.bos_token_id


@pytest.mark.parametrize(
    ("model", "ids"),
    [("smollm2", [504, 3575, 282, 4649, 314, 7042, 30]), ("gemma3", [2, 818, 5279, 529, 7001, 563, 9079, 236761])],
)
def test_a_sentence_is_encoded_as_known(model: str, ids: list[int]) -> None:
    files = gguf_tokenizer(GgufFile(model_file(model)))
    tokenizer = Tokenizer.from_buffer(files.tokenizer_json)
    assert tokenizer.encode("The capital of France is Paris.").ids == ids
    assert tokenizer.decode(ids) == "The capital of France is Paris."


def test_the_files_are_read_back_by_transformers(tmp_path: Path) -> None:
    files = gguf_tokenizer(GgufFile(model_file("smollm2")))
    names = {path.name for path in files.write(tmp_path)}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert (
        tokenizer("Hello, world!").input_ids == Tokenizer.from_buffer(files.tokenizer_json).encode("Hello, world!").ids
    )
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
    assert read_tokenizer(tmp_path) == files


def metadata_file(folder: Path, **changes: bytes | None) -> GgufFile:
    """A file with a tiny byte-level vocabulary; `changes` replace or remove its keys."""
    tokens = ("<s>", "</s>", "a", "b", "ab", "Ġ", "Ġab")
    pairs: dict[str, bytes | None] = {
        "model": pair("tokenizer.ggml.model", STRING, text("gpt2")),
        "tokens": pair("tokenizer.ggml.tokens", ARRAY, strings(*tokens)),
        "token_type": pair(
            "tokenizer.ggml.token_type",
            ARRAY,
            gguf_array(I32, 7, b"".join(n.to_bytes(4, "little") for n in (3, 3, *[1] * 5))),
        ),
        "merges": pair("tokenizer.ggml.merges", ARRAY, strings("a b", "Ġ ab")),
        "bos": pair("tokenizer.ggml.bos_token_id", U32, bytes(4)),
        "eos": pair("tokenizer.ggml.eos_token_id", U32, b"\1\0\0\0"),
    }
    kept = [content for content in (pairs | changes).values() if content is not None]
    path = folder / "model.gguf"
    path.write_bytes(gguf(pairs=[pair("general.architecture", STRING, text("llama")), *kept]))
    return GgufFile(path)


def test_a_byte_level_vocabulary_is_converted_without_a_start_token_unless_asked(tmp_path: Path) -> None:
    files = gguf_tokenizer(metadata_file(tmp_path))
    assert Tokenizer.from_buffer(files.tokenizer_json).encode("ab ab</s>").ids == [4, 6, 1]
    asked = {
        "add_bos": pair("tokenizer.ggml.add_bos_token", 7, b"\1"),
        "add_eos": pair("tokenizer.ggml.add_eos_token", 7, b"\1"),
    }
    files = gguf_tokenizer(metadata_file(tmp_path, **asked))
    assert Tokenizer.from_buffer(files.tokenizer_json).encode("ab").ids == [0, 4, 1]
    assert Tokenizer.from_buffer(files.tokenizer_json).encode("ab", "ab").ids == [0, 4, 1, 0, 4, 1]
    assert (files.config["add_bos_token"], files.config["add_eos_token"]) == (True, True)


def test_every_end_token_is_listed_once(tmp_path: Path) -> None:
    eot = pair("tokenizer.ggml.eot_token_id", U32, b"\4\0\0\0")
    eom = pair("tokenizer.ggml.eom_token_id", U32, b"\1\0\0\0")
    assert gguf_tokenizer(metadata_file(tmp_path, eot=eot, eom=eom)).eos_token_ids == (1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, r"tokenizer\.ggml\.tokens is no list of strings"),
        ({"eos": pair("tokenizer.ggml.eos_token_id", U32, b"\7\0\0\0")}, r"eos_token_id is 7, expected 0 to 6"),
        ({"eos": pair("tokenizer.ggml.eos_token_id", STRING, text("1"))}, r"eos_token_id is 1, expected 0 to 6"),
        ({"merges": pair("tokenizer.ggml.merges", ARRAY, strings("a c"))}, "incomplete or wrong"),
        ({"merges": None}, r"incomplete or wrong: KeyError\('scores'\)"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(
    changes: dict[str, bytes | None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        gguf_tokenizer(metadata_file(tmp_path, **changes))


def test_an_unknown_kind_of_tokenizer_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="tokenizer 'rwkv', expected gpt2, llama, t5 or gemma4"):
        gguf_tokenizer(metadata_file(tmp_path, model=pair("tokenizer.ggml.model", STRING, text("rwkv"))))


def directory(folder: Path, **files: Any) -> Path:
    """A directory with a word tokenizer and JSON files."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "hello": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_tokenizer_of_a_directory_is_copied(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ messages }}", "auto_map": {}}
    files = read_tokenizer(directory(tmp_path, tokenizer_config=config))
    assert files == TokenizerFiles(
        tokenizer_json=(tmp_path / "tokenizer.json").read_bytes(),
        config={"bos_token": {"content": "<s>"}, "eos_token": "</s>"},
        chat_template="{{ messages }}",
        eos_token_ids=(1,),
        bos_token_id=0,
    )


def test_the_end_tokens_of_the_generation_configuration_come_first(tmp_path: Path) -> None:
    directory(tmp_path, generation_config={"eos_token_id": [1, 2]}, config={"eos_token_id": 3})
    assert read_tokenizer(tmp_path).eos_token_ids == (1, 2)
    directory(tmp_path, generation_config={}, config={"eos_token_id": 3})
    assert read_tokenizer(tmp_path).eos_token_ids == (3,)


def test_the_template_of_its_own_file_comes_first_and_of_several_the_default(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    directory(tmp_path, tokenizer_config={"chat_template": several})
    assert read_tokenizer(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("own")
    assert read_tokenizer(tmp_path).chat_template == "own"


def test_a_tokenizer_without_a_fast_file_is_converted(tmp_path: Path) -> None:
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġab": 5}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    files = read_tokenizer(tmp_path)
    assert Tokenizer.from_buffer(files.tokenizer_json).encode("ab ab").ids == [3, 5]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", r"tokenizer\.json: not a tokenizer"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json: not JSON"),
        ("tokenizer_config.json", b"[1]", r"tokenizer_config\.json: holds list, expected a JSON object"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja: not UTF-8"),
    ],
)
def test_a_damaged_file_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (directory(tmp_path) / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no tokenizer\.json, and transformers reads no other tokenizer"):
        read_tokenizer(tmp_path)
