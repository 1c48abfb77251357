"""What is not the SDK's business: raw HTTP, bad input, clients that leave."""

import json
import socket
import struct
import time

import pytest

PROMPT = "The history of"


def completion(**fields):
    return {"model": None, "prompt": PROMPT, "max_tokens": 4, **fields}


def ask(daemon, served_model, **fields):
    body = completion(**fields)
    if body["model"] is None:
        body["model"] = served_model
    return daemon.post("/v1/completions", body)


def check_error(answer):
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


# field values that are refused, and the field that the answer names
BAD_FIELDS = [
    ("temperature", -0.1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True),
    ("top_p", 0), ("top_p", -0.1), ("top_p", 1.1), ("top_p", []), ("n", 0), ("n", 129), ("n", 1.5), ("n", "2"),
    ("max_tokens", -1), ("max_tokens", "7"), ("max_tokens", 2**31), ("logprobs", -1), ("logprobs", 6),
    ("presence_penalty", -2.1), ("presence_penalty", 2.1), ("frequency_penalty", 3),
    ("stop", ""), ("stop", [""]), ("stop", ["a"] * 5), ("stop", 7), ("stop", [1]),
    ("logit_bias", {"abc": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"1": 101}),
    ("logit_bias", {"999999999": 1}), ("logit_bias", []), ("stream", "yes"), ("stream", 1),
    ("stream_options", {"include_usage": True}), ("echo", "no"), ("suffix", "x"), ("seed", "a"),
    ("seed", 1.5), ("min_p", 1.5), ("min_p", -0.5), ("top_k", -2), ("top_k", "5"),
    ("repetition_penalty", 0), ("repetition_penalty", -1), ("min_tokens", 9), ("min_tokens", -1),
    ("stop_token_ids", ["a"]), ("stop_token_ids", 3), ("ignore_eos", "yes"),
    ("prompt", []), ("prompt", [[]]), ("prompt", [1, "a"]), ("prompt", [[1], "a"]), ("prompt", {}),
    ("prompt", 5), ("prompt", [-1]), ("prompt", [10**9]), ("prompt", [1.5]), ("prompt", [True]),
    ("best_of", 21), ("best_of", -1),
]


@pytest.mark.parametrize("field,value", BAD_FIELDS, ids=lambda v: repr(v)[:24])
def test_bad_field_is_400_and_named(daemon, model, field, value):
    status, answer = ask(daemon, model, **{field: value})
    assert status == 400, answer
    error = check_error(answer)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field or field in error["message"]


def test_nulls_are_defaults(daemon, model):
    nulls = dict.fromkeys(["temperature", "top_p", "n", "stream", "logprobs", "echo", "stop", "seed",
                           "presence_penalty", "frequency_penalty", "logit_bias", "suffix",
                           "stream_options", "best_of", "user", "top_k", "min_p"])
    status, answer = ask(daemon, model, **nulls)
    assert status == 200, answer
    assert ask(daemon, model, stop=[], max_tokens=4.0, no_such_field={"x": [1]})[0] == 200


BAD_BODIES = [b"", b"null", b"[]", b'"x"', b"1", b"{", b'{"model"', b"{}x", b"\xef\xbb\xbf{}",
              b'{"model": "\xff"}', b'{"model": "\\ud800"}', b"[" * 100000, b'{"a":' * 5000,
              b'{"model":"m","model":"n","prompt":"x"}', b'{"prompt":"x","max_tokens":1e400}']


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda b: repr(b[:16]))
def test_bad_json_is_400(daemon, body):
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
        status, answer = daemon.post(path, body)
        assert status == 400, (path, answer)
        check_error(answer)


def test_every_truncation_of_a_body_is_400(daemon, model):
    body = json.dumps(completion(model=model, stop=["é", "b"], logit_bias={"5": -1})).encode()
    for n in range(len(body)):
        status, answer = daemon.post("/v1/completions", body[:n])
        assert status == 400, body[:n]
        check_error(answer)


def test_unknown_model_and_route(daemon, model):
    status, answer = ask(daemon, model, model="nope")
    assert status == 404 and check_error(answer)["code"] == "model_not_found"
    status, headers, data = daemon.get("/v1/nothing")
    assert status == 404 and headers["content-type"].startswith("application/json")
    check_error(json.loads(data))
    status, headers, data = daemon.request("DELETE", "/v1/completions")
    assert status == 405 and "POST" in headers["allow"]
    check_error(json.loads(data))


def test_body_too_large_is_413(daemon):
    status, headers, data = daemon.request(
        "POST", "/v1/completions", b"", {"Content-Length": str(1 << 40)})
    assert status == 413
    check_error(json.loads(data))


def test_prompt_at_and_over_the_context(daemon, model):
    info = json.loads(daemon.get("/v1/models")[2])["data"][0]
    limit = info["max_model_len"]
    over = daemon.post("/v1/completions", completion(model=model, prompt=[5] * limit, max_tokens=1))
    assert over[0] == 400
    error = check_error(over[1])
    assert error["code"] == "context_length_exceeded" and str(limit) in error["message"]
    status, answer = daemon.post(
        "/v1/completions", completion(model=model, prompt=[5] * (limit - 1), max_tokens=1))
    assert status == 200 and answer["usage"]["completion_tokens"] == 1


def test_request_id_on_every_answer(daemon, model):
    for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("GET", "/nope")):
        assert daemon.request(method, path)[1]["x-request-id"]


def test_health_version_metrics(daemon):
    assert daemon.get("/health")[0] == 200
    assert json.loads(daemon.get("/version")[2])["version"]
    status, headers, _ = daemon.get("/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    names = {key.split("{")[0] for key in daemon.metrics()}
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting",
                 "vllm:kv_cache_usage_perc", "vllm:cache_config_info"):
        assert name in names
    assert any(name.startswith("spand_") for name in names)


def test_tokenize_round_trip(daemon, model):
    text = "Grüße, 世界! 👩‍👩‍👧 \t  tabs\n"
    status, answer = daemon.post("/tokenize", {"model": model, "prompt": text})
    assert status == 200 and answer["count"] == len(answer["tokens"])
    status, back = daemon.post("/detokenize", {"model": model, "tokens": answer["tokens"]})
    assert status == 200 and back["prompt"].endswith(text)


def test_streamed_events(daemon, model):
    events = daemon.events("/v1/completions", completion(
        model=model, stream=True, max_tokens=8, stream_options={"include_usage": True},
        return_token_ids=True))
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] <= 8
    ids = [t for e in events[:-2] for t in e["choices"][0].get("token_ids") or []]
    assert len(ids) == events[-2]["usage"]["completion_tokens"]
    assert events[0]["choices"][0]["prompt_token_ids"]
    assert all(e["usage"] is None for e in events[:-2])


def open_stream(daemon, model, stream=True, max_tokens=3000):
    """A raw connection with a long request under way."""
    body = json.dumps(completion(model=model, max_tokens=max_tokens, stream=stream,
                                 ignore_eos=True)).encode()
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return s


def wait_running(daemon, n):
    deadline = time.monotonic() + 10
    while daemon.gauge("vllm:num_requests_running") != n:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_frees_its_slot(daemon, model, stream, how):
    s = open_stream(daemon, model, stream)
    wait_running(daemon, 1)
    if stream:
        s.recv(100)
    if how == "reset":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left = time.monotonic()
    s.close()
    daemon.wait_idle(2)
    assert time.monotonic() - left < 1.0  # 100 ms to notice, two steps, and our polling


def test_half_closed_client_is_answered_unless_it_streams(daemon, model):
    s = open_stream(daemon, model, stream=False, max_tokens=20)
    s.shutdown(socket.SHUT_WR)
    data = b""
    while chunk := s.recv(65536):
        data += chunk
    # The daemon probes a half-closed connection with an interim answer before the real one.
    final = data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert b" 200 " in final.split(b"\r\n")[0]
    s.close()
    s = open_stream(daemon, model, stream=True)
    s.recv(100)
    s.shutdown(socket.SHUT_WR)
    daemon.wait_idle(2)
    s.close()


def test_a_reader_that_never_reads_blocks_nobody(daemon, model):
    s = open_stream(daemon, model, stream=True, max_tokens=2000)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wait_running(daemon, 1)
    status, answer = ask(daemon, model, max_tokens=8)
    assert status == 200
    s.close()


def test_disconnect_at_every_byte_of_the_request(daemon, model):
    body = json.dumps(completion(model=model)).encode()
    request = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
               + body)
    for n in range(0, len(request), 3):
        with socket.create_connection(("127.0.0.1", daemon.port)) as s:
            s.sendall(request[:n])
    assert ask(daemon, model)[0] == 200


@pytest.mark.parametrize("head", [
    b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Host: y\r\nContent-Length: 2\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Authorization: a\r\nAuthorization: b\r\nContent-Length: 2\r\n"])
def test_requests_that_invite_smuggling_are_refused(daemon, head):
    with socket.create_connection(("127.0.0.1", daemon.port)) as s:
        s.settimeout(5)
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n{}   ")
        answer = s.recv(65536)
    assert answer == b"" or answer.split()[1] in (b"400", b"413", b"431", b"501"), answer
    assert daemon.get("/health")[0] == 200


def test_compressed_body_is_415(daemon):
    status, _, data = daemon.request("POST", "/v1/completions", b"xx",
                                     {"Content-Encoding": "gzip", "Content-Type": "application/json"})
    assert status == 415
    check_error(json.loads(data))


def test_content_type_may_be_missing(daemon, model):
    body = json.dumps(completion(model=model)).encode()
    assert daemon.request("POST", "/v1/completions", body)[0] == 200
    assert daemon.request("POST", "/v1/completions", body, {"Content-Type": "text/plain"})[0] == 200
