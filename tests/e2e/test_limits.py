"""Deadlines and limits: slow clients, many clients, long requests, full queues."""

import contextlib
import json
import resource
import socket
import threading
import time

import pytest

from daemon import Daemon

GOOD = {"model": "demo-llama", "prompt": "The", "max_tokens": 2}


def post_bytes(body, *headers):
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def connect(daemon, limit_s=20):
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=limit_s)


@contextlib.contextmanager
def running(*flags, **kwargs):
    d = Daemon(*flags, **kwargs)
    try:
        yield d
        d.wait_idle()
    finally:
        code = d.stop()
    assert code == 0, d.output()


@pytest.fixture(scope="module")
def hasty():
    with running("--header-timeout-ms", "1000", "--body-timeout-ms", "1000", "--write-timeout-ms", "1000",
                 "--idle-timeout-ms", "1500", "--min-rate", "64KiB", "--request-timeout-ms", "1500") as d:
        yield d


def seconds_until_closed(s, trickle=b"", every_s=0.2):
    """Sends a byte now and then until the daemon has closed the connection."""
    began = time.monotonic()
    s.settimeout(every_s)
    for i in range(200):
        try:
            if s.recv(65536) == b"":
                break
        except TimeoutError:
            pass
        except ConnectionError:
            break
        try:
            s.sendall(trickle[i:i + 1])
        except OSError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize("first,trickle", [
    (b"", b""), (b"GET /hea", b""), (b"", b"GET /" + b"a" * 200), (b"GET / HTTP/1.1\r\nA: ", b"b" * 200),
    (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 40)])
def test_slow_headers_are_cut_at_the_deadline(hasty, first, trickle):
    with connect(hasty) as s:
        s.sendall(first)
        took = seconds_until_closed(s, trickle)
    assert 0.8 < took < 2.0, took


def test_a_slow_body_is_cut_at_the_deadline(hasty):
    with connect(hasty) as s:
        s.sendall(post_bytes(b"x" * 500)[:-480])
        took = seconds_until_closed(s, b"y" * 400)
    assert 0.8 < took < 2.0, took


def test_a_body_that_keeps_the_rate_may_take_longer(hasty):
    """1.4 s at 140 KB/s: more than the timeout, and the minimum rate gives 2 s more."""
    body = json.dumps({**GOOD, "padding": "x" * 200000}).encode()
    head = post_bytes(body)[:-len(body)]
    with connect(hasty) as s:
        s.sendall(head)
        for at in range(0, len(body), 14000):
            s.sendall(body[at:at + 14000])
            time.sleep(0.1)
        assert b" 200 " in s.recv(1000).split(b"\r\n")[0]


def test_a_chunk_extension_without_end_is_cut(hasty):
    """libmicrohttpd 0.9.75 rescans its full buffer for ever; others must be served meanwhile."""
    with connect(hasty) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;")
        try:
            s.sendall(b"e" * (1 << 20))
        except OSError:
            pass
        began = time.monotonic()
        assert hasty.get("/health")[0] == 200
        assert time.monotonic() - began < 1
        assert seconds_until_closed(s) < 3


def test_an_idle_connection_is_closed(hasty):
    with connect(hasty) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert s.recv(1000)
        took = seconds_until_closed(s)
    assert 1.2 < took < 2.6, took


def test_a_client_that_hardly_reads_is_cut_at_the_deadline():
    """A megabyte waits for it. A byte read now and then is no excuse."""
    with running("--write-timeout-ms", "1000", "--min-rate", "0") as d:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", d.port))
        s.settimeout(0.1)
        s.sendall(post_bytes({"model": "demo-llama", "prompt": "a b " * 400000}).replace(
            b"/v1/completions", b"/tokenize"))
        deadline = time.monotonic() + 40
        while d.gauge("spand_timeouts_total") == 0:
            assert time.monotonic() < deadline
            try:
                s.recv(1)
            except TimeoutError:
                pass
            time.sleep(0.1)
        s.close()


def test_a_request_has_its_time(hasty):
    began = time.monotonic()
    status, answer = hasty.post("/v1/completions", {**GOOD, "max_tokens": 8000, "ignore_eos": True})
    assert status == 408 and answer["error"]["code"] == "request_timeout"
    assert answer["error"]["type"] == "timeout_error"
    assert 1.3 < time.monotonic() - began < 4
    events = hasty.events("/v1/completions",
                          {**GOOD, "max_tokens": 8000, "ignore_eos": True, "stream": True})
    assert events[-2]["error"]["code"] == "request_timeout"
    hasty.wait_idle()


def test_connections_of_one_address_are_limited():
    with running("--max-connections-per-address", "20") as d:
        held = [connect(d) for _ in range(19)]
        extra = connect(d)
        assert d.gauge is not None
        more = connect(d)
        assert seconds_until_closed(more) < 2
        for s in [*held, extra]:
            s.close()
        deadline = time.monotonic() + 5
        while True:
            try:
                assert d.get("/health")[0] == 200
                break
            except (ConnectionError, OSError):
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_clients_beyond_the_limit_wait_and_are_then_served():
    with running("--max-connections", "8", "--max-connections-per-address", "0") as d:
        held = [connect(d) for _ in range(8)]
        time.sleep(0.3)
        late = connect(d)
        late.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        late.settimeout(0.5)
        with pytest.raises(TimeoutError):
            late.recv(100)
        held.pop().close()
        late.settimeout(10)
        assert b" 200 " in late.recv(1000)
        for s in [*held, late]:
            s.close()


def test_a_daemon_out_of_descriptors_recovers():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def lower():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with running("--max-connections-per-address", "0", preexec_fn=lower) as d:
        held = []
        for _ in range(100):
            held.append(connect(d))
        time.sleep(0.5)
        for s in held:
            s.close()
        deadline = time.monotonic() + 10
        while d.get("/health")[0] != 200:
            assert time.monotonic() < deadline
        assert d.post("/v1/completions", GOOD)[0] == 200
        assert any("cannot accept" in line for line in d.lines)
        assert sum("cannot accept" in line for line in d.lines) < 100


def test_a_full_queue_answers_429_with_retry_after():
    with running("--max-batch", "1", "--max-waiting", "2") as d:
        answers = []

        def ask():
            status, headers, data = d.request("POST", "/v1/completions", json.dumps(
                {**GOOD, "max_tokens": 60, "ignore_eos": True}))
            answers.append((status, headers.get("retry-after"), json.loads(data)))
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        refused = [a for a in answers if a[0] == 429]
        assert len(refused) == 5 and len(answers) == 8
        for _, retry_after, answer in refused:
            assert 1 <= int(retry_after) <= 60
            assert answer["error"]["code"] == "server_is_overloaded"


def test_queued_tokens_are_limited():
    with running("--max-batch", "1", "--max-waiting-tokens", "600") as d:
        first = connect(d)
        first.sendall(post_bytes({**GOOD, "max_tokens": 4000, "ignore_eos": True, "stream": True}))
        first.recv(100)
        second = connect(d)
        second.sendall(post_bytes({**GOOD, "prompt": [5] * 500}))
        deadline = time.monotonic() + 5
        while d.gauge("vllm:num_requests_waiting") != 1:
            assert time.monotonic() < deadline
        status, answer = d.post("/v1/completions", {**GOOD, "prompt": [5] * 200})
        assert status == 429 and "600" in answer["error"]["message"]
        first.close()
        assert b" 200 " in second.recv(1000)
        second.close()


def test_slow_clients_do_not_starve_others():
    """A hundred connections that trickle headers, bodies and reads; answers stay quick."""
    with running("--max-batch", "4") as d:
        slow = [connect(d) for _ in range(100)]
        for i, s in enumerate(slow):
            s.sendall([b"GET /", post_bytes(b"x" * 500)[:90], post_bytes(GOOD)][i % 3])
        began = time.monotonic()
        for i in range(20):
            for s in slow[i % 3::7]:
                try:
                    s.sendall(b"a")
                except OSError:
                    pass
            assert d.get("/health")[0] == 200
        assert d.post("/v1/completions", GOOD)[0] == 200
        assert time.monotonic() - began < 10
        for s in slow:
            s.close()
