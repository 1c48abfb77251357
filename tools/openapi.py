"""Writes server/openapi.json: what the daemon serves, for clients that go by a description.

Bounds are those of server/openai_params.c; tests/e2e/test_openapi.py holds the two together. The
daemon adds the model's own bound to TokenId.
Run from the repository root: python3 tools/openapi.py
"""
import json

MAX_INT = 2147483647


def ref(name):
    return {"$ref": f"#/components/schemas/{name}"}


def null(schema):
    return {"anyOf": [schema, {"type": "null"}]}


def integer(low, high=MAX_INT):
    return null({"type": "integer", "minimum": low, "maximum": high})


def number(low, high, open_low=False):
    return null({"type": "number", "exclusiveMinimum" if open_low else "minimum": low, "maximum": high})


def obj(required, properties, **more):
    """An object of a request: other members are ignored, but they must be JSON that we can read."""
    return {"type": "object", "required": required, "properties": properties,
            "propertyNames": {"pattern": NO_NUL}, "additionalProperties": ref("Json"), **more}


NO_NUL = "^[^\\u0000]*$"
BOOL = null({"type": "boolean"})
STRING = {"type": "string"}
WORD = {"type": "string", "pattern": NO_NUL}
WORDS = {"type": "string", "minLength": 1, "pattern": NO_NUL}
IDS = {"type": "array", "items": ref("TokenId")}
ANY_OBJECT = obj([], {})

SAMPLING = {
    "temperature": number(0, 2), "top_p": number(0, 1, True), "min_p": number(0, 1), "top_k": integer(-1),
    "repetition_penalty": number(0.00001, 10), "presence_penalty": number(-2, 2), "frequency_penalty": number(-2, 2),
    "seed": null({"type": "integer", "format": "int64"}), "n": integer(1, 128), "min_tokens": integer(0),
    "stop": null({"anyOf": [WORDS, {"type": "array", "maxItems": 4, "items": WORDS}]}),
    "stop_token_ids": null({**IDS, "maxItems": 64}),
    "logit_bias": null({"type": "object", "maxProperties": 1024,
                        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
    "stream": BOOL,
    "stream_options": null(obj([], {"include_usage": BOOL, "continuous_usage_stats": BOOL})),
    "ignore_eos": BOOL, "include_stop_str_in_output": BOOL, "skip_special_tokens": BOOL, "add_special_tokens": BOOL,
    "return_token_ids": BOOL, "return_tokens_as_token_ids": BOOL,
    "prompt_logprobs": integer(0, 20), "truncate_prompt_tokens": integer(-1),
    "allowed_token_ids": null({**IDS, "minItems": 1}),
    "bad_words": null({"type": "array", "maxItems": 64, "items": WORDS}),
    "priority": null({"type": "integer", "minimum": -MAX_INT - 1, "maximum": MAX_INT}),
    "cache_salt": null(WORDS), "user": null(STRING),
    "response_format": null(obj(["type"], {
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "json_schema": obj(["name"], {
            "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}, "schema": ANY_OBJECT,
            "strict": BOOL, "description": STRING})})),
    "structured_outputs": null(obj([], {
        "json": {"anyOf": [ANY_OBJECT, WORD]}, "regex": WORD, "grammar": WORD,
        "choice": {"type": "array", "minItems": 1, "items": WORDS}, "json_object": BOOL})),
}
PROMPT = null({"anyOf": [WORD, {**IDS, "minItems": 1}, {"type": "array", "minItems": 1, "items": WORD},
                         {"type": "array", "minItems": 1, "items": {**IDS, "minItems": 1}}]})
CALL = obj(["function"], {
    "id": null(STRING), "type": {"enum": ["function", None]}, "function": obj(["name", "arguments"], {
        "name": WORD, "arguments": STRING})})
CONTENT = {"anyOf": [WORD, {"type": "array", "items": obj(["type", "text"], {
    "type": {"const": "text"}, "text": WORD})}]}
CALLS = {"tool_calls": null({"type": "array", "items": CALL}), "tool_call_id": null(STRING), "name": null(STRING),
         "function_call": {"type": "null"}}
MESSAGE = {"anyOf": [
    obj(["role", "content"], {
        "role": {"enum": ["system", "developer", "user", "tool", "function"]}, "content": CONTENT, **CALLS}),
    obj(["role"], {"role": {"const": "assistant"}, "content": null(CONTENT), **CALLS})]}
TOOL = obj(["type", "function"], {"type": {"const": "function"}, "function": obj(["name"], {
    "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"}, "description": STRING,
    "parameters": null(ANY_OBJECT), "strict": BOOL})})
FINISH = {"enum": ["stop", "length", "tool_calls", None]}
USAGE = {"type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"], "properties": {
    "prompt_tokens": {"type": "integer"}, "completion_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"},
    "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": {"type": "integer"}}}}}


def answer(kind, choice):
    return {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"], "properties": {
        "id": STRING, "object": {"const": kind}, "created": {"type": "integer"}, "model": STRING,
        "system_fingerprint": null(STRING), "choices": {"type": "array", "items": choice}, "usage": ref("Usage")}}


MESSAGES = {"type": "array", "minItems": 1, "maxItems": 4096, "items": ref("Message")}
TEXTS = {"type": "array", "minItems": 1, "maxItems": 2048}
TEXT = WORDS

SCHEMAS = {
    "Json": {"anyOf": [
        {"type": ["null", "boolean", "number", "string"]}, {"type": "array", "items": ref("Json")},
        {"type": "object", "propertyNames": {"pattern": NO_NUL}, "additionalProperties": ref("Json")}]},
    "TokenId": {"type": "integer", "minimum": 0},
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"], "properties": {
            "message": STRING, "type": STRING, "param": null(STRING), "code": null(STRING)}}}},
    "Usage": USAGE,
    "CompletionRequest": obj(["model", "prompt"], {
        "model": STRING, "prompt": PROMPT, "max_tokens": integer(0), "best_of": integer(0, 20), "echo": BOOL,
        "logprobs": integer(0, 5), **SAMPLING}),
    "Completion": answer("text_completion", {
        "type": "object", "required": ["index", "text", "logprobs", "finish_reason"], "properties": {
            "index": {"type": "integer"}, "text": STRING, "finish_reason": FINISH,
            "logprobs": null({"type": "object", "required": ["tokens", "token_logprobs", "top_logprobs", "text_offset"]})}}),
    "ChatRequest": obj(["model", "messages"], {
        "model": STRING, "messages": MESSAGES,
        "max_tokens": integer(1), "max_completion_tokens": integer(1), "logprobs": BOOL, "top_logprobs": integer(0, 20),
        "tools": null({"type": "array", "maxItems": 128, "items": TOOL}),
        "tool_choice": null({"anyOf": [{"enum": ["none", "auto", "required"]}, obj(["type", "function"], {
            "type": {"const": "function"}, "function": obj(["name"], {"name": WORD})})]}),
        "parallel_tool_calls": BOOL, "add_generation_prompt": BOOL, **SAMPLING}),
    "Message": MESSAGE,
    "ChatCompletion": answer("chat.completion", {
        "type": "object", "required": ["index", "message", "logprobs", "finish_reason"], "properties": {
            "index": {"type": "integer"}, "finish_reason": FINISH, "logprobs": null({"type": "object"}),
            "message": {"type": "object", "required": ["role", "content"], "properties": {
                "role": {"const": "assistant"}, "content": null(STRING), "refusal": {"type": "null"},
                "tool_calls": {"type": "array", "items": CALL}}}}}),
    "EmbeddingRequest": obj(["model", "input"], {
        "model": STRING,
        "input": {"anyOf": [TEXT, {**IDS, "minItems": 1}, {**TEXTS, "items": TEXT},
                            {**TEXTS, "items": {**IDS, "minItems": 1}}]},
        "encoding_format": null({"enum": ["float", "base64"]}),
        "dimensions": null({"type": "integer", "minimum": 1, "description": "The model's own number, or absent."}),
        "normalize": BOOL,
        **{k: SAMPLING[k] for k in ("truncate_prompt_tokens", "add_special_tokens", "priority", "cache_salt", "user")}}),
    "EmbeddingList": {"type": "object", "required": ["object", "data", "model", "usage"], "properties": {
        "object": {"const": "list"}, "model": STRING,
        "data": {"type": "array", "items": {"type": "object", "required": ["object", "index", "embedding"], "properties": {
            "object": {"const": "embedding"}, "index": {"type": "integer", "minimum": 0},
            "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {
                "type": "string", "contentEncoding": "base64", "description": "Little-endian f32."}]}}}},
        "usage": {"type": "object", "required": ["prompt_tokens", "total_tokens"], "properties": {
            "prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}}}}},
    "Model": {"type": "object", "required": ["id", "object", "created", "owned_by"], "properties": {
        "id": STRING, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": STRING,
        "max_model_len": {"type": "integer"}}},
    "ModelList": {"type": "object", "required": ["object", "data"], "properties": {
        "object": {"const": "list"}, "data": {"type": "array", "items": ref("Model")}}},
    "TokenizeRequest": obj([], {
        "model": null(STRING), "prompt": null(WORD), "messages": null(MESSAGES),
        "add_special_tokens": BOOL, "add_generation_prompt": BOOL, "return_token_strs": BOOL},
        anyOf=[{"required": ["prompt"], "properties": {"prompt": WORD}},
               {"required": ["messages"], "properties": {"messages": {"type": "array"}}}]),
    "Tokens": {"type": "object", "required": ["count", "max_model_len", "tokens"], "properties": {
        "count": {"type": "integer"}, "max_model_len": {"type": "integer"}, "tokens": IDS}},
    "DetokenizeRequest": obj(["tokens"], {"model": null(STRING), "tokens": IDS}),
    "Text": {"type": "object", "required": ["prompt"], "properties": {"prompt": STRING}},
}


def body(schema):
    return {"content": {"application/json": {"schema": schema}}}


def responses(schema, stream=False, retry=False):
    good = body(schema)
    if stream:
        good["content"]["text/event-stream"] = {"schema": STRING}
    out = {"200": {"description": "The answer.", **good},
           "default": {"description": "What went wrong.", **body(ref("Error"))}}
    if retry:
        out["429"] = {"description": "The queue is full.", **body(ref("Error")), "headers": {
            "Retry-After": {"schema": {"type": "integer", "minimum": 1, "maximum": 60}}}}
    return out


def post(summary, request, schema, stream=False):
    runs_model = request not in ("TokenizeRequest", "DetokenizeRequest")
    return {"post": {"summary": summary, "requestBody": {"required": True, **body(ref(request))},
                     "responses": responses(ref(schema), stream, runs_model)}}


def get(summary, schema, parameters=None):
    return {"get": {"summary": summary, "responses": responses(schema), **(
        {"parameters": parameters} if parameters else {})}}


DESCRIPTION = {
    "openapi": "3.1.0",
    "info": {"title": "spand", "version": "1", "description": "OpenAI-compatible completions from one model."},
    "components": {"schemas": SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    "security": [{}, {"key": []}],
    "paths": {
        "/v1/completions": post("Complete prompts.", "CompletionRequest", "Completion", True),
        "/v1/chat/completions": post("Answer messages.", "ChatRequest", "ChatCompletion", True),
        "/v1/embeddings": post(
            "The mean of a text's hidden states, or the last one: embedding_pooling of the configuration.",
            "EmbeddingRequest", "EmbeddingList"),
        "/v1/models": get("The served model.", ref("ModelList")),
        "/v1/models/{id}": get("One model by its id.", ref("Model"), [
            {"name": "id", "in": "path", "required": True, "schema": STRING}]),
        "/tokenize": post("Text or messages to token ids.", "TokenizeRequest", "Tokens"),
        "/detokenize": post("Token ids to text.", "DetokenizeRequest", "Text"),
        "/version": get("The program's version.", {"type": "object"}),
        "/openapi.json": get("This description.", {"type": "object"}),
    },
}

if __name__ == "__main__":
    with open("server/openapi.json", "w") as f:
        json.dump(DESCRIPTION, f, indent=1, ensure_ascii=False)
        f.write("\n")
