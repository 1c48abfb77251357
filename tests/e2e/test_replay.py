"""`--trace FILE` records a run of the daemon, `spand replay --trace FILE` decides it again."""

import re
import threading
import time

from daemon import Daemon, run

BODY = {"model": "demo-llama", "prompt": "The history of " * 40, "max_tokens": 60, "n": 2,
        "ignore_eos": True}


def ask(d, max_tokens):
    try:
        d.post("/v1/completions", {**BODY, "max_tokens": max_tokens})
    except OSError:
        pass  # it may be killed meanwhile


def record(path, *flags):
    d = Daemon("--trace", str(path), "--max-batch", "4", "--kv-memory", "8MiB", "--chunk-tokens", "64", *flags)
    clients = [threading.Thread(target=ask, args=(d, 20 * i + 1)) for i in range(6)]
    for c in clients:
        c.start()
    return d, clients


def test_a_run_is_decided_again(tmp_path):
    path = tmp_path / "trace"
    d, clients = record(path)
    for c in clients:
        c.join()
    assert d.stop() == 0
    done = run("replay", "--trace", str(path))
    assert done.returncode == 0, done.stderr
    found = re.match(rb"13 sequences, (\d+) steps of \d+ rows, \d+ preemptions: the same decisions\n$", done.stdout)
    assert found and int(found.group(1)) > 100
    text = path.read_text()
    path.write_text(text.replace('"free_pages":', '"free_pages":1', 1))
    done = run("replay", "--trace", str(path))
    assert done.returncode == 1 and b"step 0: decided" in done.stderr


def test_what_a_killed_daemon_recorded_is_replayed(tmp_path):
    path = tmp_path / "trace"
    d, clients = record(path)
    while not path.exists() or path.stat().st_size < 20000:
        time.sleep(0.01)
    d.process.kill()
    for c in clients:
        c.join()
    done = run("replay", "--trace", str(path))
    assert done.returncode == 0 and b"the same decisions" in done.stdout, done.stderr


def test_no_trace_is_an_error(tmp_path):
    assert run("replay").returncode == 2
    assert run("replay", "--trace", str(tmp_path / "none")).returncode == 1
    (tmp_path / "other").write_text("hello\n")
    assert run("replay", "--trace", str(tmp_path / "other")).returncode == 2
