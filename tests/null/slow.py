"""Slow attacks from one address while another asks for completions: slow.py build/spand-null [SECONDS].

slowhttptest (Debian: slowhttptest) opens thousands of connections that send their head or body, or read
their answer, a few bytes at a time. They come from 127.0.0.1; the probe comes from 127.0.0.2 and streams
a completion every 50 ms. Nobody may be kept waiting by them, and they must be cut at the deadlines.
"""

import resource
import shutil
import socket
import subprocess
import sys
import time

from streams import Null, request

ATTACKS = {
    "slow headers": ["-H", "-i", "3", "-x", "24"],
    "slow bodies": ["-B", "-i", "3", "-s", "8192", "-x", "10", "-t", "POST"],
    "ranges": ["-R", "-a", "10", "-b", "3000"],
    "slow readers": ["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "8", "-k", "3"],
}
binary, seconds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20
MOST_MS = 200  # of the slowest but one in a hundred; the machine may be busy with other things


def probe(null, until):
    """Times of whole completions of 10 tokens, from another address."""
    times = []
    while time.monotonic() < until:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", null.port), timeout=10, source_address=("127.0.0.2", 0)) as s:
            s.sendall(request(10).replace(b"Host: x", b"Host: x\r\nConnection: close"))
            got = b""
            while chunk := s.recv(65536):
                got += chunk
        assert b"[DONE]" in got, got[:200]
        times.append((time.monotonic() - began) * 1000)
        time.sleep(0.05)
    times.sort()
    return times


def tell(what, times, more=""):
    p99 = times[int(len(times) * 0.99)]
    print(f"{what:14s} {len(times):6d} {times[len(times) // 2]:8.2f} {p99:8.2f} {times[-1]:8.2f}{more}")
    return p99


if not shutil.which("slowhttptest"):
    print("slow: no slowhttptest here (Debian: slowhttptest)")
    sys.exit(77)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
null = Null(binary, "--header-timeout-ms", "5000", "--body-timeout-ms", "5000", "--write-timeout-ms", "5000")
print("attack         probes   p50 ms   p99 ms   max ms   attackers: most at once, cut, refused")
tell("none", probe(null, time.monotonic() + 5))
worst = 0
for name, flags in ATTACKS.items():
    cut, refused = null.metric("spand_timeouts"), null.metric("spand_refused_connections")
    path = "/" if name in ("ranges", "slow readers") else "/v1/completions"
    attack = subprocess.Popen(
        ["slowhttptest", "-c", "3000", "-r", "1000", "-l", str(seconds), "-p", "10", "-u",
         f"http://127.0.0.1:{null.port}{path}", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most, times, until = 0, [], time.monotonic() + seconds
    while time.monotonic() < until:
        times += probe(null, time.monotonic() + 1)
        with socket.create_connection(("127.0.0.1", null.port), source_address=("127.0.0.2", 0)) as s:
            s.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            page = b""
            while chunk := s.recv(65536):
                page += chunk
        most = max(most, *[float(x.rsplit(b" ", 1)[1]) for x in page.splitlines()
                           if x.startswith(b"spand_connections{")])
    attack.terminate()
    attack.wait()
    times.sort()
    deadline = time.monotonic() + 15
    while null.metric("spand_connections") > 1:
        assert time.monotonic() < deadline, "attackers are still connected"
        time.sleep(0.1)
    worst = max(worst, tell(name, times, f"   {most:.0f}, {null.metric('spand_timeouts') - cut:.0f}, "
                                         f"{null.metric('spand_refused_connections') - refused:.0f}"))
assert null.metric("spand_requests_running") == 0
assert null.stop() == 0
assert worst < MOST_MS, f"a probe took {worst:.0f} ms"
print("slow: ok")
