"""Text to tokens and back: the model's tokenizer.json, chat templates, and decoding while tokens still arrive."""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer as FastTokenizer

from llmc.errors import ArtifactRejected, BadRequest
from llmc.runtime.artifact import Artifact
from llmc.runtime.chat_template import ChatTemplate, Message
from llmc.runtime.checked_json import parse
from llmc.runtime.memory import give_back_freed

TOKENIZER = "tokenizer/tokenizer.json"
CONFIG = "tokenizer/tokenizer_config.json"
CHAT_TEMPLATE = "tokenizer/chat_template.jinja"
MAX_TEXT_CHARACTERS = 1 << 24
"""Longest text that is tokenized."""

_BROKEN = "\ufffd"
"""What decoders write for bytes that are not UTF-8, such as the first ones of a character."""
_LONGEST_CHARACTER = 4
"""Bytes, and so at most tokens, of one character."""
_LONGEST_WINDOW = 64
"""Tokens that are decoded again at each new one at most, unless they are held back."""
_CONTEXT_TOKENS = 5
"""Tokens of the prompt that are decoded along with the first new ones, as decoders treat the start of a text apart."""


class Tokenizer:
    """The tokenizer of one model."""

    def __init__(
        self, tokenizer_json: str, config: Mapping[str, object] | None = None, chat_template: str | None = None
    ) -> None:
        """`config` is the content of tokenizer_config.json; `chat_template` goes before the one in it.

        Raises ArtifactRejected if one of them is damaged or the template is not one.
        """
        try:
            self._tokenizer = FastTokenizer.from_str(tokenizer_json)
        except BaseException as error:  # tokenizers raises plain Exception, and where it panics a BaseException
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ArtifactRejected(f"{TOKENIZER}: {error}; build the artifact again") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = config or {}
        self.special_tokens = _special_tokens(config)
        """Text of each special token by role, such as {"bos_token": "<s>"}; chat templates see them."""
        source = chat_template if chat_template is not None else _template_of(config)
        self._chat = None if source is None else ChatTemplate(source)

    @staticmethod
    def from_artifact(artifact: Artifact) -> "Tokenizer | None":
        """The tokenizer of an artifact; None if it was built without one. Raises ArtifactRejected."""
        if not artifact.has(TOKENIZER):
            return None
        config = parse(artifact.read(CONFIG), CONFIG).value if artifact.has(CONFIG) else {}
        if not isinstance(config, dict):
            raise ArtifactRejected(f"{CONFIG}: expected an object; build the artifact again")
        template = _text(artifact, CHAT_TEMPLATE) if artifact.has(CHAT_TEMPLATE) else None
        tokenizer = Tokenizer(_text(artifact, TOKENIZER), config, template)
        give_back_freed()  # reading 50,000 tokens and their merges leaves 25 MB of it
        return tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return self._chat is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of `text`, with those that the model expects around a text unless asked otherwise.

        Raises BadRequest for text that is not Unicode (lone surrogates) or too long.
        """
        if len(text) > MAX_TEXT_CHARACTERS:
            raise BadRequest(f"text: {len(text)} characters, at most {MAX_TEXT_CHARACTERS} are tokenized; shorten it")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRequest(f"text: not Unicode at character {error.start}; remove lone surrogates") from None
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `tokens`, without the model's own special tokens unless asked otherwise."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """`messages` as the text that the model was trained on, by its chat template.

        `variables` are what this template knows beside the usual, such as enable_thinking. Encode the result with
        `add_special_tokens=False`: the template writes them itself. Raises BadRequest if there is no template or it
        refuses the messages.
        """
        if self._chat is None:
            raise BadRequest("chat: this model has no chat template; send the prompt as plain text")
        return self._chat.render(
            messages,
            {**self.special_tokens, **variables, "tools": tools, "add_generation_prompt": add_generation_prompt},
        )

    def stream(self, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True) -> "TextStream":
        """Decode the tokens that follow `prompt` one by one."""
        earlier = (prompt[-_CONTEXT_TOKENS - more :] for more in range(_LONGEST_CHARACTER))
        whole = (context for context in earlier if self._begins_whole(context, skip_special_tokens))
        return TextStream(self, next(whole, prompt[-_CONTEXT_TOKENS:]), skip_special_tokens)

    def _begins_whole(self, tokens: Sequence[int], skip_special_tokens: bool) -> bool:
        """Whether the text of `tokens` begins with a whole character.

        The last tokens may begin a character that is not complete; some decoders then write all bytes before it as
        broken, so the text is tried without them.
        """
        ends = range(len(tokens), max(len(tokens) - _LONGEST_CHARACTER, 0), -1)
        texts = (self.decode(tokens[:end], skip_special_tokens=skip_special_tokens) for end in ends)
        return any(not text.startswith(_BROKEN) for text in texts)


class TextStream:
    """Decodes tokens as they arrive. The pieces, put together, are the text of all; none ends within a character.

    Only a window is decoded again at each token: the tokens whose text is out already (as context, since decoders treat
    the first token of a text apart) and those whose text is still held back.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], skip_special_tokens: bool) -> None:
        """Callers use `Tokenizer.stream`."""
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window = list(context)
        self._out = len(context)
        """Tokens of the window whose text is out."""
        self._done = self._whole_characters()
        """Their text."""

    def push(self, token: int) -> str:
        """The text that has become certain with this token; maybe empty."""
        self._window.append(token)
        return self._advance()

    def finish(self) -> str:
        """The text that was held back because it ends within a character: the rest of the bytes did not come."""
        piece = self._decode(len(self._window))[len(self._done) :]
        self._out = len(self._window)
        return piece

    def _advance(self) -> str:
        """Move the window behind the text that has become certain, and return that text."""
        end = len(self._window)
        text = self._decode(end)
        if text.endswith(_BROKEN):
            end = len(self._window) - _LONGEST_CHARACTER
            head = self._decode(end) if end > self._out else ""
            if not text.startswith(head):
                return ""
            text = head
        piece = text[len(self._done) :]
        if not piece:
            return ""
        rest = self._tokenizer.decode(self._window[self._out : end], skip_special_tokens=self._skip)
        if rest.startswith(_BROKEN) and len(self._window) < _LONGEST_WINDOW:
            self._out, self._done = end, text  # the window would begin within a character
            return piece
        self._window = self._window[self._out :]
        self._out, self._done = end - self._out, rest
        return piece

    def _whole_characters(self) -> str:
        """The text of the context up to its last whole character: new tokens may complete the one that was begun."""
        ends = range(len(self._window), max(len(self._window) - _LONGEST_CHARACTER, -1), -1)
        return max((self._decode(end).rstrip(_BROKEN) for end in ends), key=len)

    def _decode(self, end: int) -> str:
        return self._tokenizer.decode(self._window[:end], skip_special_tokens=self._skip)


def _text(artifact: Artifact, name: str) -> str:
    try:
        return artifact.read(name).decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactRejected(f"{name}: not UTF-8; build the artifact again") from None


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for role, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if role.endswith("_token") and isinstance(text, str):
            tokens[role] = text
    return tokens


def _template_of(config: Mapping[str, object]) -> str | None:
    """The template in tokenizer_config.json: a text, or a list of named ones of which "default" is meant."""
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
