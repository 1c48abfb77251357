"""Random JSON schemas at temperature 2: every answer that ends by itself is valid.

    tests/clients/run.sh structured [--schemas 500] [--streams 16] [--seed 1]

Prints counts, and exits with 1 when an answer is invalid or more than 5 % ran into max_tokens.
"""

import argparse
import collections
import concurrent.futures
import json
import random
import sys

import jsonschema

from daemon import Daemon

WORDS = ["name", "age", "city", "tags", "price", "unit", "id", "note", "größe", "a b", "x\"y", "items", "kind", "ok"]
FORMATS = ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"]
PATTERNS = ["^[a-z]{2,8}$", "^\\d{3}-\\d{4}$", "^(red|green|blue)$", "^[A-Z][a-z]+( [A-Z][a-z]+)?$", "^\\w{1,10}$",
            "^\"[^\"]{1,5}\"$"]


def string(r):
    kind = r.randrange(6)
    if kind == 0:
        return {"type": "string", "format": r.choice(FORMATS)}
    if kind == 1:
        return {"type": "string", "pattern": r.choice(PATTERNS)}
    if kind == 2:
        low = r.randrange(5)
        return {"type": "string", "minLength": low, "maxLength": low + r.randrange(20)}
    if kind == 3:
        return {"enum": r.sample(["red", "green", "blue", "ü", "a\"b", "", "two words"], r.randrange(1, 5))}
    return {"type": "string", "maxLength": r.choice([0, 5, 30, 60])}


def number(r):
    kind = r.randrange(7)
    if kind == 0:
        return {"type": "integer"}
    if kind == 1:
        low = r.randrange(-500, 500)
        return {"type": "integer", "minimum": low, "maximum": low + r.randrange(1000)}
    if kind == 2:
        return {"type": "integer", "exclusiveMinimum": r.randrange(-50, 50)}
    if kind == 3:
        return {"type": "integer", "multipleOf": r.choice([2, 3, 5, 7, 10, 25, 100]), "minimum": 0,
                "maximum": r.choice([100, 999, 5000])}
    if kind == 4:
        low = r.uniform(-100, 100)
        return {"type": "number", "minimum": low, "maximum": low + r.uniform(0.001, 200)}
    if kind == 5:
        return {"type": "number", "exclusiveMaximum": r.randrange(-5, 5)}
    return {"type": "number"}


def value(r, depth, refs):
    kind = r.randrange(10 if depth < 3 else 6)
    if kind < 2:
        return string(r)
    if kind < 4:
        return number(r)
    if kind == 4:
        return r.choice([{"type": "boolean"}, {"type": "null"}, {"const": r.choice([1, "x", None, True, [1, "a"]])}])
    if kind == 5:
        return {"anyOf": [string(r), number(r), {"type": "null"}]} if r.random() < 0.6 or not refs else {
            "$ref": "#/$defs/" + r.choice(refs)}
    if kind < 8:
        return obj(r, depth + 1, refs)
    if kind == 8:
        low = r.randrange(3)
        return {"type": "array", "items": value(r, depth + 1, refs), "minItems": low, "maxItems": low + r.randrange(4)}
    return {"type": "array", "prefixItems": [value(r, depth + 1, refs) for _ in range(r.randrange(1, 4))],
            "items": False}


def obj(r, depth, refs):
    names = r.sample(WORDS, r.randrange(1, 6))
    schema = {"type": "object", "properties": {n: value(r, depth, refs) for n in names},
              "required": [n for n in names if r.random() < 0.7], "additionalProperties": False}
    if r.random() < 0.1:
        schema["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 9}
    if r.random() < 0.2:
        schema.update(title="A title", description="What it is.")
    return schema


def random_schema(r):
    refs = ["point", "tree"] if r.random() < 0.3 else []
    schema = obj(r, 0, refs)
    if refs:
        schema["$defs"] = {
            "point": {"type": "object", "properties": {"x": number(r), "y": number(r)}, "required": ["x", "y"],
                      "additionalProperties": False},
            "tree": {"type": "object", "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 99},
                "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
                "required": ["value", "next"], "additionalProperties": False}}
    return schema


def ask(daemon, model, seed, schema, max_tokens):
    status, answer = daemon.post("/v1/completions", {
        "model": model, "prompt": "The record as JSON:\n", "max_tokens": max_tokens, "temperature": 2, "seed": seed,
        "response_format": {"type": "json_schema", "json_schema": {"name": "random", "schema": schema}}}, timeout=600)
    if status != 200:
        return "refused", answer["error"]["message"]
    choice = answer["choices"][0]
    if choice["finish_reason"] != "stop":
        return choice["finish_reason"], choice["text"]
    try:
        document = json.loads(choice["text"])
        jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(document)
    except (ValueError, jsonschema.ValidationError) as e:
        return "invalid", f"{choice['text']}\n{e}"
    return "valid", choice["text"]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--schemas", type=int, default=500)
    args.add_argument("--streams", type=int, default=16)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--max-tokens", type=int, default=2500)
    args = args.parse_args()
    r = random.Random(args.seed)
    schemas = [random_schema(r) for _ in range(args.schemas)]
    daemon = Daemon("--max-batch", str(args.streams), "--max-waiting", "2000")
    model = json.loads(daemon.get("/v1/models")[2])["data"][0]["id"]
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(args.streams) as pool:
        jobs = [pool.submit(ask, daemon, model, i, s, args.max_tokens) for i, s in enumerate(schemas)]
        for i, job in enumerate(jobs):
            outcome, text = job.result()
            counts[outcome] += 1
            if outcome not in ("valid", "length"):
                print(f"schema {i}: {outcome}\n{json.dumps(schemas[i])}\n{text}\n")
    daemon.stop()
    print(f"structured: {len(schemas)} schemas: " + ", ".join(f"{n} {k}" for k, n in sorted(counts.items())))
    bad = len(schemas) - counts["valid"] - counts["length"]
    return 1 if bad or counts["length"] > 0.05 * len(schemas) else 0


if __name__ == "__main__":
    sys.exit(main())
