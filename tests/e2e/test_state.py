"""Alive but dead must be impossible: readiness falls and the watchdog restarts."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time

import pytest

from daemon import ROOT, SPAND, Daemon
from supervisor import Supervisor

GOOD = {"model": "demo-llama", "prompt": "The", "max_tokens": 2}
HANG, END, ALLOCATIONS = (signal.SIGRTMIN + i for i in range(3))
SANITIZED = "address" in SPAND or "thread" in SPAND
QUICK = ("--stall-timeout-ms", "1000", "--self-test-ms", "300")


@pytest.fixture(scope="session")
def fault(tmp_path_factory):
    """The library that makes threads hang and allocations fail."""
    if SANITIZED:
        pytest.skip("a sanitizer's own library must come first")
    path = str(tmp_path_factory.mktemp("fault") / "fault.so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path,
                    os.path.join(ROOT, "tests", "e2e", "fault", "fault.c")], check=True)
    return path


def thread_of(pid, name):
    for tid in os.listdir(f"/proc/{pid}/task"):
        if open(f"/proc/{pid}/task/{tid}/comm").read().strip() == name:
            return int(tid)
    raise KeyError(name)


def hit(pid, tid, signo):
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(234, pid, tid, int(signo)) == 0  # tgkill


def wait_status(daemon, path, want, limit_s=20):
    began = time.monotonic()
    while daemon.get(path)[0] != want:
        assert time.monotonic() - began < limit_s
        time.sleep(0.02)
    return time.monotonic() - began


def test_health_paths(daemon):
    for path in ("/health", "/health/live", "/health/ready"):
        status, _, data = daemon.get(path)
        assert status == 200 and json.loads(data) == {"status": "ok"}


@pytest.mark.parametrize("how", [HANG, END], ids=["hangs", "ends"])
def test_an_idle_engine_that_dies_is_found_by_the_self_test(fault, how):
    d = Daemon(*QUICK, env={"LD_PRELOAD": fault})
    try:
        time.sleep(1)
        assert d.get("/health/ready")[0] == 200
        hit(d.process.pid, thread_of(d.process.pid, "spand-engine"), how)
        assert wait_status(d, "/health/ready", 503) < 5
        assert wait_status(d, "/health/live", 503) < 1
        assert d.gauge("spand_healthy") == 0
        error = json.loads(d.get("/health")[2])["error"]
        assert error["code"] == "engine_stalled"
    finally:
        d.process.kill()


def test_a_hang_under_load_is_found(fault):
    d = Daemon("--stall-timeout-ms", "1000", "--self-test-ms", "0", env={"LD_PRELOAD": fault})
    try:
        s = socket.create_connection(("127.0.0.1", d.port), timeout=20)
        body = json.dumps({**GOOD, "max_tokens": 8000, "ignore_eos": True, "stream": True}).encode()
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        s.recv(100)
        hit(d.process.pid, thread_of(d.process.pid, "spand-engine"), HANG)
        assert wait_status(d, "/health/ready", 503) < 5
    finally:
        d.process.kill()


def test_self_tests_leave_no_trace_in_the_counters():
    d = Daemon("--self-test-ms", "100")
    try:
        before = d.metrics()
        time.sleep(1.5)
        after = d.metrics()
        for name in before:
            if "iteration" in name:
                continue  # steps are steps
            if "tokens_total" in name or "success_total" in name or "submitted" in name:
                assert after[name] == before[name], name
        steps = [n for n in before if n.startswith("spand_steps_total")][0]
        assert after[steps] >= before[steps] + 5
        d.wait_idle()
    finally:
        assert d.stop() == 0


@pytest.mark.parametrize("how", [HANG, END], ids=["hangs", "ends"])
def test_the_watchdog_restarts_a_dead_engine(fault, how, tmp_path):
    s = Supervisor(tmp_path, *QUICK, watchdog_ms=1000, env={"LD_PRELOAD": fault})
    s.wait_for(lambda: len(s.ports) == 1)
    time.sleep(2.5)
    assert not s.ends  # fed while it lives
    hit(s.process.pid, thread_of(s.process.pid, "spand-engine"), how)
    s.wait_for(lambda: len(s.ports) == 2)
    assert s.ends == [-signal.SIGABRT]
    assert s.stop() == 0


def test_a_stopped_process_is_restarted(tmp_path):
    s = Supervisor(tmp_path, *QUICK, watchdog_ms=1000)
    s.wait_for(lambda: len(s.ports) == 1)
    s.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    s.process.send_signal(signal.SIGCONT)  # as a debugger might: SIGABRT is already there
    s.wait_for(lambda: len(s.ports) == 2)
    assert s.stop() == 0


def test_killed_it_is_back_at_once(tmp_path):
    s = Supervisor(tmp_path)
    s.wait_for(lambda: len(s.ports) == 1)
    s.process.kill()
    s.wait_for(lambda: len(s.ports) == 2, 20)
    assert s.ends == [-signal.SIGKILL]
    assert s.stop() == 0
    assert "STOPPING=1" in s.states()


def test_sighup_tells_the_manager(tmp_path):
    config = tmp_path / "c.json"
    config.write_text('{"log_requests": true, "sse_ping_ms": 15000}')
    s = Supervisor(tmp_path, "--config", str(config))
    s.wait_for(lambda: len(s.ports) == 1)
    config.write_text('{"log_requests": false, "sse_ping_ms": 1000, "max_batch": 7}')
    s.process.send_signal(signal.SIGHUP)
    s.wait_for(lambda: s.states().count("READY=1") == 2)
    assert "RELOADING=1" in s.states()
    text = "".join(s.lines)
    assert "log_requests has changed" in text and "max_batch has changed, which takes a restart" in text
    config.write_text('{"log_requests": 7}')
    s.process.send_signal(signal.SIGHUP)
    s.wait_for(lambda: any("reload failed" in line for line in s.lines))
    assert s.stop() == 0


def test_sockets_of_a_socket_unit_are_served(tmp_path):
    tcp = socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    unix.listen()
    s = Supervisor(tmp_path, listen=(tcp, unix))
    # Clients that come while the model is loaded wait for it instead of being refused.
    answers = []
    for family, address in ((socket.AF_INET, tcp.getsockname()), (socket.AF_UNIX, str(tmp_path / "s"))):
        c = socket.socket(family)
        c.settimeout(60)
        c.connect(address)
        c.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answers.append(c.recv(1000))
        c.close()
    assert all(b" 200 " in a for a in answers)
    assert s.stop() == 0
    assert os.path.exists(tmp_path / "s")  # not ours to remove


def test_a_descriptor_that_does_not_listen_stops_the_start(tmp_path):
    wrong = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s = Supervisor(tmp_path, listen=(wrong,), restart=False)
    s.wait_for(lambda: s.ends)
    assert s.ends == [2] and any("LISTEN_FDS" in line for line in s.lines)


def test_memory_that_runs_out_costs_requests_and_not_the_daemon(fault, tmp_path):
    """Every n-th allocation and all behind it fail while a request is served; then all is well again."""
    file = tmp_path / "n"
    file.write_text("-1")
    d = Daemon(*QUICK, env={"LD_PRELOAD": fault, "FAULT_FILE": str(file)})
    try:
        assert d.post("/v1/completions", GOOD)[0] == 200
        seen = set()
        for n in [*range(0, 60), *range(60, 400, 7)]:
            file.write_text(str(n))
            d.process.send_signal(ALLOCATIONS)
            time.sleep(0.005)
            try:
                seen.add(d.post("/v1/completions", {**GOOD, "stream": False}, timeout=5)[0])
            except OSError:
                seen.add("closed")
            except ValueError:
                seen.add("cut")
            assert d.process.poll() is None, d.output()[-3000:]
            file.write_text("-1")
            d.process.send_signal(ALLOCATIONS)
        assert seen - {200}, seen
        d.wait_idle()
        wait_status(d, "/health/ready", 200)
        assert d.post("/v1/completions", GOOD)[0] == 200
    finally:
        assert d.stop() == 0, d.output()[-3000:]


def test_memory_that_runs_out_at_start_is_an_error(fault, tmp_path):
    file = tmp_path / "n"
    codes = set()
    for n in [0, 1, 2, 3, 5, 8, 13, 30, 100, 300, 1000, 3000, 10000, 20000]:
        file.write_text(str(n))
        done = subprocess.run([SPAND, "serve", "--port", "0"], cwd=ROOT, capture_output=True, timeout=60,
                              env={**os.environ, "LD_PRELOAD": fault, "FAULT_FILE": str(file)})
        codes.add(done.returncode)
        assert done.returncode in (1, 2), (n, done.returncode, done.stderr[-500:])
