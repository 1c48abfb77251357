"""What the HTTP side costs without a model: bench_frontend.py build/spand-null [SECONDS].

Events are counted against processor time, user and system, of the thread or process that serves, which a
busy machine distorts least. Three servers send the same events to the same reader:

    spand    the loop thread of spand-null: every token an event of its own
    nginx    a worker of nginx that passes spand-null's streams on, unbuffered (Debian: nginx-light)
    bare     bare_send.c: one send() an event and nothing else, the floor that the kernel sets for it

Events that wait for the same client leave in one send, so how many a second a core makes depends on how many
wait. First the engine gives a stream its next token only when the last one was collected: one send an event.
Then it keeps a few ahead, then it makes 200,000 a second, come what may, as they would come from a device.

Latencies are wall time from a token's making to its arrival at the client's socket, which the kernel notes;
the client's own time is not in them. They need a quiet machine: what else runs is in them. Once with all
tokens of a step made at the same moment, so that the last one waits for all other sends; the median over
the steps of when a step's last event has arrived tells how long that is. And once with each stream's tokens
at its own moment.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from streams import Null, read, run

binary, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 5
BARE = os.path.join(os.path.dirname(binary), "bare-send")
FLAGS = ("--max-batch", "2000", "--max-connections-per-address", "0")
TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid):
    """User and system seconds of a process's first thread."""
    fields = open(f"/proc/{pid}/task/{pid}/stat").read().rsplit(")", 1)[1].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def tell(name, n, events, user, system, took):
    total = max(user + system, 1 / TICKS)
    print(f"{name:6s} {n:7d} {events:8.0f} {events / total:15.0f} {user / events * 1e6:9.2f} "
          f"{system / events * 1e6:8.2f} {events / took:9.0f}")


class Nginx:
    """One worker between the clients and spand-null."""

    def __init__(self, null):
        self.folder = tempfile.TemporaryDirectory()
        at = self.folder.name
        with socket.create_server(("127.0.0.1", 0)) as s:
            self.port = s.getsockname()[1]
        with open(f"{at}/conf", "w") as f:
            f.write(f"pid {at}/pid; error_log {at}/log; worker_processes 1; daemon off; user root;\n"
                    "events { worker_connections 8192; }\n"
                    f"http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p;\n"
                    f"fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s; tcp_nodelay on;\n"
                    f"server {{ listen 127.0.0.1:{self.port}; location / {{\n"
                    f"proxy_pass http://127.0.0.1:{null.port}; proxy_http_version 1.1; proxy_buffering off;\n"
                    "proxy_read_timeout 600s; } } }\n")
        self.process = subprocess.Popen(["nginx", "-c", f"{at}/conf"], stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        self.worker = int(subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True,
                                         text=True).stdout.split()[0])

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.folder.cleanup()


def served(n, env, with_nginx=False):
    """Events and processor time while n streams run: of spand's loop and of the nginx before it."""
    null = Null(binary, *FLAGS, env={**os.environ, **env})
    nginx = Nginx(null) if with_nginx else None
    clients = threading.Thread(target=run, args=(nginx or null, n, 60000, seconds + 1))
    clients.start()
    time.sleep(1)  # all are there
    pid = nginx.worker if nginx else null.process.pid
    events, before, began = read["events"], cpu(pid), time.monotonic()
    time.sleep(seconds - 0.5)
    events, after = read["events"] - events, cpu(pid)  # that clients have
    took = time.monotonic() - began
    clients.join()
    if nginx:
        nginx.stop()
    null.stop()
    return events, after[0] - before[0], after[1] - before[1], took


def bare(n):
    process = subprocess.Popen([BARE, str(n)], stdout=subprocess.PIPE, text=True)

    class Server:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        connect = Null.connect
    clients = threading.Thread(target=run, args=(Server(), n, 1, seconds))
    clients.start()
    time.sleep(seconds - 0.5)
    process.terminate()
    events, user, system = process.communicate()[0].split()
    clients.join()
    return int(events), float(user), float(system), seconds - 0.5


HEAD = "server streams   events   events/s/core   user us   sys us  events/s   "
print(HEAD + "each token alone")
for n in (1, 256, 1000):
    tell("spand", n, *served(n, {}))
    if os.path.exists(BARE):
        tell("bare", n, *bare(n))
for title, env in (("four tokens ahead", {"NULL_AHEAD": "4"}), ("32 tokens ahead", {"NULL_AHEAD": "32"})):
    print(HEAD + title)
    for n in (1, 256, 1000):
        tell("spand", n, *served(n, env))
print(HEAD + "200,000 tokens a second made")
for n in (256, 1000):
    tell("spand", n, *served(n, {"NULL_PACE_US": str(n * 5)}))
print(HEAD + "a token every 20 ms")
for n in (256, 1000):
    tell("spand", n, *served(n, {"NULL_PACE_US": "20000"}))
    if shutil.which("nginx"):
        tell("nginx", n, *served(n, {"NULL_PACE_US": "20000"}, True))
print("streams   tokens   added ms p50      p99   last of a step   a token every 50 ms")
for how, env in (("of all at once", {}), ("each its own", {"NULL_SPREAD": "1"})):
    for n in (1, 256, 1000):
        null = Null(binary, *FLAGS, env={**os.environ, "NULL_PACE_US": "50000", **env})
        late, last = [], {}

        def note(chunk, at_ns):
            for t in re.findall(rb'"text":"(\d+) "', chunk):
                late.append(at_ns - int(t))
                last[t] = late[-1]  # of its step: made at the same moment
        run(null, n, 60000, seconds, note)
        late.sort()
        steps = sorted(last.values())
        print(f"{n:7d} {len(late):8d} {late[len(late) // 2] / 1e6:14.2f} {late[int(len(late) * 0.99)] / 1e6:8.2f}"
              f" {'' if env else f'{steps[len(steps) // 2] / 1e6:.2f}':>16s}   {how}")
        null.stop()
