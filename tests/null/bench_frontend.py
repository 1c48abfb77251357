"""What the HTTP side costs without a model: bench_frontend.py build/spand-null [SECONDS].

Events a second and core are counted against the processor time of the loop thread, which a busy
machine does not distort; latencies are wall time from a token's making to its arrival at the client,
so they need a quiet machine.
"""

import os
import re
import sys
import time

from streams import Null, run

binary, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 5
print("streams  events   events/s/core  events/s")
for n in (1, 256, 1000):
    null = Null(binary, "--max-batch", "2000", "--max-connections-per-address", "0")
    events, cpu, began = null.metric("spand_generation_tokens"), null.loop_cpu_s(), time.monotonic()
    run(null, n, 60000, seconds)
    took, cpu = time.monotonic() - began, null.loop_cpu_s() - cpu
    events = null.metric("spand_generation_tokens") - events
    print(f"{n:7d} {events:8.0f} {events / max(cpu, 0.01):15.0f} {events / took:9.0f}")
    null.stop()
print("streams  tokens   added ms p50    p99   (a token every 50 ms)")
for n in (1, 256, 1000):
    null = Null(binary, "--max-batch", "2000", "--max-connections-per-address", "0",
                env={**os.environ, "NULL_PACE_MS": "50"})
    late = []

    def note(chunk):
        now = time.monotonic_ns()
        late.extend(now - int(t) for t in re.findall(rb'"text":"(\d+) "', chunk))
    run(null, n, 60000, seconds, note)
    late.sort()
    if late:
        print(f"{n:7d} {len(late):7d} {late[len(late) // 2] / 1e6:12.2f} {late[int(len(late) * 0.99)] / 1e6:9.2f}")
    null.stop()
