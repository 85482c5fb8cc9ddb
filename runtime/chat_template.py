"""Chat templates: Jinja as Hugging Face renders it, in a sandbox that also bounds time and memory.

A template comes with a model, from a stranger. It sees plain values only, calls nothing but Jinja's own functions, and
every loop, call and value that it makes is charged to a budget (see `llmc.runtime.jinja_limits`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from threading import Lock
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from llmc.errors import BadRequest
from llmc.runtime.jinja_limits import LimitedEnvironment

Message = Mapping[str, object]
"""One message: {"role": "user", "content": "..."}, and whatever else the template knows."""

MAX_TEMPLATE_CHARACTERS = 1 << 18
MAX_MESSAGES = 4096
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names under which a message may carry the model's reasoning."""


class ChatTemplate:
    """One template, compiled at its first use."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._environment: LimitedEnvironment | None = None
        self._template: Template | None = None
        self._lock = Lock()

    def render(self, messages: Sequence[Message], variables: Mapping[str, object]) -> str:
        """The text of `messages`. Raises BadRequest if the template is wrong, refuses them or exceeds its limits."""
        if isinstance(messages, Mapping | str) or len(messages) > MAX_MESSAGES:
            raise BadRequest(f"chat: expected a list of at most {MAX_MESSAGES} messages")
        chat = [_message(message, index) for index, message in enumerate(messages)]
        plain = {name: _plain(value, name) for name, value in variables.items()}
        with self._lock:
            try:
                template, environment = self._compiled()
                environment.refill()
                return template.render(**{"documents": None, **plain, "messages": chat})
            except Exception as error:  # a template is a stranger's program: it can raise anything
                raise BadRequest(f"chat template: {_brief(error)}; send other messages or a plain prompt") from None

    def _compiled(self) -> tuple[Template, LimitedEnvironment]:
        if self._template is None or self._environment is None:
            if len(self._source) > MAX_TEMPLATE_CHARACTERS:
                raise SecurityError(
                    f"it has {len(self._source)} characters, at most {MAX_TEMPLATE_CHARACTERS} are used"
                )
            self._environment = _environment()
            self._template = self._environment.from_string(self._source)
        return self._template, self._environment


class _GenerationTag(Extension):
    """`{% generation %}`: marks what the assistant says, for training; here its content is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Namespace(Namespace):
    """A namespace whose attributes may not begin with an underscore, so that none shadows one of Python's own."""

    def __init__(*args: object, **kwargs: object) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _environment() -> LimitedEnvironment:
    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.set_filter("tojson", _to_json)
    environment.globals.pop("lipsum")
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _make_dict,
        "namespace": _Namespace,
    }
    return environment


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > 256 or re.search(r"\d{3}", form):
        raise SecurityError("strftime_now: a format of more than 256 characters or with a width of three digits")
    return datetime.now().strftime(form)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:  # noqa: ANN401 - what dict takes
    return dict(*args, **kwargs)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without escaping what HTML would need, as models were trained on."""
    if (isinstance(indent, int) and indent > 16) or len(str(separators)) > 64 or len(str(indent)) > 64:
        raise SecurityError("tojson: an indent of more than 16 or long separators")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"namespace: the attribute {name[:40]!r} begins with an underscore")


def _message(message: object, index: int) -> dict[str, object]:
    """A copy of a message in plain values; reasoning gets the names under which templates look for it."""
    if not isinstance(message, Mapping):
        raise BadRequest(
            f"chat: message {index} is a {type(message).__name__}, expected an object with role and content"
        )
    plain = {str(name): _plain(value, f"message {index}") for name, value in message.items()}
    reasoning = next((plain[name] for name in _REASONING if plain.get(name) is not None), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: object, where: str, depth: int = 0) -> object:
    """A copy in JSON's own types, which have no methods that a sandbox would have to know."""
    if depth > 32:
        raise BadRequest(f"chat: {where} is nested deeper than 32; flatten it")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item, where, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, depth + 1) for item in value]
    raise BadRequest(f"chat: {where} holds a {type(value).__name__}; use texts, numbers, lists and objects")


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    line = getattr(error, "lineno", None)
    return f"{text[:300]} (line {line})" if isinstance(line, int) else text[:300]
