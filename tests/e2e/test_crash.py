"""A daemon that dies says why: build, settings, stack, steps and live requests, START to END."""

import json
import os
import signal
import socket

import pytest

from daemon import SPAND, Daemon

GOOD = {"model": "demo-llama", "prompt": "The secret word", "max_tokens": 4000, "ignore_eos": True,
        "stream": True}


@pytest.mark.parametrize("signo", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS], ids=str)
def test_the_report_is_whole(signo, tmp_path):
    if "address" in SPAND and signo != signal.SIGABRT:
        pytest.skip("the sanitizer reports those")
    keys = tmp_path / "keys"
    keys.write_text("tester never-to-be-shown\n")
    d = Daemon("--api-keys-file", str(keys))
    body = json.dumps(GOOD).encode()
    s = socket.create_connection(("127.0.0.1", d.port), timeout=20)
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: never-to-be-shown\r\n"
              b"Content-Length: %d\r\n\r\n" % len(body) + body)
    s.recv(1000)
    d.process.send_signal(signo)
    assert d.process.wait(30) == -signo
    d._reader.join(5)
    text = d.output()
    report = text[text.index("=== SPAND CRASH REPORT START ==="):]
    report = report[:report.index("=== SPAND CRASH REPORT END ===")]
    assert f"signal: {int(signo)} " in report and f"sent by pid {os.getpid()}" in report
    assert "build: spand " in report and '"max_batch"' in report
    assert "stack:" in report and "uv_run" in report
    state = json.loads(report[report.index("engine: ") + 8:])
    assert state["n_running"] == 1 and state["steps"]
    assert "never-to-be-shown" not in report and "secret word" not in report
    s.close()
