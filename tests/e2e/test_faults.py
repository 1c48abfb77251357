"""What the system does to a daemon: short reads, full disks, no descriptors, wrong clocks, kills, a lost device."""

import json
import os
import resource
import socket
import subprocess
import threading
import time

import pytest

from daemon import MODEL, ROOT, SPAND, Daemon, run
from supervisor import Supervisor
from test_state import ALLOCATIONS, fault, wait_status  # noqa: F401

GOOD = {"model": "demo-llama", "prompt": "The history of", "max_tokens": 12, "temperature": 0}
LOST = SPAND + "-lost"


def connect(d):
    return socket.create_connection(("127.0.0.1", d.port), timeout=20)


def post_bytes(body):
    body = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def stream_text(events):
    return "".join(e["choices"][0]["text"] for e in events if isinstance(e, dict) and e["choices"])


# Reads and writes that move less than was asked for


@pytest.mark.parametrize("n", [1, 7])
def test_short_reads_and_writes_change_nothing(fault, daemon, n, tmp_path):  # noqa: F811
    """Files give and take n bytes at a time: the model's, the settings, the keys, the log."""
    want = daemon.post("/v1/completions", GOOD)[1]["choices"][0]["text"]
    config, keys = tmp_path / "config", tmp_path / "keys"
    keys.write_text("me secret-key\n")
    config.write_text(json.dumps({"api_keys_file": str(keys), "log_format": "json", "self_test_ms": 0}))
    with open(tmp_path / "log", "w") as log:
        d = Daemon("--config", str(config), env={"LD_PRELOAD": fault, "FAULT_SHORT": str(n)}, stderr=log)
        try:
            headers = {"Content-Type": "application/json", "X-Api-Key": "secret-key"}
            status, _, data = d.request("POST", "/v1/completions", json.dumps(GOOD), headers)
            assert status == 200 and json.loads(data)["choices"][0]["text"] == want
        finally:
            assert d.stop() == 0
    lines = [json.loads(line) for line in open(tmp_path / "log")]  # whole, every one
    assert sum(line.get("path") == "/v1/completions" for line in lines) == 1


# Disks that are full


def on_a_full_disk(command, size="4k", inodes=16):
    """Runs it in a folder of its own, on a disk that is too small."""
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size={size},nr_inodes={inodes} x /mnt && cd /mnt && "
         + command], capture_output=True, timeout=120, env={**os.environ, "SPAND": SPAND, "MODEL": MODEL})
    if b"unshare" in done.stderr or b"mount" in done.stderr:
        pytest.skip("no mounts here")
    return done


def test_a_trace_on_a_full_disk_ends_and_the_daemon_goes_on():
    d = Daemon("--trace", "/dev/full", "--self-test-ms", "0")
    for _ in range(3):
        assert d.post("/v1/completions", GOOD)[0] == 200
        d.wait_idle()
    assert d.stop() == 0
    assert sum("trace: cannot write" in line for line in d.lines) == 1


def test_a_unix_socket_on_a_full_disk_is_an_error():
    done = on_a_full_disk('touch a b c; exec "$SPAND" serve --model "$MODEL" --unix-socket s', inodes=4)
    assert done.returncode == 1 and b"No space left on device" in done.stderr and b"unix_socket s" in done.stderr


def test_a_plan_search_on_a_full_disk_is_an_error(fault, tmp_path):  # noqa: F811
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"prompt": "one two three " * (33 + 4 * k), "answer": "The end is near."})
                             + "\n" for k in range(110)))
    done = subprocess.run(
        [SPAND + "-plan", "--model", MODEL, "--density", "0.5", "--device", "cpu", "--lengths", "384,768",
         "--items", "1", "--answer-tokens", "8", "--calibration", str(texts), "--answers", "given",
         "--raw-prompts", "-o", "plan.json"], cwd=tmp_path, capture_output=True, timeout=60,
        env={**os.environ, "LD_PRELOAD": fault, "FAULT_ROOM": "50000"})
    assert done.returncode == 1 and b"No space left on device" in done.stderr
    left = [name for _, _, names in os.walk(tmp_path) for name in names]
    assert "plan.json" not in left and not [n for n in left if n.endswith(".tmp")]


def test_a_drawing_on_a_full_disk_is_an_error():
    done = run("inspect", "--model", MODEL, "--svg", "/dev/full")
    assert done.returncode == 1 and b"No space left on device" in done.stderr


# Descriptors


def test_without_descriptors_who_is_served_stays_served():
    def lower():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    d = Daemon("--max-connections-per-address", "0", preexec_fn=lower)
    try:
        stream = connect(d)
        stream.sendall(post_bytes({**GOOD, "max_tokens": 600, "ignore_eos": True, "stream": True}))
        stream.recv(100)
        idle = [connect(d) for _ in range(100)]
        got = b""
        while b"[DONE]" not in got:
            piece = stream.recv(65536)
            assert piece
            got = (got + piece)[-100000:]
        for s in idle:
            s.close()
        deadline = time.monotonic() + 10
        while d.get("/health")[0] != 200:
            assert time.monotonic() < deadline
        assert d.post("/v1/completions", GOOD)[0] == 200
        d.wait_idle()
        assert 1 <= sum("cannot accept" in line for line in d.lines) < 5
        stream.close()
    finally:
        assert d.stop() == 0, d.output()


# Clocks


def test_jumps_of_the_wall_clock_end_nothing(fault, tmp_path):  # noqa: F811
    """A day forward and back while requests run, with short deadlines: only `created` follows."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    d = Daemon("--header-timeout-ms", "3000", "--body-timeout-ms", "3000", "--write-timeout-ms", "3000",
               "--stall-timeout-ms", "3000", "--request-timeout-ms", "20000", "--queue-timeout-ms", "20000",
               "--self-test-ms", "200", env={"LD_PRELOAD": fault, "FAULT_CLOCK": str(clock)})
    try:
        texts = []

        def ask():
            events = d.events("/v1/completions", {**GOOD, "max_tokens": 400, "ignore_eos": True, "stream": True})
            texts.append(stream_text(events))
        askers = [threading.Thread(target=ask) for _ in range(4)]
        slow = connect(d)
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        for a in askers:
            a.start()
        for jump in (86400, -86400, 10 ** 8, 0):
            clock.write_text(str(jump))
            time.sleep(0.3)
            created = d.post("/v1/completions", {**GOOD, "max_tokens": 1})[1]["created"]
            assert abs(created - time.time() - jump) < 10
            assert d.get("/health/ready")[0] == 200
        body = json.dumps(GOOD).encode()
        slow.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert b" 200 " in slow.recv(1000)
        for a in askers:
            a.join(60)
        assert len(texts) == 4 and len(set(texts)) == 1 and len(texts[0]) > 400
        assert d.gauge("spand_timeouts_total") == 0
    finally:
        assert d.stop() == 0, d.output()


# Kills


def test_killed_with_streams_it_is_back_on_its_port_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    flags = ("--port", str(port))
    d = Daemon(*flags)
    streams = []
    for _ in range(5):
        streams.append(connect(d))
        streams[-1].sendall(post_bytes({**GOOD, "max_tokens": 4000, "ignore_eos": True, "stream": True}))
        assert b" 200 " in streams[-1].recv(100)
    d.process.kill()
    began = time.monotonic()
    again = Daemon(*flags)
    try:
        assert time.monotonic() - began < 10  # loading is all it takes
        assert again.port == port and again.post("/v1/completions", GOOD)[0] == 200
        for s in streams:
            with pytest.raises(OSError):
                while s.recv(65536):
                    pass
                raise ConnectionResetError  # an end without [DONE] is one as well
            s.close()
        again.wait_idle()
    finally:
        assert again.stop() == 0


def test_killed_it_leaves_a_unix_socket_that_is_replaced(tmp_path):
    path = str(tmp_path / "s")
    for _ in range(2):
        d = subprocess.Popen([SPAND, "serve", "--model", MODEL, "--unix-socket", path], cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert any("listening on" in line for line in iter(d.stdout.readline, ""))
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in s.recv(1000)
        d.kill()
        d.wait()
        d.stdout.close()
    assert os.path.exists(path)


# The device


def lost(tmp_path, *flags):
    """A daemon of the same objects, whose steps fail while the file is there."""
    if not os.path.exists(LOST):
        pytest.skip(f"no {LOST}: make build/spand-lost")
    path = tmp_path / "lost"
    return path, Daemon("--stall-timeout-ms", "5000", "--self-test-ms", "300", *flags, program=LOST,
                        env={"FAULT_DEVICE": str(path)})


def test_a_lost_device_ends_requests_with_an_error_and_readiness_falls(tmp_path):
    path, d = lost(tmp_path)
    long = {**GOOD, "max_tokens": 4000, "ignore_eos": True}
    answers = {}

    def ask(name, body):
        answers[name] = d.post("/v1/completions", body)
    asker = threading.Thread(target=ask, args=("plain", long))
    asker.start()
    stream = connect(d)
    stream.sendall(post_bytes({**long, "stream": True}))
    assert b" 200 " in stream.recv(100)
    while d.gauge("spand_requests_running") < 2:
        time.sleep(0.01)
    path.write_text("")
    got = b""
    while not got.endswith(b"0\r\n\r\n"):
        got = (got + stream.recv(65536))[-3000:]
    events = got.decode().split("data: ")
    assert events[-1].startswith("[DONE]")
    assert json.loads(events[-2].split("\n")[0])["error"]["message"] == "the computation failed"
    asker.join(20)
    status, error = answers["plain"]
    assert status == 500 and error["error"]["type"] == "server_error" and set(error["error"]) == {
        "message", "type", "param", "code"}
    wait_status(d, "/health/ready", 503, 5)
    assert d.get("/health/live")[0] == 503 and d.gauge("spand_healthy") == 0
    assert d.post("/v1/completions", GOOD)[0] == 500
    assert d.gauge("spand_requests_running") == 0 and d.gauge("spand_kv_pages_used") == 0
    assert any("the device is lost" in line for line in d.lines)
    assert d.stop() == 1 and any("stopped in a bad state" in line for line in d.lines)


def test_a_device_that_comes_back_is_used_again(tmp_path):
    path, d = lost(tmp_path)
    path.write_text("")
    wait_status(d, "/health/ready", 503, 10)
    path.unlink()
    wait_status(d, "/health/ready", 200, 10)
    assert d.post("/v1/completions", GOOD)[0] == 200
    d.wait_idle()
    assert d.stop() == 0


def test_a_device_that_is_lost_at_the_start_is_an_error(tmp_path):
    path = tmp_path / "lost"
    path.write_text("")
    done = subprocess.run([LOST, "serve", "--model", MODEL, "--port", "0"], cwd=ROOT, capture_output=True,
                          timeout=60, env={**os.environ, "FAULT_DEVICE": str(path)})
    assert done.returncode == 1 and b"generates no token" in done.stderr


def test_the_watchdog_restarts_after_a_lost_device(tmp_path):
    path = tmp_path / "lost"
    s = Supervisor(tmp_path, "--self-test-ms", "300", watchdog_ms=1000, env={"FAULT_DEVICE": str(path)},
                   program=LOST)
    s.wait_for(lambda: len(s.ports) == 1)
    path.write_text("")
    s.wait_for(lambda: len(s.ends) >= 1)
    path.unlink()
    s.wait_for(lambda: len(s.ports) == 2)
    assert s.stop() == 0
