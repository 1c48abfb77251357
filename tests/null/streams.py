"""Many streams from one thread: opens them, reads what comes, and keeps what the caller asked for."""

import json
import re
import select
import socket
import struct
import subprocess
import time

SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>
read = {"events": 0}  # by all runs


class Null:
    """spand-null on a free port."""

    def __init__(self, binary, *flags, env=None):
        self.process = subprocess.Popen([binary, "--port", "0", "--log-level", "error", "--no-log-requests",
                                         *flags], stdout=subprocess.PIPE, text=True, env=env)
        for line in self.process.stdout:
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found.group(1))
                return
        raise RuntimeError("spand-null did not start")

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def get(self, path):
        with self.connect() as s:
            s.sendall(b"GET %s HTTP/1.0\r\n\r\n" % path.encode())
            data = b""
            while chunk := s.recv(65536):
                data += chunk
            return data

    def metric(self, name):
        return sum(float(line.rsplit(b" ", 1)[1]) for line in self.get("/metrics").splitlines()
                   if re.match(rb"%s(\{|_total\{| )" % name.encode(), line))

    def loop_cpu_s(self):
        """Processor time of the loop thread alone."""
        fields = open(f"/proc/{self.process.pid}/task/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)


def request(max_tokens, model="null"):
    body = json.dumps({"model": model, "prompt": "x", "max_tokens": max_tokens, "stream": True,
                       "ignore_eos": True}).encode()
    return (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)) + body


def arrival(s):
    """Some bytes, and when the last of them reached the socket by the kernel's note, on the monotonic clock."""
    chunk, notes, _, _ = s.recvmsg(262144, 64)
    seconds, ns = struct.unpack("qq", notes[0][2]) if notes else (0, 0)
    return chunk, seconds * 10**9 + ns - time.clock_gettime_ns(time.CLOCK_REALTIME) + time.monotonic_ns()


def run(null, n, max_tokens, seconds=None, on_chunk=None):
    """n streams at once, each once to its end or again and again for some seconds. Returns how many ended."""
    poll = select.epoll()
    tails, sockets = {}, {}
    for _ in range(n):
        s = null.connect()
        if on_chunk:
            s.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        s.sendall(request(max_tokens))
        s.setblocking(False)
        sockets[s.fileno()] = s
        tails[s.fileno()] = b""
        poll.register(s.fileno(), select.EPOLLIN)
    done, until = 0, time.monotonic() + (seconds or 300)
    while sockets and time.monotonic() < until:
        for fd, _ in poll.poll(1, 256):
            try:
                if on_chunk:
                    chunk, at_ns = arrival(sockets[fd])
                    on_chunk(chunk, at_ns)
                else:
                    chunk = sockets[fd].recv(262144)
            except BlockingIOError:
                continue
            read["events"] += chunk.count(b"data: ")
            tails[fd] = (tails[fd] + chunk)[-32:]
            if chunk and tails[fd].endswith(b"\r\n0\r\n\r\n") and seconds:
                tails[fd] = b""  # its next answer on the same connection
                sockets[fd].sendall(request(max_tokens))
            elif not chunk or tails[fd].endswith(b"\r\n0\r\n\r\n"):
                done += b"[DONE]" in tails[fd]
                poll.unregister(fd)
                sockets.pop(fd).close()
    for s in sockets.values():
        s.close()
    return done
