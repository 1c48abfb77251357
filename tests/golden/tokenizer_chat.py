"""Makes tests/golden/tokenizer_chat.json: chat templates and what jinja2 3.1.6 renders of them.

The environment is the one chat templates are written for: immutable sandbox, trim_blocks,
lstrip_blocks, loop controls, tojson without HTML escapes, raise_exception, strftime_now.
Run from the repository root: python3 tests/golden/tokenizer_chat.py
"""
import json

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MESSAGES = [
    {"role": "system", "content": "You are  é."},
    {"role": "user", "content": " Hi <|im_end|> 'q' \"d\" \n"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "a1", "type": "function", "function": {
        "name": "f", "arguments": {"x": 1, "y": [1.5, True, None, "z"]}}}]},
    {"role": "tool", "content": "42"},
    {"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image"}]},
]
SIMPLE = [MESSAGES[0], MESSAGES[1], {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Bye </s>"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d<e>", "parameters": {
    "type": "object", "properties": {"b": {"type": "string", "enum": ["p", "q"]}, "a": {"type": "integer"}}, "required": ["b"]}}}]

# Written for these tests in the manner of published families.
CHATS = [
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" and message.content is string or message.role == "system" and not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.content is iterable and message.content is not string %}
        {%- for part in message.content if part.type == 'text' %}{{ part.text | trim }}{%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
]
EXPRESSIONS = r"""
{{ 1 + 2 * 3 - 4 // 3 % 2 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 1e16 }} {{ 1.0 }} {{ 0.1 + 0.2 }} {{ 1e-5 }} {{ 123456789.125 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1,'b'] ~ {'k': 2.0} }}
{% set ns = namespace(a=1, b='x') %}{% for i in range(4) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}
{% macro f(a, b='d', c=none) %}[{{ a }}|{{ b }}|{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, 2, c=3) }}{{ f(b=4, a='z') }}
{{ messages | length }} {{ messages | map(attribute='role') | list }} {{ messages | map(attribute='role') | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role','in',['user','tool']) | map(attribute='role') | list }}
{{ messages[1:] | length }} {{ messages[::-1][0].role }} {{ messages[-1].role }} {{ 'hello'[1:3] }} {{ 'héllo'[::-1] }} {{ 'hello'[-3:] }} {{ 'abc'[10:] }}|
{{ tools | tojson }} {{ tools | tojson(indent=2) }} {{ 'é\x01"\\' | tojson }} {{ 1.5 | tojson }} {{ none | tojson }}
{{ 'a,b,c'.split(',') }} {{ ' x y  z '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a b c'.rsplit(' ', 1) }} {{ 'x'.join(['a','b']) }}
{{ '  t '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abc'.lstrip('ab') }}|{{ 'Abc'.upper() }}|{{ 'hello world'.title() }}|{{ 'hELLO'.capitalize() }}
{{ 'abcabc'.replace('b', 'X') }} {{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x','c')) }} {{ 'abc'.find('c') }} {{ 'aXbX'.count('X') }}
{{ undefined_thing }} {{ undefined_thing is defined }} {{ undefined_thing | default('dflt') }} {{ none | default('n') }} {{ '' | default('e', true) }}
{{ undefined_thing.x }}
{{ messages[0].nothing }}|{{ messages[0]['nothing'] is undefined }}|{{ messages[0].get('nothing', 'g') }}|{{ messages[0].get('nothing') }}
{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].keys() | list }}
{% for x in [] %}a{% else %}empty{% endfor %}{% for x in [1,2,3,4,5,6] if x is even %}{{ x }}{{ loop.index0 }}{{ loop.last }}{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{{ 1 if false }} {{ 1 if true else 2 }} {{ not true or true and false }} {{ 1 < 2 < 3 }} {{ 'a' not in 'abc' }} {{ 'role' in messages[0] }}
{% set x %}block {{ 1 }}{% endset %}[{{ x }}]{% set a, b = 1, 2 %}{{ a + b }}{% raw %}{{ not }} {% x %}{% endraw %} {# comment #} end
{{ '%s is %d' % ('a', 5) }} {{ "{} {x}".format(1, x=2) }} {{ 'a' * 3 }} {{ [1] + [2] }} {{ (1, 2) }} {{ (1,) }} {{ {'a': {'b': [1]}} }}
{{ [3,1,2] | sort }} {{ ['b','A','c'] | sort }} {{ {'b':1,'a':2} | dictsort }} {{ [1,2,3] | sum }} {{ [1,2,2] | unique | list }} {{ [3,4] | max }} {{ 'abc' | reverse }}
{{ 3.7 | int }} {{ '12' | int }} {{ 'x' | int(5) }} {{ 2.567 | round(2) }} {{ -3 | abs }} {{ '<a>' | e }} {{ 'a\nb\n\nc' | indent(2) }}
{{ 1 is number }} {{ 'a' is string }} {{ {} is mapping }} {{ none is none }} {{ 3 is odd }} {{ 4 is divisibleby 2 }} {{ messages is not none }}
{{ messages[0]['content'] + 5 }}
{{ raise_exception('no way') }}
{{ messages[0]['content'].append(1) }}
{% macro f2() %}<{{ caller(3) }}>{% endmacro %}{% call(x) f2() %}c{{ x }}{% endcall %}{% filter upper %}abc {{ 'd' }}{% endfilter %}
{% for x in 'abc' %}{{ loop.previtem | default('-') }}{{ x }}{{ loop.nextitem | default('-') }}{{ loop.cycle('o','e') }}{{ loop.revindex }}{% endfor %}
""".strip("\n").split("\n")
LAYOUT = [
    "{% if true %}\n  a\n{% endif %}\n  b\n{% for i in [1,2] %}\n    line {{ i }}\n  {# c #}\n{% endfor %}\nz\n\n",
    "  {%- if true %}\n x {{ 1 }}\n\n  {{- 2 }}  \n {%- endif -%}  \n y",
    "a  {% if true %} b {% endif %}\n  {% set x=1 %}  \n c {%+ if true %}d{% endif +%}\n e",
    "\t{% if 1 %}\tq{% endif %}\n{{ 1 }}\n{# x -#}  \n w",
    " {% raw %}  {% if %}\n {%- endraw %} x",
    "{{ '}}' }}{{ {'a':{'b':1}}['a']['b'] }}{% if {'a':1} %}k{% endif %}",
    "x\r\ny{% if 1 %}\r\nz{% endif %}\r\n",
]


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def main():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    cases = []
    for template, messages in [(t, m) for t in CHATS for m in (SIMPLE, MESSAGES, SIMPLE[1:])] + [(t, MESSAGES) for t in EXPRESSIONS + LAYOUT]:
        for generate in (True, False) if template in CHATS else (True,):
            case = {"template": template, "messages": messages, "tools": TOOLS, "generate": generate}
            try:
                case["want"] = env.from_string(template).render(
                    messages=messages, tools=TOOLS, documents=None, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>")
            except Exception:
                case["want"] = None
            cases.append(case)
    with open("tests/golden/tokenizer_chat.json", "w") as f:
        json.dump(cases, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    print(len(cases), sum(c["want"] is None for c in cases))


main()
