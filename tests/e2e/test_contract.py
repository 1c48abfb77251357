"""The fine print of the API: offsets, bytes, ids and lists that must agree with the text."""

import json
import os
import random
import shutil
import time

import pytest

from daemon import ROOT, Daemon

BOS, END = 0, 1  # special tokens of the demo model
BYTES = "é😀日本ñ€ß🎉Жя"  # characters that the demo model spells byte by byte


def complete(daemon, model, **fields):
    status, answer = daemon.post("/v1/completions", {"model": model, "max_tokens": 6, **fields})
    assert status == 200, answer
    return answer


def ids_of(daemon, text):
    answer = daemon.post("/tokenize", {"prompt": text, "add_special_tokens": False})[1]
    return answer["tokens"]


def joined(daemon, body):
    """The chunks of a stream put together as the choices of one answer, and its usage."""
    events = daemon.events("/v1/completions", {
        **body, "stream": True, "stream_options": {"include_usage": True}})
    choices = {}
    for event in events[:-2]:
        for c in event["choices"]:
            whole = choices.setdefault(c["index"], {"text": "", "token_ids": [], "logprobs": None})
            assert whole.get("finish_reason") is None, "a chunk behind the last one"
            whole["text"] += c["text"]
            whole["token_ids"] += c["token_ids"]
            whole["finish_reason"] = c["finish_reason"]
            whole["stop_reason"] = c.get("stop_reason")
            if "prompt_token_ids" in c:
                whole["prompt_token_ids"] = c["prompt_token_ids"]
            for key, values in (c["logprobs"] or {}).items():
                whole["logprobs"] = whole["logprobs"] or {}
                whole["logprobs"].setdefault(key, []).extend(values)
    return choices, events[-2]["usage"]


def check_logprobs(choice, k, echo):
    lists = choice["logprobs"]
    n = len(lists["tokens"])
    assert all(len(values) == n for values in lists.values())
    for i, (token, top) in enumerate(zip(lists["tokens"], lists["top_logprobs"])):
        if echo and i == 0:
            assert top is None and lists["token_logprobs"][0] is None
        else:
            assert token in top and len(top) <= k + 1
    offsets = lists["text_offset"]
    assert offsets == sorted(offsets)
    if "\ufffd" in choice["text"]:
        return  # broken characters have no one place
    for token, at in zip(lists["tokens"], offsets):
        if token.startswith(("bytes:", "<|")):
            continue
        here = choice["text"][at:at + len(token)]
        cut = choice["finish_reason"] == "stop" and token.startswith(here)
        assert here == token or cut, (token, at, choice["text"])


def random_body(rnd, daemon, model, byte_ids):
    prompts = ["The history of", "é😀 of the", "", [5, 6, 7], ["a", "The cat"], [[300], [400, 4]],
               [BOS, END, 50], "a<|end|>b", "<|endoftext|>x", byte_ids[:3], ["", "x "]]
    body = {"model": model, "prompt": rnd.choice(prompts), "max_tokens": rnd.choice([1, 5, 16]),
            "seed": rnd.choice([0, -1, 2**63 - 1, -2**63, 7]), "n": rnd.choice([1, 1, 3]),
            "temperature": rnd.choice([0, 1, 2]), "return_token_ids": True}
    if rnd.random() < 0.7:
        body["logprobs"] = rnd.choice([0, 1, 5])
    if rnd.random() < 0.5:
        body["echo"] = True
        body["max_tokens"] = rnd.choice([0, 5])
    if rnd.random() < 0.5:
        body["logit_bias"] = {str(i): 100 for i in [*byte_ids, BOS, END]}
    if rnd.random() < 0.5:
        body["stop"] = rnd.sample(["é", "\ufffd", "日", " ", "e", " of", "<|end|>", "\n", "the c"], 3)
    for name in ("ignore_eos", "include_stop_str_in_output"):
        if rnd.random() < 0.4:
            body[name] = True
    if rnd.random() < 0.3:
        body["skip_special_tokens"] = False
    if rnd.random() < 0.3:
        body["min_tokens"] = rnd.randint(0, body["max_tokens"])
    return body


@pytest.mark.parametrize("seed", range(4))
def test_streams_equal_answers_whatever_is_asked(daemon, model, seed):
    rnd = random.Random(seed)
    byte_ids = sorted(set(ids_of(daemon, BYTES)))
    for _ in range(12):
        body = random_body(rnd, daemon, model, byte_ids)
        answer = complete(daemon, **body)
        chunks, usage = joined(daemon, body)
        assert usage == answer["usage"], body
        assert usage["completion_tokens"] == sum(len(c["token_ids"]) for c in answer["choices"])
        assert len(chunks) == len(answer["choices"]), body
        for c in answer["choices"]:
            assert chunks[c["index"]] == {k: c[k] for k in chunks[c["index"]]}, body
            if "logprobs" in body:
                check_logprobs(c, body["logprobs"], body.get("echo"))


@pytest.mark.parametrize("prompt,skip,offsets", [
    ([BOS, END, 50], True, [0, 0, 0]),
    ([BOS, END, 50], False, [0, 13, 20]),
    ("<|endoftext|>x", True, [0, 0, 13]),  # the first is added and not echoed
    ("<|endoftext|>x", False, [0, 0, 13]),
    ("", True, [0]),
])
def test_offsets_follow_the_echo_over_special_tokens(daemon, model, prompt, skip, offsets):
    answer = complete(daemon, model, prompt=prompt, echo=True, logprobs=0, max_tokens=0,
                      skip_special_tokens=skip)
    assert answer["choices"][0]["logprobs"]["text_offset"] == offsets


def test_offsets_allow_for_the_space_in_front_of_every_text(tmp_path):
    """Tokenizers like Llama 2's put a space before the text, which the text does not show."""
    fixture = os.path.join(ROOT, "tests", "fixtures", "tokenizers", "llama2-prepend")
    shutil.copy(os.path.join(fixture, "tokenizer.json"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 4003, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float32",
        "bos_token_id": 1, "eos_token_id": 2}))
    d = Daemon("--weights", "random", "--served-model-name", "tiny", model=str(tmp_path))
    try:
        for prompt in ("Hello world", " Hello", "  x", " ", [1, *ids_of(d, "Hello world")]):
            answer = complete(d, "tiny", prompt=prompt, echo=True, logprobs=0, max_tokens=0)
            choice = answer["choices"][0]
            for token, at in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]):
                if token != "<s>" and at > 0:
                    assert choice["text"][at:at + len(token)] == token, (prompt, choice)
    finally:
        assert d.stop() == 0


def test_offsets_stand_still_over_skipped_tokens(daemon, model):
    forced = {"prompt": "x", "logprobs": 0, "ignore_eos": True, "logit_bias": {str(END): 100}}
    hidden = complete(daemon, model, **forced)["choices"][0]
    assert hidden["text"] == "" and hidden["logprobs"]["text_offset"] == [0] * 6
    shown = complete(daemon, model, **forced, skip_special_tokens=False)["choices"][0]
    assert shown["logprobs"]["text_offset"] == [7 * i for i in range(6)]


@pytest.mark.parametrize("skip", [True, False])
def test_chat_bytes_spell_the_text_over_special_tokens(daemon, model, skip):
    bias = {str(i): 100 for i in [*ids_of(daemon, "é€"), BOS, END]}
    for seed in range(6):
        for ends in ({"ignore_eos": True}, {"include_stop_str_in_output": True}, {}):
            status, answer = daemon.post("/v1/chat/completions", {
                "model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 8,
                "logprobs": True, "logit_bias": bias, "seed": seed, "skip_special_tokens": skip,
                **ends})
            assert status == 200, answer
            choice = answer["choices"][0]
            spelt = b"".join(bytes(t["bytes"]) for t in choice["logprobs"]["content"])
            assert spelt.decode(errors="replace") == choice["message"]["content"]


def test_chat_has_prompt_ids_and_logprobs_beside_its_choices(daemon, model):
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "n": 2,
            "return_token_ids": True}
    status, answer = daemon.post("/v1/chat/completions", {**body, "prompt_logprobs": 1})
    assert status == 200, answer
    ids = daemon.post("/tokenize", {"messages": body["messages"]})[1]["tokens"]
    assert answer["prompt_token_ids"] == ids
    assert len(answer["prompt_logprobs"]) == len(ids) and answer["prompt_logprobs"][0] is None
    assert all(set(c) == {"index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids"}
               for c in answer["choices"])
    events = daemon.events("/v1/chat/completions", {**body, "stream": True})[:-1]
    assert [e["prompt_token_ids"] for e in events if "prompt_token_ids" in e] == [ids, ids]
    assert not any("prompt_token_ids" in c for e in events for c in e["choices"])


def test_prompt_logprobs_are_as_many_as_asked_for(daemon, model):
    answer = complete(daemon, model, prompt="hi there", echo=True, logprobs=5, prompt_logprobs=1)
    choice = answer["choices"][0]
    assert all(len(entry) <= 2 for entry in choice["prompt_logprobs"][1:])
    assert all(len(entry) >= 5 for entry in choice["logprobs"]["top_logprobs"][1:])


def test_scoring_as_evaluation_harnesses_do_it(daemon, model):
    """Batches of token arrays, echoed with their logprobs, one token more than needed."""
    prompts = [ids_of(daemon, t) for t in ("The history of the world is", "Once", "x y z")]
    answer = complete(daemon, model, prompt=prompts, echo=True, logprobs=1, max_tokens=1,
                      temperature=0, seed=1234)
    for prompt, choice in zip(prompts, sorted(answer["choices"], key=lambda c: c["index"])):
        lists = choice["logprobs"]
        assert len(lists["token_logprobs"]) == len(prompt) + 1
        assert all(v <= 0 for v in lists["token_logprobs"][1:])
        check_logprobs(choice, 1, True)


def test_ends_of_ranges_are_taken(daemon, model):
    likeliest = complete(daemon, model, prompt="The", temperature=0)["choices"][0]["text"]
    nucleus = complete(daemon, model, prompt="The", temperature=1, top_p=1e-6, seed=3)
    assert nucleus["choices"][0]["text"] == likeliest
    empty, null = (complete(daemon, model, prompt=p, temperature=0) for p in ("", None))
    assert null["choices"][0]["text"] == empty["choices"][0]["text"]
    assert null["usage"] == empty["usage"]
    status, answer = daemon.post("/v1/completions", {
        "model": model, "prompt": "x", "repetition_penalty": 1e-9})
    assert status == 400 and answer["error"]["param"] == "repetition_penalty"


@pytest.mark.parametrize("prompt", [[1, 2], ["a"], [[1]], 5])
def test_tokenize_takes_one_string(daemon, prompt):
    status, answer = daemon.post("/tokenize", {"prompt": prompt})
    assert status == 400 and answer["error"]["param"] == "prompt"


def test_text_that_cannot_fit_is_refused_without_tokenizing_it(daemon, model):
    """8 MB of spaces took a core half a minute to count."""
    for path, body in (("/v1/completions", {"prompt": " " * 8_000_000}),
                       ("/v1/completions", {"prompt": ["x", "a" * 8_000_000]}),
                       ("/v1/chat/completions", {
                           "messages": [{"role": "user", "content": "ab " * 3_000_000}]})):
        began = time.monotonic()
        status, answer = daemon.post(path, {"model": model, **body})
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
        assert "bytes" in answer["error"]["message"]
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PUT"])
def test_a_path_that_is_switched_off_is_not_there(daemon, method):
    status, headers, data = daemon.request(method, "/debug/state")
    assert status == 404 and "allow" not in headers
    assert method == "HEAD" or set(json.loads(data)["error"]) == {"message", "type", "param", "code"}


ALLOWED = {"/v1/completions": "POST", "/v1/chat/completions": "POST", "/tokenize": "POST",
           "/detokenize": "POST", "/v1/models": "GET, HEAD", "/health": "GET, HEAD",
           "/version": "GET, HEAD", "/metrics": "GET, HEAD"}


@pytest.mark.parametrize("path", ALLOWED)
def test_other_methods_are_405_with_allow(daemon, path):
    for method in ("GET", "POST", "OPTIONS", "DELETE", "TRACE"):
        if method in ALLOWED[path]:
            continue
        status, headers, data = daemon.request(method, path)
        assert status == 405 and headers["allow"] == ALLOWED[path]
        assert json.loads(data)["error"]["type"] == "invalid_request_error"


def test_prompts_and_words_hold_no_nul(daemon, model):
    content = [{"type": "text", "text": "a\0b"}]
    for path, body, param in (
            ("/v1/completions", {"prompt": "a\0b"}, "prompt"),
            ("/v1/completions", {"prompt": ["a", "\0"]}, "prompt"),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a\0b"}]}, "messages"),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}, "messages"),
            ("/tokenize", {"prompt": "a\0b"}, "prompt")):
        status, answer = daemon.post(path, {"model": model, **body})
        assert status == 400 and answer["error"]["param"] == param, (path, body, answer)
        assert "U+0000" in answer["error"]["message"]
    for field, value in (("stop", "a\0"), ("cache_salt", "a\0"), ("bad_words", ["\0"]), ("structured_outputs", {"regex": "\0"})):
        status, answer = daemon.post("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1, field: value})
        assert status == 400 and answer["error"]["param"] == field, (field, answer)
    assert daemon.post("/v1/completions", {"model": model + "\0", "prompt": "a"})[0] == 404


def test_numbers_beyond_64_bits_are_ignored_where_nobody_reads_them(daemon, model):
    body = {"model": model, "prompt": "a", "max_tokens": 1}
    assert daemon.post("/v1/completions", {**body, "unknown": 10 ** 30})[0] == 200
    status, answer = daemon.post("/v1/completions", {**body, "seed": 10 ** 30})
    assert status == 400 and answer["error"]["param"] == "seed"
