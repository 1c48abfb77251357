"""/metrics: the format, the names that other tools read, and numbers that add up."""

import json
import os
import shutil
import socket
import subprocess
import time

import pytest

from daemon import ROOT, Daemon

VLLM = """num_requests_running num_requests_waiting kv_cache_usage_perc num_preemptions_total
prompt_tokens_total generation_tokens_total request_success_total iteration_tokens_total_bucket
request_prompt_tokens_bucket request_generation_tokens_bucket request_params_max_tokens_bucket
request_params_n_bucket time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket
request_time_per_output_token_seconds_bucket e2e_request_latency_seconds_bucket
request_queue_time_seconds_bucket request_inference_time_seconds_bucket
request_prefill_time_seconds_bucket request_decode_time_seconds_bucket cache_config_info
num_requests_waiting_by_reason prompt_tokens_by_source_total admission_rejections_total
request_max_num_generation_tokens_bucket prefix_cache_queries_total prefix_cache_hits_total""".split()


def page(daemon):
    return daemon.get("/metrics")[2].decode()


def total(metrics, name):
    return sum(v for k, v in metrics.items() if k.split("{")[0] == name)


def test_vllm_names_are_there(daemon):
    names = {key.split("{")[0] for key in daemon.metrics()}
    assert not [n for n in VLLM if f"vllm:{n}" not in names]


def test_there_are_buckets_below_10_ms(daemon):
    edges = [float(k.split('le="')[1].split('"')[0]) for k in daemon.metrics()
             if k.startswith("vllm:inter_token_latency_seconds_bucket") and "Inf" not in k]
    assert len([e for e in edges if e < 0.01]) >= 5 and edges == sorted(edges)


def test_promtool_finds_nothing(daemon):
    """But for the colons of vLLM's names and its `_total` on a histogram, which are not ours to change."""
    if not shutil.which("promtool"):
        pytest.skip("no promtool here (Debian: prometheus)")
    done = subprocess.run(["promtool", "check", "metrics"], input=page(daemon), text=True, capture_output=True)
    assert not [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("vllm:")]


def test_every_series_is_in_the_docs(daemon):
    docs = open(os.path.join(ROOT, "server", "METRICS.md")).read()
    for line in page(daemon).splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            assert f"| `{name}` | {kind} |" in docs, name


def test_numbers_add_up(daemon, model):
    before = daemon.metrics()
    for n in (1, 5, 9):
        assert daemon.post("/v1/completions", {"model": model, "prompt": [5, 6, 7], "max_tokens": n,
                                               "ignore_eos": True, "n": 2})[0] == 200
    after = daemon.metrics()

    def grown(name):
        return total(after, name) - total(before, name)
    assert grown("spand_generation_tokens_total") == 30
    assert grown("vllm:request_success_total") == 6
    assert grown("spand_request_generation_tokens_sum") == 30
    assert grown("spand_time_to_first_token_seconds_count") == 6
    assert grown("spand_inter_token_latency_seconds_count") == 24
    assert grown("spand_request_decode_time_seconds_count") == 6
    assert grown("spand_request_time_per_output_token_seconds_count") == 4
    assert grown("spand_request_params_n_sum") == 6
    assert grown("spand_request_params_max_tokens_sum") == 30
    assert grown("spand_iteration_tokens_count") == grown("spand_steps_total")
    assert total(after, "spand_sse_backlog_bytes") == 0 and total(after, "spand_streams") == 0
    route = 'spand_http_responses_total{route="/v1/completions",code="200"}'
    assert after[route] - before.get(route, 0) == 3


def test_a_stream_shows(daemon, model):
    body = json.dumps({"model": model, "prompt": "x", "max_tokens": 3000, "stream": True,
                       "ignore_eos": True}).encode()
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        s.recv(100)
        assert total(daemon.metrics(), "spand_streams") == 1


def test_prompt_tokens_are_told_apart_by_source(daemon, model):
    before = daemon.metrics()
    body = {"model": model, "prompt": [9 + i % 50 for i in range(150)], "max_tokens": 1}
    for _ in range(2):
        assert daemon.post("/v1/completions", body)[0] == 200
    after = daemon.metrics()

    def grown(name, label=""):
        return sum(after[k] - before[k] for k in after if k.split("{")[0] == name and label in k)
    assert grown("vllm:prompt_tokens_by_source_total", "local_compute") == 150 + 22
    assert grown("vllm:prompt_tokens_by_source_total", "local_cache_hit") == 128
    assert grown("vllm:prompt_tokens_total") == 300 and grown("spand_prompt_tokens_total") == 172
    assert [k for k in after if k.startswith("vllm:cache_config_info") and 'prefix_caching="True"' in k]


def test_the_longest_of_several_answers_counts(daemon, model):
    before = daemon.gauge("vllm:request_max_num_generation_tokens_sum")
    daemon.post("/v1/completions", {"model": model, "prompt": ["x", "y"], "max_tokens": 7, "n": 2,
                                    "ignore_eos": True})
    assert daemon.gauge("vllm:request_max_num_generation_tokens_sum") - before == 7


def test_refusals_are_counted_by_reason(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("one secret-1\ntwo secret-2\n")
    d = Daemon("--max-batch", "1", "--max-waiting", "1", "--api-keys-file", str(keys), "--max-requests-per-key",
               "2", "--metrics-without-key", "--self-test-ms", "0")
    try:
        body = json.dumps({"model": "demo-llama", "prompt": "x", "max_tokens": 4000, "ignore_eos": True,
                           "stream": True}).encode()
        sockets = []
        for _ in range(2):
            sockets.append(socket.create_connection(("127.0.0.1", d.port), timeout=20))
            sockets[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: secret-1\r\n"
                                b"Content-Length: %d\r\n\r\n" % len(body) + body)
            while d.gauge("spand_requests_running") + d.gauge("spand_requests_waiting") < len(sockets):
                time.sleep(0.01)
        waiting = {k.split('reason="')[1]: v for k, v in d.metrics().items()
                   if k.startswith("vllm:num_requests_waiting_by_reason")}
        assert waiting == {'capacity"}': 1, 'deferred"}': 0}
        for key in ("secret-1", "secret-2", "secret-2"):
            assert d.request("POST", "/v1/completions", body, {"X-Api-Key": key})[0] == 429
        counts = {k.split('reason="')[1]: v for k, v in d.metrics().items()
                  if k.startswith("spand_admission_rejections_total")}
        assert counts == {'queue"}': 2, 'tokens"}': 0, 'memory"}': 0, 'key"}': 1}
        for s in sockets:
            s.close()
    finally:
        assert d.stop() == 0


def test_ops_are_held_against_the_memorys_speed():
    d = Daemon("--measure-memory", "--self-test-ms", "0")
    try:
        assert d.post("/v1/completions", {"model": "demo-llama", "prompt": "x", "max_tokens": 50,
                                          "ignore_eos": True})[0] == 200
        m = d.metrics()
        speed = d.gauge("spand_memory_bytes_per_second")
        assert 1e9 < speed < 1e13
        for op in ("ffn", "attn_in", "attn", "attn_out", "logits", "embed"):
            label = f'{{op="{op}"}}'
            rate = m["spand_op_timed_bytes_total" + label] / m["spand_op_seconds_total" + label]
            assert abs(m["spand_op_bytes_per_second" + label] / rate - 1) < 1e-6
            assert abs(m["spand_op_memory_limit_ratio" + label] * speed / rate - 1) < 1e-4
        assert 0 < d.gauge("spand_memory_limit_ratio") < 20  # the demo model fits a cache
        done = subprocess.run(["promtool", "check", "metrics"], input=page(d), text=True,
                              capture_output=True) if shutil.which("promtool") else None
        assert not done or not [x for x in (done.stdout + done.stderr).splitlines() if not x.startswith("vllm:")]
    finally:
        assert d.stop() == 0


def test_alerts_and_prometheus_config():
    if not shutil.which("promtool"):
        pytest.skip("no promtool here (Debian: prometheus)")
    folder = os.path.join(ROOT, "deploy", "prometheus")
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"],
                    ["check", "config", "prometheus.yml"]):
        done = subprocess.run(["promtool", *command], cwd=folder, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
