"""Thousands of idle connections and a thousand streams on one loop: scale.py build/spand-null [IDLE]."""

import os
import resource
import sys
import time

from streams import Null, run

binary, n_idle = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10000
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
if hard < n_idle + 2500:
    print(f"scale: {hard} descriptors allow {hard - 2500} idle connections only")
    n_idle = hard - 2500
null = Null(binary, "--max-batch", "2000", "--max-connections", str(n_idle + 2000),
            "--max-connections-per-address", "0", "--idle-timeout-ms", "600000")


def rss_kb():
    return int(next(line.split()[1] for line in open(f"/proc/{null.process.pid}/status") if "VmRSS" in line))


before, began = rss_kb(), time.monotonic()
idle = []
for _ in range(n_idle):
    s = null.connect()
    s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " in s.recv(500)
    idle.append(s)
print(f"{n_idle} idle connections in {time.monotonic() - began:.1f} s, "
      f"{(rss_kb() - before) / n_idle:.1f} KiB each")
assert null.metric("spand_connections") >= n_idle
began = time.monotonic()
done = run(null, 1000, 100)
print(f"1000 streams of 100 tokens beside them: {done} complete in {time.monotonic() - began:.1f} s")
assert done == 1000
began = time.monotonic()
assert b" 200 " in null.get("/health")
print(f"/health in {(time.monotonic() - began) * 1000:.1f} ms")
fds = len(os.listdir(f"/proc/{null.process.pid}/fd"))
for s in idle:
    s.close()
deadline = time.monotonic() + 20
while len(os.listdir(f"/proc/{null.process.pid}/fd")) > fds - n_idle + 5:
    assert time.monotonic() < deadline, "descriptors are left"
    time.sleep(0.1)
assert null.metric("spand_requests_running") == 0
assert null.stop() == 0
print("scale: ok")
