"""Chat templates render as transformers renders them, and no template gets out of its sandbox or its limits."""

import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llmc.errors import BadRequest
from llmc.runtime.chat_template import ChatTemplate

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "1 < 2 & \"quoted\" 'x' é 🙂"},
    {"role": "assistant", "content": "Yes.\n", "reasoning": "hm"},
    {"role": "user", "content": [{"type": "text", "text": "and?"}]},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": []}}}]
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "tools": TOOLS, "add_generation_prompt": True}

TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']|string + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = "
    "messages[0]['content'] %}{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
    "{% if loop.index0 == 0 %}{{ '<<SYS>>' ~ system | trim ~ '<</SYS>>' }}{% endif %}"
    "{{ '[INST] ' ~ m.content ~ ' [/INST]' if m.role == 'user' else m.content ~ eos_token }}{% endfor %}",
    "blocks": "\n  {% for m in messages %}\n    {%- if loop.first %}first{% elif loop.last %} last {% endif %}\n"
    "    {{ loop.index }}/{{ loop.length }} {{ loop.revindex }} {{ m.role|upper }}\n  {% endfor %}\nend",
    "tools": "{% if tools %}{{ tools|tojson(indent=2) }}{{ tools|tojson }}{% endif %}{{ messages|tojson }}"
    "{{ {'b': 1, 'a': [true, none, 1.5]}|tojson(sort_keys=true) }}{{ [1, 2]|tojson(separators=(',', ':')) }}",
    "namespace": "{% set ns = namespace(count=0, text='') %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.count = ns.count + 1 %}{% set ns.text = ns.text ~ m.role %}{% endif %}{% endfor %}{{ ns.count }}"
    "{{ ns.text }}",
    "macros": "{% macro show(m, mark='*') %}{{ mark * 3 }}{{ m.role }}{{ caller() if caller else '' }}{% endmacro %}"
    "{% for m in messages|reverse %}{{ show(m) }}{% endfor %}{% call show(messages[0], mark='-') %}in{% endcall %}",
    "filters": "{{ messages|map(attribute='role')|join(', ') }} {{ messages|selectattr('role', 'equalto', 'user')|list|"
    "length }} {{ 'a b c'.split(' ')|last }} {{ '  x '.strip() }} {{ [3, 1, 2]|sort|join('-') }} {{ 'abc'[::-1] }} "
    "{{ 'x'.replace('x', 'yy') }} {{ messages|length > 3 }} {{ [1, 2]|sum }} {{ {'a': 1}.items()|list }} "
    "{{ 'AbC'.lower().startswith('a') }} {{ undefined_thing|default('d') }} {{ 'a' in 'abc' }} {{ 7 // 2 }} "
    "{{ 2 ** 3 }}"
    " {{ '%s-%03d' % ('x', 7) }} {{ '{} {:>4}'.format(1, 2) }} {{ range(5)|list }} {{ 'a\nb'|indent(2) }}"
    " {{ ','.join(['p', 'q']) }} {{ 'word'|center(10) }} {{ (1, 2) + (3,) }} {{ [1] * 3 }} "
    "{{ [[1, 2], [3]]|map('sum')|list }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}"
    "{% else %}{{ m.role }}{% endif %}{% endfor %}",
    "loopcontrols": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}"
    "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}|{% endfor %}",
    "recursive": "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}"
    "{% endif %}"
    "{% endfor %}",
    "content_parts": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}"
    "{{ part.text if part.type == 'text' }}{% endfor %}{% endif %}{% endfor %}{% set a, b = 1, 2 %}{{ a ~ b }}",
    "set_block": "{% set x %}{% for m in messages %}{{ m.role }};{% endfor %}{% endset %}{{ x|length }}{{ x }}"
    "{% filter upper %}loud{% endfilter %}{{ documents is none }}{{ dict(a=1)['a'] }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(name: str) -> None:
    (expected,), _ = render_jinja_template([CHAT], chat_template=TEMPLATES[name], **VARIABLES)
    assert ChatTemplate(TEMPLATES[name]).render(CHAT, VARIABLES) == expected


def test_a_template_may_refuse_and_says_why() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadRequest, match="chat template: roles must alternate; send other messages"):
        template.render(CHAT, {})


def test_a_wrong_template_is_an_error_with_its_line() -> None:
    with pytest.raises(BadRequest, match=r"\(line 2\); send other messages or a plain prompt"):
        ChatTemplate("\n{% for %}").render(CHAT, {})


def test_what_the_template_sees_is_a_plain_copy() -> None:
    chat = [{"role": "user", "content": "x", "extra": ("a", {"b": 1})}]
    assert ChatTemplate("{{ messages[0].extra }}").render(chat, {}) == "['a', {'b': 1}]"
    with pytest.raises(BadRequest, match="message 0 holds a object; use texts"):
        ChatTemplate("").render([{"content": object()}], {})
    with pytest.raises(BadRequest, match="x holds a method"):
        ChatTemplate("").render([], {"x": ChatTemplate("").render})
    with pytest.raises(BadRequest, match="message 0 is a str, expected an object"):
        ChatTemplate("").render(["hello"], {})  # type: ignore[list-item]
    with pytest.raises(BadRequest, match="expected a list of at most 4096 messages"):
        ChatTemplate("").render({"role": "user"}, {})  # type: ignore[arg-type]


SSTI = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__['__builtins__']['eval']('1') }}",
    "{{ namespace.__init__.__globals__.re }}",
    "{{ raise_exception.__globals__.json }}",
    "{{ strftime_now.__globals__['re'].sub('a', 'b', 'c') }}",
    "{{ dict.__globals__.json }}",
    "{{ dict.mro()[1] }}",
    "{{ (messages|map(attribute='__class__')|list)[0].__mro__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ '%s'|format(1).__class__.__mro__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment.filters }}",
    "{{ loop.__class__ }}{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{{ lipsum.__globals__.os }}",
    "{{ messages.append({}) }}",
    "{{ messages[0].update({}) }}",
    "{{ messages[0].clear() }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
]


@pytest.mark.parametrize("source", SSTI)
def test_no_template_gets_out(source: str) -> None:
    """Each is refused, or finds an undefined name where Python's own would be."""
    try:
        rendered = ChatTemplate(source).render(CHAT, VARIABLES)
    except BadRequest:
        return
    assert rendered == ""


GREEDY = {
    "long text": "{{ 'a' * 10**9 }}",
    "long list": "{{ [1] * 10**9 }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "growing integer": "{% set n = namespace(x=3) %}{% for i in range(90) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubled text": "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "added text": "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "block of text": "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = y %}{% endfor %}",
    "nested lists": "{% set n = namespace(x=[1]) %}{% for i in range(90) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "nested tuples": "{% set n = namespace(x=1) %}{% for i in range(90) %}{% set n.x = (n.x, n.x) %}{% endfor %}"
    "{{ n.x }}",
    "nested objects": "{% set n = namespace(x=1) %}{% for i in range(90) %}{% set n.x = {1: n.x, 2: n.x} %}"
    "{% endfor %}",
    "dict calls": "{% set n = namespace(x=1) %}{% for i in range(90) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long range": "{{ range(10**9)|list }}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "percent": "{{ '%999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "format": "{{ '{:999999999}'.format(1) }}",
    "format argument": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "format filter": "{{ '%999999999d'|format(1) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ ('a\n' * 100000)|indent(9999) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "join": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "join filter": "{{ range(99999)|join('b' * 100000) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "sum of lists": "{{ ([[1] * 99999] * 99999)|sum(start=[]) }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "json indent": "{{ [1]|tojson(indent=10**9) }}",
    "json separators": "{{ ([1] * 1000)|tojson(separators=('b' * 100000, ':')) }}",
    "strftime": "{{ strftime_now('%999999999d') }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "long output": "{% for i in range(99999) %}" + "a" * 100 + "{% endfor %}",
    "many texts": "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = n.x + ['a' * 1000000] %}"
    "{% endfor %}",
    "nested parentheses": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "long template": " " * ((1 << 18) + 1),
}


@pytest.mark.parametrize("name", GREEDY)
def test_no_template_takes_endless_time_or_memory(name: str) -> None:
    began = time.process_time()
    with pytest.raises(BadRequest, match="chat template: "):
        ChatTemplate(GREEDY[name]).render(CHAT, VARIABLES)
    assert time.process_time() - began < 10


def test_a_refused_rendering_does_not_use_up_the_next_one() -> None:
    template = ChatTemplate("{% for i in range(messages|length * 30000) %}{% endfor %}ok")
    for _ in range(30):
        assert template.render(CHAT[:3], {}) == "ok"


def test_a_long_conversation_is_far_within_the_limits() -> None:
    chat = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(1000)]
    for name in ("chatml", "llama2", "tools", "namespace"):
        assert len(ChatTemplate(TEMPLATES[name]).render(chat, VARIABLES)) > 1000
