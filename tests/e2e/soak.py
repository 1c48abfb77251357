"""A daemon at saturation with clients that misbehave: soak.py build/spand [SECONDS].

Clients stream, ask for whole answers, cancel at a random moment, read slowly, or disconnect at a random
byte of their request. Checked: a complete stream has exactly one [DONE] and the tokens its usage says;
every sequence that the engine took ends exactly once; memory and descriptors are flat; at the end all
gauges are zero and the daemon stops with 0.
"""

import json
import os
import random
import re
import sys
import threading
import time

os.environ["SPAND"] = os.path.realpath(sys.argv[1])
from daemon import Daemon  # noqa: E402
import socket  # noqa: E402

SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 3600
N_CLIENTS = 24
counts = dict.fromkeys(["whole", "streamed", "canceled", "cut", "refused"], 0)
lock = threading.Lock()
wrong = []


def count(what):
    with lock:
        counts[what] += 1


def receive(s, pick, slow):
    data = b""
    while chunk := s.recv(256 if slow else 65536):
        data += chunk
        if slow:
            time.sleep(0.01)
        if pick == "cancel" and len(data) > 600:
            return None
    return data


def check(data, stream, n):
    head, _, body = data.partition(b"\r\n\r\n")
    status = head.split()[1]
    if status == b"429":
        return "refused"
    assert status == b"200", data[:300]
    if not stream:
        assert json.loads(body)["usage"]["completion_tokens"] == n, body
        return "whole"
    events = re.findall(rb"data: (.*?)\n\n", body)
    assert body.count(b"data: [DONE]") == 1 and events[-1] == b"[DONE]", body[-300:]
    assert json.loads(events[-2])["usage"]["completion_tokens"] == n
    ids = [t for e in events[:-2] for t in json.loads(e)["choices"][0]["token_ids"]]
    assert len(ids) == n, (len(ids), n)
    return "streamed"


def one(d, rng):
    stream, n = rng.random() < 0.7, rng.randint(1, 40)
    pick = rng.choices(["plain", "cancel", "slow", "cut"], [6, 2, 1, 2])[0]
    body = json.dumps({"model": "demo-llama", "prompt": [rng.randrange(5000) for _ in range(rng.randint(1, 60))],
                       "max_tokens": n, "ignore_eos": True, "stream": stream, "return_token_ids": True,
                       **({"stream_options": {"include_usage": True}} if stream else {})}).encode()
    data = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % len(body)) + body
    with socket.create_connection(("127.0.0.1", d.port), timeout=120) as s:
        if pick == "cut":
            s.sendall(data[:rng.randrange(len(data) + 1)])
            count("cut")
            return
        s.sendall(data)
        # HTTP bodies of a stream come in chunks; their sizes are taken out here.
        got = receive(s, pick, pick == "slow")
    if got is None:
        count("canceled")
        return
    head, mark, rest = got.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        whole = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            whole, rest = whole + rest[:int(size, 16)], rest[int(size, 16) + 2:]
        rest = whole
    count(check(head + mark + rest, stream, n))


def client(d, seed, until):
    rng = random.Random(seed)
    while time.monotonic() < until and not wrong:
        try:
            one(d, rng)
        except Exception as e:  # whatever it is, the soak has failed
            wrong.append(f"{type(e).__name__}: {e}")


def state(d):
    status = open(f"/proc/{d.process.pid}/status").read()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)), len(os.listdir(f"/proc/{d.process.pid}/fd"))


def main():
    d = Daemon("--max-batch", "8", "--max-waiting", "32", "--max-seq-len", "256", "--no-log-requests")
    until = time.monotonic() + SECONDS
    threads = [threading.Thread(target=client, args=(d, i, until)) for i in range(N_CLIENTS)]
    for t in threads:
        t.start()
    seen = []
    while time.monotonic() < until and not wrong and d.process.poll() is None:
        time.sleep(min(10, SECONDS / 8))
        seen.append(state(d))
        print(f"{SECONDS - (until - time.monotonic()):7.0f} s  rss {seen[-1][0] / 1024:.0f} MiB, "
              f"{seen[-1][1]} descriptors  {counts}", flush=True)
    for t in threads:
        t.join()
    assert not wrong, wrong[:3]
    d.wait_idle(30)
    values = d.metrics()
    submitted = sum(v for k, v in values.items() if k.startswith("spand_requests_submitted_total"))
    ended = sum(v for k, v in values.items() if k.startswith("spand_request_success_total"))
    assert submitted == ended, (submitted, ended)
    assert d.gauge("spand_streams") == 0 and d.gauge("spand_sse_backlog_bytes") == 0
    half = len(seen) // 2
    early, late = max(r for r, _ in seen[:max(1, half)]), max(r for r, _ in seen[half:])
    assert late < early + 32 * 1024, f"memory grew from {early} to {late} KiB"
    assert state(d)[1] <= seen[0][1] + 8
    assert d.stop() == 0, d.output()
    print(f"soak: ok, {submitted:.0f} sequences, each ended once; {counts}")


main()
