"""Tools through the SDK: calls that are asked for, calls in the model's own format, and their pieces."""

import json

import openai
import pytest

from daemon import Daemon

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": {
        "type": "object", "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1,
                                                                                 "maximum": 9}},
        "required": ["city", "days"], "additionalProperties": False,
        "$defs": {"city": {"enum": ["Oslo", "Rome"]}}}}},
    {"type": "function", "function": {"name": "now"}},
]
USER = [{"role": "user", "content": "The weather in Oslo?"}]


def ask(client, model, **fields):
    return client.chat.completions.create(
        model=model, messages=USER, tools=TOOLS, max_tokens=300, seed=4, temperature=1.5, **fields)


def check_weather(call):
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Oslo", "Rome") and 1 <= arguments["days"] <= 9


def test_a_named_tool_gets_its_arguments(client, model):
    choice = ask(client, model, tool_choice={"type": "function", "function": {"name": "get_weather"}}).choices[0]
    assert choice.message.content is None and choice.finish_reason == "stop"
    assert choice.message.tool_calls[0].function.name == "get_weather"
    check_weather(choice.message.tool_calls[0])


def test_required_gives_calls(client, model):
    for seed in range(4):
        choice = client.chat.completions.create(
            model=model, messages=USER, tools=TOOLS, max_tokens=900, seed=seed, temperature=1.5,
            tool_choice="required", parallel_tool_calls=False).choices[0]
        assert choice.finish_reason in ("tool_calls", "length")
        if choice.finish_reason == "tool_calls":
            assert len(choice.message.tool_calls) == 1
            if choice.message.tool_calls[0].function.name == "get_weather":
                check_weather(choice.message.tool_calls[0])


def test_streamed_calls_add_up_to_the_whole(client, model):
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        whole = ask(client, model, tool_choice=choice).choices[0]
        calls = {}
        reason = None
        for chunk in ask(client, model, tool_choice=choice, stream=True):
            delta = chunk.choices[0].delta
            reason = chunk.choices[0].finish_reason or reason
            assert not delta.content
            for piece in delta.tool_calls or []:
                if piece.id:
                    calls[piece.index] = [piece.function.name, ""]
                calls[piece.index][1] += piece.function.arguments
        assert [tuple(c) for c in calls.values()] == [
            (c.function.name, c.function.arguments) for c in whole.message.tool_calls]
        assert reason == whole.finish_reason


def test_auto_reads_the_models_own_format():
    """The answer is held to what a Hermes model would write; the parser must find the call in it."""
    d = Daemon("--tool-format", "hermes", "--max-batch", "2")
    try:
        client = openai.OpenAI(base_url=d.url + "/v1", api_key="none")
        text = 'Sure\\. <tool_call>\\n\\{"name": "get_weather", "arguments": \\{"city": "[A-Z][a-z]{3}"\\}\\}\\n</tool_call>'
        choice = ask(client, "demo-llama", extra_body={"structured_outputs": {"regex": text}}).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Sure. "
        assert choice.message.tool_calls[0].function.name == "get_weather"
        assert len(json.loads(choice.message.tool_calls[0].function.arguments)["city"]) == 4
        answer = client.chat.completions.create(model="demo-llama", max_tokens=3, tools=TOOLS, messages=USER + [
            {"role": "assistant", "tool_calls": [call.model_dump() for call in choice.message.tool_calls]},
            {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "Cold."}])
        assert answer.choices[0].message.role == "assistant"
    finally:
        assert d.stop() == 0


@pytest.mark.parametrize("fields,param", [
    ({"tools": TOOLS}, "tools"),  # the demo model's template knows no tools
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
    ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
])
def test_refusals(daemon, model, fields, param):
    status, answer = daemon.post("/v1/chat/completions", {"model": model, "messages": USER, **fields})
    assert status == 400 and answer["error"]["param"] == param, answer
