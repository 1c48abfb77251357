"""The log: one line a request, nothing of what was said unless asked, and no forged lines."""

import json
import socket
import time

from daemon import Daemon

SECRET = "the secret of the lighthouse"


def ask(d, **fields):
    return d.post("/v1/completions", {"model": "demo-llama", "prompt": SECRET, "max_tokens": 5,
                                      "ignore_eos": True, **fields})


def lines_with(d, text, n=1, limit_s=10):
    deadline = time.monotonic() + limit_s
    while len(found := [line for line in d.lines if text in line]) < n:
        assert time.monotonic() < deadline, d.output()
        time.sleep(0.02)
    return found


def test_one_json_line_a_request():
    d = Daemon("--log-format", "json")
    try:
        assert ask(d)[0] == 200
        assert ask(d, temperature=9)[0] == 400
        d.request("GET", "/nothing", headers={"X-Request-Id": "mine-1"})
        entry = json.loads(lines_with(d, '"completion_tokens":5')[0])
        assert entry["event"] == "request" and entry["status"] == 200 and entry["finish"] == "length"
        assert entry["method"] == "POST" and entry["path"] == "/v1/completions" and entry["key"] == "-"
        assert entry["id"].startswith("req-") and entry["prompt_tokens"] > 1
        assert 0 < entry["ttft_ms"] <= entry["ms"]
        assert json.loads(lines_with(d, "mine-1")[0])["status"] == 404
        assert json.loads(lines_with(d, '"status":400')[0])["event"] == "request"
        assert SECRET not in d.output()
    finally:
        assert d.stop() == 0


def test_prompts_are_logged_when_asked_for():
    d = Daemon("--log-prompts")
    try:
        assert ask(d, stop=["a\nforged line\r\n\x1b[31m"])[0] == 200
        line = lines_with(d, SECRET)[0]
        assert "asked" in line and "\x1b" not in line
        assert not any(text.startswith("forged") for text in d.lines)
        body = {"model": "demo-llama", "prompt": "x", "max_tokens": 1, "user": "é" * 5000}
        assert d.post("/v1/completions", json.dumps(body, ensure_ascii=False))[0] == 200
        assert len(lines_with(d, "éé")[0].encode()) < 3000
    finally:
        assert d.stop() == 0


def test_paths_and_ids_cannot_forge_lines(daemon):
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as s:
        s.sendall(b"GET /x\x1b[2J\x07%0aforged HTTP/1.1\r\nHost: x\r\nX-Request-Id: a b=c\"\r\n\r\n")
        s.recv(1000)
    line = lines_with(daemon, "forged")[-1]
    assert "\x1b" not in line and "\x07" not in line and 'id=req-' in line
