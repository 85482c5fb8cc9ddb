"""Text that streams out token by token is the text of all tokens, and never breaks a character."""

import json
import random
from pathlib import Path

import pytest
from support import small_tokenizer
from support.small_artifact import FACTS

from llmc.errors import ArtifactRejected, BadRequest
from llmc.runtime.artifact import Artifact
from llmc.runtime.artifact_writer import ArtifactWriter
from llmc.runtime.tokenizer import Tokenizer

TEXTS = [
    "the quick brown fox",
    "Grüße aus Köln: naïve café",
    "東京 and 🙂🙃 smile 👩‍👩‍👧 done",
    " leading and  double  spaces ",
    "unknown letters: żółć, Ω≈ç√, \U0001f9ff",
]


@pytest.fixture(params=[small_tokenizer.byte_level, small_tokenizer.byte_fallback], ids=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(request.param())


def pieces(tokenizer: Tokenizer, tokens: list[int], prompt: list[int]) -> list[str]:
    stream = tokenizer.stream(prompt)
    return [*(stream.push(token) for token in tokens), stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_make_up_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    streamed = pieces(tokenizer, tokens, [])
    assert "".join(streamed) == tokenizer.decode(tokens) == text
    assert not any("\ufffd" in piece for piece in streamed)
    assert len([piece for piece in streamed if piece]) > len(text.split()) / 2, "it streams, and not all at the end"


@pytest.mark.parametrize("text", TEXTS)
def test_a_continuation_keeps_the_space_before_it(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    for cut in range(1, len(tokens)):
        whole = tokenizer.decode(tokens[:cut]).rstrip("\ufffd")
        streamed = "".join(pieces(tokenizer, tokens[:cut], [])[:-1])
        prompt = max(whole, streamed, key=len)
        assert prompt + "".join(pieces(tokenizer, tokens[cut:], tokens[:cut])) == text


def test_special_tokens_neither_show_nor_swallow_a_space(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("the quick brown", add_special_tokens=False)
    with_special = [tokens[0], 2, *tokens[1:], 0, 2]
    assert "".join(pieces(tokenizer, with_special, [])) == tokenizer.decode(with_special) == "the quick brown"


def test_bytes_that_never_become_a_character_are_not_held_back_for_ever(tokenizer: Tokenizer) -> None:
    byte = tokenizer.encode("🙂", add_special_tokens=False)[-1]
    emoji_start = tokenizer.encode("\U0001f9ff", add_special_tokens=False)[-4:-3]
    tokens = (emoji_start or [byte]) * 40
    streamed = pieces(tokenizer, tokens, [])
    assert "".join(streamed) == tokenizer.decode(tokens)
    assert max(index for index, piece in enumerate(streamed[:-1]) if piece) > 30


@pytest.mark.parametrize("broken", [True, False])
def test_random_tokens_stream_to_their_text(broken: bool) -> None:
    """Byte by byte, whatever the bytes; where a decoder judges a run of bytes as a whole, if they are UTF-8."""
    tokenizer = Tokenizer(small_tokenizer.byte_level() if broken else small_tokenizer.byte_fallback())
    draw = random.Random(3)
    compared = 0
    for _ in range(400):
        tokens = [draw.randrange(3, 300) for _ in range(draw.randrange(1, 30 if broken else 5))]
        whole = tokenizer.decode(tokens)
        if broken or "\ufffd" not in whole:
            assert "".join(pieces(tokenizer, tokens, [])) == whole
            compared += 1
    assert compared > 40


def test_special_tokens_are_added_unless_asked_otherwise() -> None:
    tokenizer = Tokenizer(small_tokenizer.byte_fallback())
    assert tokenizer.encode("fox")[0] == 1
    assert tokenizer.encode("fox", add_special_tokens=False)[0] != 1
    assert tokenizer.decode([1, *tokenizer.encode("fox")], skip_special_tokens=False).startswith("<s><s>")


def test_text_that_is_not_unicode_or_too_long_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(BadRequest, match="not Unicode at character 2; remove lone surrogates"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(BadRequest, match="characters, at most 16777216"):
        tokenizer.encode("a" * ((1 << 24) + 1))


def test_a_tokenizer_is_read_from_its_artifact(tmp_path: Path) -> None:
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "model_max_length": 8192,
        "chat_template": "ignored",
    }
    path = tmp_path / "a.llmc"
    with ArtifactWriter(path) as writer:
        with writer.open_weights({}):
            pass
        writer.add_bytes("program/graph.json", b"{}")
        writer.add_bytes("tokenizer/tokenizer.json", small_tokenizer.byte_level().encode())
        writer.add_bytes("tokenizer/tokenizer_config.json", json.dumps(config).encode())
        writer.add_bytes("tokenizer/chat_template.jinja", b"{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
        writer.publish(FACTS)
    tokenizer = Tokenizer.from_artifact(Artifact.open(path))
    assert tokenizer is not None
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.render([{"role": "user", "content": "hi"}]) == "<s>hi</s>"


def test_an_artifact_without_tokenizer_has_none(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "a.llmc") as writer:
        with writer.open_weights({}):
            pass
        writer.add_bytes("program/graph.json", b"{}")
        writer.publish(FACTS)
    assert Tokenizer.from_artifact(Artifact.open(tmp_path / "a.llmc")) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": "1.0", "model": {"type": "Evil"}}', "\x00"])
def test_a_damaged_tokenizer_is_rejected(content: str) -> None:
    with pytest.raises(ArtifactRejected, match=r"tokenizer\.json"):
        Tokenizer(content)


def test_a_template_may_come_with_the_configuration_as_text_or_by_name() -> None:
    source = small_tokenizer.byte_level()
    message = [{"role": "user", "content": "hi"}]
    assert Tokenizer(source, {"chat_template": "A"}).render(message) == "A"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert Tokenizer(source, {"chat_template": named}).render(message) == "D"
    assert Tokenizer(source, {"chat_template": "A"}, "B").render(message) == "B"
    assert not Tokenizer(source).has_chat_template
    with pytest.raises(BadRequest, match="no chat template; send the prompt as plain text"):
        Tokenizer(source).render(message)
