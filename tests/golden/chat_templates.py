"""Makes tests/golden/chat_templates.json.gz: every template of tests/fixtures/chat_templates with 20
conversations, rendered by transformers 5.24.0 with jinja2 3.1.6.

A conversation that the template refuses has the value null. The clock stands at 2026-01-15 12:00 UTC.
Run from the repository root: python3 tests/golden/chat_templates.py
"""
import datetime
import glob
import gzip
import json
import os

from transformers.utils import chat_template_utils

NOW = 1768478400
OUT = "tests/golden/chat_templates.json.gz"


def tool_call(name, arguments, ident):
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Current weather <now> & \"soon\" in a city.",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "The city, e.g. Zürich"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "default": 1}}, "required": ["city"]}}}
ADD = {"type": "function", "function": {
    "name": "add", "description": "Adds numbers.",
    "parameters": {"type": "object", "properties": {
        "numbers": {"type": "array", "items": {"type": "number"}}}, "required": ["numbers"]}}}
ASK = user("What is the weather in Zürich?")
CALLED = [ASK, assistant(None, tool_calls=[tool_call("get_weather", {"city": "Zürich", "days": 2}, "abcdef123")]),
          {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather", "content": '{"temp": -3.5, "sky": "clear"}'}]
LONG = [turn for i in range(6) for turn in (user(f"Question {i}?"), assistant(f"Answer {i}."))]

CONVERSATIONS = [
    ("one turn", [user("Hello")], None, True),
    ("system", [SYSTEM, user("Hello")], None, True),
    ("system, no prompt", [SYSTEM, user("Hello")], None, False),
    ("three turns", [user("Hi"), assistant("Hello!"), user("Who are you?")], None, True),
    ("ends with the assistant", [SYSTEM, user("Hi"), assistant("Hello!")], None, False),
    ("assistant, then a prompt", [user("Hi"), assistant("Hello!")], None, True),
    ("other scripts", [user("你好，世界 — привет, κόσμε 👩‍👩‍👧 é")], None, True),
    ("white space", [user("  leading\n\n\ttrailing \n"), assistant(" \n spaced  "), user("\n")], None, True),
    ("special tokens as text", [user("</s><s>[INST] <|im_end|><|eot_id|> <end_of_turn>")], None, True),
    ("quotes", [user("'single' \"double\" \\back\\ {{ braces }} {% if %} <b>&amp;</b>")], None, True),
    ("empty", [user("")], None, True),
    ("only a system prompt", [SYSTEM], None, True),
    ("tools", [SYSTEM, ASK], [WEATHER, ADD], True),
    ("tool result", CALLED, [WEATHER], True),
    ("two calls at once", [
        SYSTEM, user("Weather, and 1+2.5?"),
        assistant("", tool_calls=[tool_call("get_weather", {"city": "Oslo", "unit": "celsius"}, "call00001"),
                                  tool_call("add", {"numbers": [1, 2.5]}, "call00002")]),
        {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "cold"},
        {"role": "tool", "tool_call_id": "call00002", "name": "add", "content": "3.5"},
        assistant("Cold, and 3.5."), user("Thanks")], [WEATHER, ADD], True),
    ("parts", [{"role": "user", "content": [{"type": "text", "text": "First."}, {"type": "text", "text": "Second."}]}],
     None, True),
    ("two users in a row", [user("One"), user("Two")], None, True),
    ("twelve turns", [SYSTEM] + LONG + [user("And now?")], None, True),
    ("reasoning", [user("2+2?"), assistant("<think>\nEasy.\n</think>\n\n4", reasoning_content="Easy.", thinking="Easy."),
                   user("3+3?")], None, True),
    ("answer after a tool", CALLED + [assistant("It is cold.")], [WEATHER, ADD], False),
]
assert len(CONVERSATIONS) == 20


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def render(template, messages, tools, generate):
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [messages], tools=tools, chat_template=template, add_generation_prompt=generate,
            bos_token="<s>", eos_token="</s>")
    except Exception:
        return None
    return texts[0]


def main():
    chat_template_utils.datetime = FixedClock
    out = {"now": NOW, "tokens": {"bos_token": "<s>", "eos_token": "</s>"}, "templates": {},
           "conversations": [dict(zip(("name", "messages", "tools", "generate"), c)) for c in CONVERSATIONS]}
    for path in sorted(glob.glob("tests/fixtures/chat_templates/*.jinja")):
        with open(path, encoding="utf-8", newline="") as f:
            template = f.read()
        texts = [render(template, m, t, g) for _, m, t, g in CONVERSATIONS]
        out["templates"][os.path.basename(path)] = texts
        print(f"{os.path.basename(path):30} {sum(t is not None for t in texts)} of {len(texts)} rendered")
    data = json.dumps(out, ensure_ascii=False, separators=(",", ":")).encode()
    with open(OUT, "wb") as f:
        f.write(gzip.compress(data, mtime=0))


if __name__ == "__main__":
    main()
