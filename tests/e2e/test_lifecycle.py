"""Start, stop, wrong flags, and the programs without HTTP."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from daemon import MODEL, ROOT, SPAND, Daemon, run


def test_sigterm_lets_a_stream_finish_and_exits_0():
    d = Daemon()
    answer = {}

    def ask():
        answer["got"] = d.post("/v1/completions", {
            "model": "demo-llama", "prompt": "The", "max_tokens": 200, "ignore_eos": True})
    asker = threading.Thread(target=ask)
    asker.start()
    while d.gauge("vllm:num_requests_running") == 0:
        time.sleep(0.005)
    assert d.stop(signal.SIGTERM) == 0
    asker.join(10)
    status, body = answer["got"]
    assert status == 200 and body["usage"]["completion_tokens"] == 200


def test_sigint_stops_an_idle_daemon():
    d = Daemon()
    assert d.stop(signal.SIGINT) == 0


def test_drain_limit_cancels_what_is_left():
    d = Daemon("--drain-timeout-ms", "300")
    s = socket.create_connection(("127.0.0.1", d.port))
    body = json.dumps({"model": "demo-llama", "prompt": "The", "max_tokens": 3900, "stream": True,
                       "ignore_eos": True}).encode()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    s.recv(100)
    began = time.monotonic()
    assert d.stop() == 0
    assert time.monotonic() - began < 10
    s.close()


@pytest.mark.parametrize("args,expect", [
    (["serve", "--max-bach", "3"], "max-batch"),
    (["serve", "--max-batch", "0"], "1..16384"),
    (["serve", "--port", "70000"], "65535"),
    (["serve", "--config", "/no/such/file"], "/no/such/file"),
    (["serve", "--device", "tpu"], "device"),
    (["no-such-command"], "no-such-command"),
    (["generate", "--prompt"], "prompt"),
])
def test_wrong_usage_exits_2_and_says_why(args, expect):
    done = run(*args)
    assert done.returncode == 2
    assert expect in (done.stderr + done.stdout).decode()


def test_missing_model_exits_and_names_it():
    done = run("serve", "--model", "/no/such/model", "--port", "0")
    assert done.returncode in (1, 2)
    assert "/no/such/model" in done.stderr.decode()


def test_cuda_asked_for_and_absent_is_an_error_not_a_fallback():
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has a GPU")
    done = run("serve", "--device", "cuda", "--port", "0")
    assert done.returncode in (1, 2) and b"cuda" in done.stderr.lower()


def test_two_daemons_on_one_port():
    d = Daemon()
    try:
        done = run("serve", "--port", str(d.port))
        assert done.returncode == 1
        assert str(d.port) in done.stderr.decode()
    finally:
        d.stop()


def test_notify_socket_hears_ready_and_stopping(tmp_path):
    path = str(tmp_path / "notify")
    heard = []
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(path)
    s.settimeout(0.2)
    stopped = threading.Event()

    def listen():
        while True:
            try:
                heard.append(s.recv(4096).decode())
            except TimeoutError:
                if stopped.is_set():
                    return
    listener = threading.Thread(target=listen)
    listener.start()
    d = Daemon(env={"NOTIFY_SOCKET": path})
    code = d.stop()
    stopped.set()
    listener.join()
    assert code == 0
    states = [line for h in heard for line in h.splitlines() if line in ("READY=1", "STOPPING=1")]
    assert states == ["READY=1", "STOPPING=1"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


@pytest.mark.parametrize("redirection", [
    ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", ">/dev/full 2>&-"])
def test_serves_without_its_standard_streams(redirection):
    """No output to be had is no reason to stop, and no socket may take a stream's number."""
    port = free_port()
    p = subprocess.Popen(["sh", "-c", f'exec "$0" serve --model "$1" --port {port} {redirection}',
                          SPAND, MODEL], cwd=ROOT)
    try:
        answer = None
        deadline = time.monotonic() + 60
        while answer is None and p.poll() is None and time.monotonic() < deadline:
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.02)
        assert answer and json.loads(answer) == {"status": "ok"}
        streams = [os.readlink(f"/proc/{p.pid}/fd/{fd}") for fd in range(3)]
        assert all(s.startswith(("/", "pipe:")) for s in streams), streams
    finally:
        p.terminate()
        code = p.wait(60)
    assert code == 0


@pytest.mark.parametrize("command", [
    ["generate", "--prompt", "The", "--max-tokens", "4"], ["inspect"], ["help"], ["version"],
    ["serve", "--print-config"], ["serve", "--help"]])
def test_output_that_cannot_be_written_is_a_failure(command):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([SPAND, *command], cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
                              timeout=60)
    assert done.returncode == 1 and b"stdout" in done.stderr
    assert b"generated" not in done.stderr


def test_generate_of_nothing_tells_no_time():
    done = run("generate", "--model", MODEL, "--prompt", "The", "--max-tokens", "0")
    assert done.returncode == 0 and done.stdout == b""
    assert b"0 generated" in done.stderr and b"ms" not in done.stderr
    done = run("generate", "--model", MODEL, "--prompt", "The", "--max-tokens", "999999")
    assert done.returncode == 2 and b"context" in done.stderr


def test_generate_prints_the_completion_only():
    done = run("generate", "--model", MODEL, "--prompt", "The", "--max-tokens", "12")
    assert done.returncode == 0 and done.stdout
    again = run("generate", "--model", MODEL, "--prompt", "The", "--max-tokens", "12")
    assert again.stdout == done.stdout  # temperature 0 unless given


def test_generate_equals_the_server():
    d = Daemon()
    try:
        status, answer = d.post("/v1/completions", {
            "model": "demo-llama", "prompt": "The", "max_tokens": 24, "temperature": 0})
    finally:
        d.stop()
    done = run("generate", "--model", MODEL, "--prompt", "The", "--max-tokens", "24")
    assert done.stdout.decode().rstrip("\n") == answer["choices"][0]["text"].rstrip("\n")


def test_tokenize_is_line_by_line():
    done = run("tokenize", "--tokenizer", os.path.join(MODEL, "tokenizer.json"),
               stdin=b'"Hello world"\n""\n"\\u00e9\\n"\n')
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == 3
    assert all(isinstance(t, int) for t in lines[0])


def test_inspect_needs_config_json_alone(tmp_path):
    (tmp_path / "config.json").write_text(open(os.path.join(MODEL, "config.json")).read())
    done = run("inspect", "--model", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    for key in ("params", "weights_bytes", "kv_bytes_per_token", "n", "slots_query_heads",
                "slots_kv_heads", "density_kv", "kv_bytes_per_seq", "max_batch"):
        assert key in facts
    config = json.load(open(os.path.join(MODEL, "config.json")))
    assert facts["kv_bytes_per_token"] == (
        2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2)


def test_print_config_is_a_config_file(tmp_path):
    done = run("serve", "--max-batch", "5", "--print-config")
    assert done.returncode == 0
    path = tmp_path / "c.json"
    path.write_bytes(done.stdout)
    again = run("serve", "--config", str(path), "--print-config")
    assert again.stdout == done.stdout and json.loads(again.stdout)["max_batch"] == 5


def test_unit_file_is_valid():
    """systemd's own check, where it is installed."""
    import shutil
    import subprocess
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
                           os.path.join(ROOT, "systemd", "spand.service")],
                          capture_output=True, text=True)
    wrong = [line for line in done.stderr.splitlines()
             if "spand.service" in line and "not executable" not in line]
    assert not wrong, done.stderr
