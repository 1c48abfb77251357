"""Structured answers: under every name of the fields, streamed or not, and what is refused."""

import json
import os
import random
import re
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "clients"))
import structured  # noqa: E402

SCHEMA = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"], "additionalProperties": False}
GRAMMAR = 'root ::= "a" root "b" | "c"'


def complete(daemon, model, **fields):
    status, answer = daemon.post("/v1/completions", {
        "model": model, "prompt": "Answer: ", "max_tokens": 400, "temperature": 1, "seed": 1, **fields})
    assert status == 200, answer
    return answer["choices"][0]


@pytest.mark.parametrize("fields", [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    {"guided_json": SCHEMA},
    {"json_schema": SCHEMA},
])
def test_a_schema_under_its_names(daemon, model, fields):
    choice = complete(daemon, model, **fields)
    assert choice["finish_reason"] == "stop"
    document = json.loads(choice["text"])
    assert set(document) == {"name", "age"} and 0 <= document["age"] <= 120 and len(document["name"]) <= 10


@pytest.mark.parametrize("fields,pattern", [
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"structured_outputs": {"regex": "[a-f]{3}\\d"}}, "[a-f]{3}[0-9]"),
    ({"guided_regex": "[a-f]{3}\\d"}, "[a-f]{3}[0-9]"),
    ({"structured_outputs": {"grammar": GRAMMAR}}, "a*cb*"),
    ({"guided_grammar": GRAMMAR}, "a*cb*"),
    ({"grammar": GRAMMAR}, "a*cb*"),
])
def test_other_kinds_under_their_names(daemon, model, fields, pattern):
    for seed in range(3):
        choice = complete(daemon, model, **{**fields, "seed": seed, "temperature": 2})
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch(pattern, choice["text"])


def test_a_json_object_in_chat(client, model):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "A record, please."}], max_tokens=600, seed=2,
        response_format={"type": "json_object"})
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.startswith("{")


def test_streaming_gives_the_same(daemon, model):
    body = {"model": model, "prompt": "Answer: ", "max_tokens": 200, "temperature": 1, "seed": 9,
            "structured_outputs": {"json": SCHEMA}}
    events = daemon.events("/v1/completions", {**body, "stream": True})
    streamed = "".join(e["choices"][0]["text"] for e in events[:-1])
    assert streamed == daemon.post("/v1/completions", body)[1]["choices"][0]["text"]


def test_ignore_eos_ends_where_nothing_can_follow(daemon, model):
    choice = complete(daemon, model, ignore_eos=True, structured_outputs={"choice": ["stop"]})
    assert (choice["text"], choice["finish_reason"]) == ("stop", "stop")


@pytest.mark.parametrize("fields,param", [
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
     "response_format.json_schema"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"what": 1}}, "structured_outputs"),
    ({"guided_json": {"not": {}}}, "guided_json"),
    ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex"),
    ({"guided_regex": "(.*a.{30}){3}"}, "guided_regex"),
    ({"grammar": "root ::= root \"a\""}, "grammar"),
])
def test_refusals_name_the_field(daemon, model, fields, param):
    status, answer = daemon.post("/v1/completions", {"model": model, "prompt": "x", **fields})
    assert status == 400, answer
    assert answer["error"]["param"] == param


def test_compiling_does_not_hold_up_others(daemon, model):
    """A grammar that runs into its limits is refused while another request is answered."""
    import threading
    slow = []
    thread = threading.Thread(target=lambda: slow.append(daemon.post("/v1/completions", {
        "model": model, "prompt": "x", "guided_regex": "(.*a.{400}b?){9}"})))
    thread.start()
    assert complete(daemon, model, max_tokens=3)
    thread.join()
    assert slow[0][0] == 400


def test_random_schemas_at_temperature_2(daemon, model):
    r = random.Random(4)
    for seed in range(10):
        outcome, text = structured.ask(daemon, model, seed, structured.random_schema(r), 2500)
        assert outcome in ("valid", "length"), text
