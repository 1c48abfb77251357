"""Spans by OTLP/HTTP, told to a small collector that checks them against OpenTelemetry's own messages."""

import base64
import http.server
import json
import os
import re
import socket
import threading
import time

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from daemon import Daemon, run

GOOD = {"model": "demo-llama", "prompt": "The", "max_tokens": 4, "ignore_eos": True}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes posts; `answers` are used up first: a status, or a number of seconds to say nothing for."""

    def __init__(self, body=b"{}"):
        self.spans, self.requests, self.answers = [], [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, dict(self.headers)))
                answer = outer.answers.pop(0) if outer.answers else 200
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = 200
                if answer == 200:
                    outer.spans += outer.parse(data)
                self.send_response(answer)
                if answer == 503:
                    self.send_header("Retry-After", "1")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def parse(data):
        """Every field must be one of the protocol's. OTLP writes ids in hex, protobuf's JSON in base64."""
        text = re.sub(r'"(traceId|spanId|parentSpanId)":"([0-9a-f]+)"', lambda m: '"%s":"%s"' % (
            m[1], base64.b64encode(bytes.fromhex(m[2])).decode()), data.decode())
        request = json_format.Parse(text, ExportTraceServiceRequest())
        (resource,) = request.resource_spans
        named = {a.key: a.value for a in resource.resource.attributes}
        assert named["service.name"].string_value and named["service.version"].string_value
        (scope,) = resource.scope_spans
        assert scope.scope.name == "spand"
        return list(scope.spans)

    def wait(self, n, limit_s=15):
        deadline = time.monotonic() + limit_s
        while len(self.spans) < n:
            assert time.monotonic() < deadline, f"{len(self.spans)} spans of {n}"
            time.sleep(0.02)
        return self.spans

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def attributes(span):
    values = {}
    for a in span.attributes:
        kind = a.value.WhichOneof("value")
        value = getattr(a.value, kind)
        values[a.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    assert len(values) == len(span.attributes)  # no key twice
    return values


def wait_gauge(d, name, least, limit_s=15):
    """The collector knows before the daemon has read its answer."""
    deadline = time.monotonic() + limit_s
    while d.gauge(name) < least:
        assert time.monotonic() < deadline, d.gauge(name)
        time.sleep(0.02)
    return d.gauge(name)


@pytest.fixture
def collector():
    c = Collector()
    yield c
    c.close()


@pytest.fixture
def traced(collector):
    d = Daemon("--otlp-traces-endpoint", collector.url, "--self-test-ms", "0", "--max-batch", "16")
    yield d
    assert d.stop() == 0, d.output()


def post(d, body, headers=None, path="/v1/completions"):
    return d.request("POST", path, json.dumps(body).encode(),
                     {"Content-Type": "application/json", **(headers or {})})


def test_a_request_gives_its_spans(collector, traced):
    before = time.time_ns()
    status, headers, data = post(traced, {**GOOD, "seed": 7, "top_p": 0.5}, {"X-Request-Id": "mine"})
    assert status == 200
    spans = {s.name: s for s in collector.wait(4)}
    assert set(spans) == {"text_completion demo-llama", "queue", "prefill", "decode"}
    root = spans["text_completion demo-llama"]
    assert headers["traceparent"] == f"00-{root.trace_id.hex()}-{root.span_id.hex()}-01"
    assert root.kind == 2 and not root.parent_span_id and root.status.code == 0
    for name in ("queue", "prefill", "decode"):
        assert spans[name].trace_id == root.trace_id and spans[name].parent_span_id == root.span_id
        assert spans[name].kind == 1 and attributes(spans[name])["spand.choice.index"] == 0
    assert len({s.span_id for s in spans.values()}) == 4
    order = [root.start_time_unix_nano, spans["queue"].start_time_unix_nano,
             spans["queue"].end_time_unix_nano, spans["prefill"].end_time_unix_nano,
             spans["decode"].end_time_unix_nano, root.end_time_unix_nano]
    assert order == sorted(order)
    assert spans["queue"].end_time_unix_nano == spans["prefill"].start_time_unix_nano
    assert spans["prefill"].end_time_unix_nano == spans["decode"].start_time_unix_nano
    assert abs(root.start_time_unix_nano - before) < 2e9
    got, usage = attributes(root), json.loads(data)["usage"]
    assert got["gen_ai.operation.name"] == "text_completion"
    assert got["gen_ai.request.model"] == got["gen_ai.response.model"] == "demo-llama"
    assert got["gen_ai.request.id"] == "mine" and got["gen_ai.request.max_tokens"] == 4
    assert got["gen_ai.request.temperature"] == 1 and got["gen_ai.request.top_p"] == 0.5
    assert got["gen_ai.request.seed"] == 7 and got["gen_ai.request.n"] == 1
    assert got["gen_ai.usage.prompt_tokens"] == got["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert got["gen_ai.usage.completion_tokens"] == got["gen_ai.usage.output_tokens"] == 4
    assert got["gen_ai.response.finish_reasons"] == ["length"]
    assert got["http.response.status_code"] == 200 and got["http.route"] == "/v1/completions"
    latency = {k.split(".")[-1]: v for k, v in got.items() if k.startswith("gen_ai.latency.")}
    assert set(latency) == {"time_in_queue", "time_to_first_token", "e2e", "time_in_model_prefill",
                            "time_in_model_decode", "time_in_model_inference"}
    assert abs(latency["time_in_model_inference"] - latency["time_in_model_prefill"]
               - latency["time_in_model_decode"]) < 1e-6
    assert 0 < latency["time_to_first_token"] <= latency["e2e"] < 60
    assert attributes(spans["decode"])["gen_ai.usage.completion_tokens"] == 4
    assert attributes(spans["prefill"])["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
    path, sent = collector.requests[0]
    assert path == "/v1/traces" and sent["Content-Type"] == "application/json"
    assert wait_gauge(traced, "spand_trace_spans_sent_total", 4) == 4
    assert traced.gauge("spand_trace_spans_dropped_total") == 0
    line = [x for x in traced.lines if "id=mine" in x][0]
    assert f"traceparent={headers['traceparent']}" in line


def test_nothing_that_was_said_is_in_them(collector, traced):
    post(traced, {"model": "demo-llama", "max_tokens": 2, "user": "their-name",
                  "messages": [{"role": "user", "content": "my-secret-word"}]}, path="/v1/chat/completions")
    text = str(collector.wait(4))
    assert "secret" not in text and "their-name" not in text and "chat demo-llama" in text


def test_a_callers_trace_goes_on(collector, traced):
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7"}
    status, headers, _ = post(traced, GOOD, sent)
    assert headers["traceparent"].split("-")[1] == TRACE and headers["traceparent"].split("-")[2] != PARENT
    spans = collector.wait(4)
    assert {s.trace_id.hex() for s in spans} == {TRACE}
    assert {s.trace_state for s in spans} == {"congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"}
    assert [s.parent_span_id.hex() for s in spans if s.kind == 2] == [PARENT]


def test_a_caller_decides_what_is_sampled(collector, traced):
    status, headers, _ = post(traced, GOOD, {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert status == 200 and "traceparent" not in headers
    post(traced, GOOD)
    assert TRACE not in {s.trace_id.hex() for s in collector.wait(4)}


def test_a_malformed_parent_begins_a_new_trace(collector, traced):
    post(traced, GOOD, {"traceparent": f"00-{TRACE.upper()}-{PARENT}-01", "tracestate": "a=b"})
    (root,) = [s for s in collector.wait(4) if s.kind == 2]
    assert root.trace_id.hex() != TRACE and not root.parent_span_id and not root.trace_state


def test_choices_failures_and_clients_that_leave(collector, traced):
    post(traced, {**GOOD, "n": 2, "stream": True})
    names = sorted(s.name for s in collector.wait(7))
    assert names == sorted(["text_completion demo-llama"] + ["queue", "prefill", "decode"] * 2)
    collector.spans.clear()
    assert post(traced, {**GOOD, "max_tokens": -1})[0] == 400
    (refused,) = collector.wait(1)
    assert attributes(refused)["http.response.status_code"] == 400
    assert attributes(refused)["error.type"] == "400" and refused.status.code == 0
    collector.spans.clear()
    body = json.dumps({**GOOD, "max_tokens": 4000, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", traced.port)) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert s.recv(1000)
    spans = {s.name: s for s in collector.wait(4)}
    left = attributes(spans["text_completion demo-llama"])
    assert left["http.response.status_code"] == 499
    assert left["gen_ai.response.finish_reasons"] == ["abort"]
    assert attributes(spans["decode"])["spand.finish_reason"] == "abort"


def test_a_busy_collector_is_asked_again(collector, traced):
    collector.answers = [503, 503]
    post(traced, GOOD)
    collector.wait(4)
    time.sleep(1.5)  # and not once too often
    assert len(collector.spans) == 4 and len(collector.requests) == 3
    assert traced.gauge("spand_trace_posts_failed_total") == 2
    assert traced.gauge("spand_trace_spans_dropped_total") == 0
    assert sum("does not take them: status 503" in x for x in traced.lines) == 1


def test_what_a_collector_refuses_is_counted(tmp_path):
    c = Collector(b'{"partialSuccess":{"rejectedSpans":"3","errorMessage":"too many"}}')
    key = tmp_path / "headers"
    key.write_text("# for the collector\nAuthorization: Bearer abc\nX-Scope: one\n")
    d = Daemon("--otlp-traces-endpoint", c.url, "--otlp-headers-file", str(key), "--self-test-ms", "0")
    try:
        post(d, GOOD)
        c.wait(4)
        assert wait_gauge(d, "spand_trace_spans_sent_total", 1) == 1
        assert d.gauge("spand_trace_spans_dropped_total") == 3
        assert c.requests[0][1]["Authorization"] == "Bearer abc" and c.requests[0][1]["X-Scope"] == "one"
        c.answers = [400]
        post(d, GOOD)
        assert wait_gauge(d, "spand_trace_spans_dropped_total", 7) == 7
        assert len(c.requests) == 2  # there is no use in asking again
    finally:
        assert d.stop() == 0
        c.close()


def test_a_silent_collector_holds_nobody_up(collector):
    """More spans than the queue holds: the rest is dropped, requests and the stop are as quick as ever."""
    collector.answers = [30.0] * 99
    d = Daemon("--otlp-traces-endpoint", collector.url, "--self-test-ms", "0", "--max-batch", "16")
    for _ in range(200):
        assert post(d, {**GOOD, "n": 16, "max_tokens": 1})[0] == 200
    began = time.monotonic()
    assert d.get("/health")[0] == 200 and time.monotonic() - began < 0.5
    assert d.gauge("spand_trace_spans_dropped_total") >= 200 * 49 - 8192 - 1024
    began = time.monotonic()
    assert d.stop() == 0
    assert time.monotonic() - began < 8


def test_what_is_queued_goes_out_at_the_stop(collector):
    d = Daemon("--otlp-traces-endpoint", collector.url, "--self-test-ms", "0")
    post(d, GOOD)
    assert d.stop() == 0
    assert len(collector.spans) == 4


def test_the_ratio_is_kept(collector):
    d = Daemon("--otlp-traces-endpoint", collector.url, "--otlp-traces-ratio", "0", "--self-test-ms", "0")
    assert "traceparent" not in post(d, GOOD)[1]
    assert "traceparent" in post(d, GOOD, {"traceparent": f"00-{TRACE}-{PARENT}-01"})[1]
    assert d.stop() == 0
    assert {s.trace_id.hex() for s in collector.spans} == {TRACE}


def test_off_there_is_nothing_of_it(daemon):
    _, headers, _ = post(daemon, GOOD, {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert "traceparent" not in headers
    tasks = f"/proc/{daemon.process.pid}/task"
    assert "spand-traces\n" not in [open(f"{tasks}/{t}/comm").read() for t in os.listdir(tasks)]


@pytest.mark.parametrize("flags,what", [
    (["--otlp-traces-endpoint", "ftp://x/"], "want http:// or https://"),
    (["--otlp-traces-endpoint", "http://x/", "--otlp-headers-file", "/nowhere"], "/nowhere"),
    (["--otlp-traces-endpoint", "http://x/", "--otlp-headers-file", "/etc/passwd:"], "otlp_headers_file")])
def test_wrong_settings_stop_the_start(flags, what):
    done = run("serve", "--port", "0", *flags)
    assert done.returncode in (1, 2) and what in done.stderr.decode()
