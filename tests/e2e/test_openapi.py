"""The served description: valid, equal to the committed file but for token ids, and true of real answers."""

import json
import os

import jsonschema

from daemon import ROOT


def test_it_is_the_committed_file(daemon):
    with open(os.path.join(ROOT, "server", "openapi.json")) as f:
        committed = json.load(f)
    status, headers, data = daemon.get("/openapi.json")
    assert status == 200 and headers["content-type"] == "application/json"
    served = json.loads(data)
    token_id = served["components"]["schemas"]["TokenId"]
    most = token_id.pop("maximum")
    assert daemon.post("/detokenize", {"tokens": [most]})[0] == 200
    assert daemon.post("/detokenize", {"tokens": [most + 1]})[0] == 400
    assert served == committed


def test_answers_are_as_described(daemon, model):
    description = json.loads(daemon.get("/openapi.json")[2])

    def check(name, value):
        schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    text = {"model": model, "prompt": "The", "max_tokens": 2, "logprobs": 1}
    chat = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    check("CompletionRequest", text)
    check("ChatRequest", chat)
    check("Completion", daemon.post("/v1/completions", text)[1])
    check("ChatCompletion", daemon.post("/v1/chat/completions", chat)[1])
    embedding = {"model": model, "input": ["The", "Hi"]}
    check("EmbeddingRequest", embedding)
    check("EmbeddingList", daemon.post("/v1/embeddings", embedding)[1])
    check("Error", daemon.post("/v1/completions", {})[1])
    check("ModelList", json.loads(daemon.get("/v1/models")[2]))
    check("Tokens", daemon.post("/tokenize", {"model": model, "prompt": "Hi"})[1])
    check("Text", daemon.post("/detokenize", {"model": model, "tokens": [5]})[1])


def test_bounds_are_those_that_are_checked(daemon, model):
    """One step beyond each bound of the description is refused, the bound itself is not for its range."""
    properties = json.loads(daemon.get("/openapi.json")[2])["components"]["schemas"]["CompletionRequest"]["properties"]
    n = 0
    for name, schema in properties.items():
        for option in schema.get("anyOf", []):
            for key, step in (("minimum", -1), ("maximum", 1)):
                if option.get("type") not in ("integer", "number") or key not in option:
                    continue
                status, answer = daemon.post("/v1/completions", {
                    "model": model, "prompt": "x", "max_tokens": 1, name: option[key] + step})
                assert status == 400 and answer["error"]["param"] == name, (name, key, answer)
                n += 1
    assert n > 25
