"""/metrics: the format, the names that other tools read, and numbers that add up."""

import json
import os
import shutil
import subprocess

import pytest

from daemon import ROOT

VLLM = """num_requests_running num_requests_waiting kv_cache_usage_perc num_preemptions_total
prompt_tokens_total generation_tokens_total request_success_total iteration_tokens_total_bucket
request_prompt_tokens_bucket request_generation_tokens_bucket request_params_max_tokens_bucket
request_params_n_bucket time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket
request_time_per_output_token_seconds_bucket e2e_request_latency_seconds_bucket
request_queue_time_seconds_bucket request_inference_time_seconds_bucket
request_prefill_time_seconds_bucket request_decode_time_seconds_bucket cache_config_info""".split()


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
    import socket
    body = json.dumps({"model": model, "prompt": "x", "max_tokens": 3000, "stream": True,
                       "ignore_eos": True}).encode()
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        s.recv(100)
        assert total(daemon.metrics(), "spand_streams") == 1


def test_alerts_and_prometheus_config():
    if not shutil.which("promtool"):
        pytest.skip("no promtool here (Debian: prometheus)")
    folder = os.path.join(ROOT, "deploy", "prometheus")
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"],
                    ["check", "config", "prometheus.yml"]):
        done = subprocess.run(["promtool", *command], cwd=folder, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
