"""/v1/embeddings through the OpenAI SDK and past it: forms of input, formats, limits, refusals."""

import base64
import json
import math
import struct

import openai
import pytest

from daemon import Daemon

TEXT = "The history of the English language"
OTHERS = ["One day", "The sea is blue, the sky is grey. " * 60, "x", TEXT]


def floats(daemon, model, **fields):
    status, answer = daemon.post("/v1/embeddings", {"model": model, **fields})
    assert status == 200, answer
    return [d["embedding"] for d in answer["data"]]


def as_f32(values):
    return list(struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values)))


def test_sdk_gets_the_required_fields(client, model):
    answer = client.embeddings.create(model=model, input=TEXT)
    assert answer.object == "list" and answer.model == model
    assert [(d.object, d.index) for d in answer.data] == [("embedding", 0)]
    assert len(answer.data[0].embedding) > 16
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3


def test_base64_is_the_same_numbers(client, daemon, model):
    """The SDK asks for base64 by itself and decodes it."""
    decoded = client.embeddings.create(model=model, input=TEXT).data[0].embedding
    plain = client.embeddings.create(model=model, input=TEXT, encoding_format="float").data[0].embedding
    text = floats(daemon, model, input=TEXT, encoding_format="base64")[0]
    raw = base64.b64decode(text, validate=True)
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == as_f32(plain) == as_f32(decoded)


def test_forms_of_input_agree(daemon, model):
    status, tokens = daemon.post("/tokenize", {"model": model, "prompt": TEXT})
    assert status == 200
    ids = tokens["tokens"]
    one = floats(daemon, model, input=TEXT)
    assert floats(daemon, model, input=[TEXT]) == one
    assert floats(daemon, model, input=ids) == one
    assert floats(daemon, model, input=[ids]) == one
    assert floats(daemon, model, input=[ids, ids[:2]])[0] == one[0]


def test_a_batch_is_its_members(client, daemon, model):
    """Long inputs take several chunks of the prefill beside others that run: the same numbers."""
    alone = [floats(daemon, model, input=t)[0] for t in OTHERS]
    assert floats(daemon, model, input=OTHERS) == alone
    answer = client.embeddings.create(model=model, input=OTHERS)
    assert [d.index for d in answer.data] == list(range(len(OTHERS)))
    assert answer.usage.prompt_tokens == sum(
        client.embeddings.create(model=model, input=t).usage.prompt_tokens for t in OTHERS)
    many = floats(daemon, model, input=[OTHERS[i % 4] for i in range(40)])
    assert many == [alone[i % 4] for i in range(40)]


def test_mean_is_of_all_rows(daemon, model):
    """A mean over two tokens, from the mean of the first alone and the second's row."""
    status, tokens = daemon.post("/tokenize", {"model": model, "prompt": TEXT})
    ids = tokens["tokens"]
    pair = floats(daemon, model, input=[ids[:1], ids[:2]])
    other = Daemon("--embedding-pooling", "last")
    try:
        last = floats(other, model, input=[ids[:1], ids[:2]])
    finally:
        assert other.stop() == 0
    assert last[0] == pair[0]
    for mean, first, second in zip(pair[1], last[0], last[1]):
        assert math.isclose(mean, (first + second) / 2, rel_tol=1e-5, abs_tol=1e-6)


def test_normalize_gives_unit_length(daemon, model):
    raw = floats(daemon, model, input=TEXT)[0]
    unit = floats(daemon, model, input=TEXT, normalize=True)[0]
    length = math.sqrt(sum(x * x for x in raw))
    assert abs(sum(x * x for x in unit) - 1) < 1e-5 and length > 1.5
    assert all(math.isclose(u, x / length, rel_tol=1e-5, abs_tol=1e-7) for u, x in zip(unit, raw))


def test_nulls_and_unknown_fields_change_nothing(daemon, model):
    plain = floats(daemon, model, input=TEXT)
    assert floats(daemon, model, input=TEXT, encoding_format=None, dimensions=None, user=None,
                  normalize=None, truncate_prompt_tokens=None, something_new=1) == plain
    assert floats(daemon, model, input=TEXT, user="me", dimensions=len(plain[0])) == plain


def test_truncate_keeps_the_end(daemon, model):
    status, tokens = daemon.post("/tokenize", {"model": model, "prompt": OTHERS[1]})
    ids = tokens["tokens"]
    assert floats(daemon, model, input=OTHERS[1], truncate_prompt_tokens=9) == \
        floats(daemon, model, input=ids[-9:])
    d = Daemon("--max-seq-len", "64")
    try:
        assert floats(d, model, input=ids[:67], truncate_prompt_tokens=-1) == \
            floats(d, model, input=ids[3:67])
        status, answer = d.post("/v1/embeddings", {"model": model, "input": ids[:65]})
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    finally:
        assert d.stop() == 0


@pytest.mark.parametrize("fields, status, param, code", [
    ({}, 400, "input", None),
    ({"input": None}, 400, "input", None),
    ({"input": ""}, 400, "input", None),
    ({"input": []}, 400, "input", None),
    ({"input": [[]]}, 400, "input", None),
    ({"input": ["a", ""]}, 400, "input", None),
    ({"input": ["a", [5]]}, 400, "input", None),
    ({"input": [5, "a"]}, 400, "input", None),
    ({"input": 7}, 400, "input", None),
    ({"input": {"a": 1}}, 400, "input", None),
    ({"input": [-1]}, 400, "input", None),
    ({"input": [99999999]}, 400, "input", None),
    ({"input": ["a"] * 2049}, 400, "input", None),
    ({"input": [5] * 100000}, 400, "input", "context_length_exceeded"),
    ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", None),
    ({"input": "a", "encoding_format": 3}, 400, "encoding_format", None),
    ({"input": "a", "dimensions": 3}, 400, "dimensions", "unsupported_value"),
    ({"input": "a", "dimensions": 0}, 400, "dimensions", "unsupported_value"),
    ({"input": "a", "dimensions": "3"}, 400, "dimensions", None),
    ({"input": "a", "user": 3}, 400, "user", None),
    ({"input": "a", "normalize": 3}, 400, "normalize", None),
    ({"input": "a", "priority": 3}, 400, "priority", None),
    ({"input": "a", "model": "no-such-model"}, 404, "model", "model_not_found"),
    ({"input": "a", "model": None}, 400, "model", None),
])
def test_refusals(daemon, model, fields, status, param, code):
    got, answer = daemon.post("/v1/embeddings", {"model": model, **fields})
    assert got == status, answer
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error") or \
        error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code), error


def test_the_sdk_raises(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=model, input=TEXT, dimensions=3)
    assert caught.value.param == "dimensions"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="no-such-model", input=TEXT)


def test_get_is_405(daemon):
    status, headers, data = daemon.get("/v1/embeddings")
    assert status == 405 and headers["allow"] == "POST"
    assert json.loads(data)["error"]["type"] == "invalid_request_error"


def test_off_is_refused_in_words(model):
    d = Daemon("--embedding-pooling", "off")
    try:
        status, answer = d.post("/v1/embeddings", {"model": model, "input": TEXT})
        assert status == 400 and answer["error"]["code"] == "unsupported_endpoint", answer
        assert d.post("/v1/completions", {"model": model, "prompt": TEXT, "max_tokens": 1})[0] == 200
    finally:
        assert d.stop() == 0


def test_more_inputs_than_the_configured(model):
    d = Daemon("--max-inputs", "3", "--embedding-normalize")
    try:
        assert len(floats(d, model, input=["a"] * 3)) == 3
        assert abs(sum(x * x for x in floats(d, model, input="a")[0]) - 1) < 1e-5
        status, answer = d.post("/v1/embeddings", {"model": model, "input": ["a"] * 4})
        assert status == 400 and answer["error"]["param"] == "input"
    finally:
        assert d.stop() == 0
