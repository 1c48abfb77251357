"""Clients that stop reading in the middle of a stream and go on: stalled.py build/spand-null.

The kernel then takes events in part or not at all, so this is what the order and the framing of a stream
depend on. Every chunk must be whole and every event there once, also where the client has sent its next
request meanwhile; one that never goes on is cut at the write deadline, and one that leaves is noticed.
"""

import os
import re
import socket
import sys
import threading
import time

from streams import Null, request

binary = sys.argv[1]
null = Null(binary, "--max-batch", "200", "--write-timeout-ms", "5000", "--min-rate", "0",
            env={**os.environ, "NULL_AHEAD": "64"})
N = 40000  # events: 9 MB, more than any socket's buffer


def connect():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    s.settimeout(60)
    s.connect(("127.0.0.1", null.port))
    return s


class Reader:
    def __init__(self, s, stall_s):
        self.s, self.stall_s, self.data, self.n_stalls = s, stall_s, b"", 0

    def fill(self):
        if self.n_stalls < 3:
            time.sleep(self.stall_s)  # the buffers of both sides fill
            self.n_stalls += 1
        chunk = self.s.recv(1 << 20)
        assert chunk, "closed in the middle"
        self.data += chunk

    def line(self):
        while b"\r\n" not in self.data:
            self.fill()
        line, self.data = self.data.split(b"\r\n", 1)
        return line

    def take(self, n):
        while len(self.data) < n:
            self.fill()
        got, self.data = self.data[:n], self.data[n:]
        return got


def check_events(body, n):
    events = body.split(b"\n\n")
    assert events.pop() == b"" and events.pop() == b"data: [DONE]"
    assert len(events) == n, (len(events), n)
    assert all(re.fullmatch(rb'data: \{.*"text":"x".*\}', e) for e in events)
    assert b'"finish_reason":"length"' in events[-1] and b'"finish_reason":"length"' not in events[-2]


def read_answer(reader, n):
    assert reader.line().startswith(b"HTTP/1.1 200 ")
    while reader.line():
        pass
    body = []
    while size := int(reader.line(), 16):
        body.append(reader.take(size))
        assert reader.take(2) == b"\r\n"
    assert reader.line() == b""
    check_events(b"".join(body), n)


def chunked(stall_s):
    s = connect()
    reader = Reader(s, stall_s)
    s.sendall(request(N))
    time.sleep(stall_s)
    s.sendall(request(7))  # its answer waits for the end of the first
    read_answer(reader, N)
    read_answer(reader, 7)
    assert reader.data == b""
    s.close()


def until_closed(stall_s):
    s = connect()
    s.sendall(request(N).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    time.sleep(stall_s)
    data = b""
    while chunk := s.recv(1 << 20):
        data += chunk
    check_events(data.split(b"\r\n\r\n", 1)[1], N)


def wait_idle(what, limit_s):
    until = time.monotonic() + limit_s
    while null.metric("spand_streams") or null.metric("spand_requests_running"):
        assert time.monotonic() < until, f"{what}: still there after {limit_s} s"
        time.sleep(0.05)


failures = []


def attempt(fn, *args):
    try:
        fn(*args)
    except BaseException as e:  # noqa: B902
        failures.append((fn.__name__, args, repr(e)))


threads = [threading.Thread(target=attempt, args=(fn, stall)) for fn in (chunked, until_closed)
           for stall in (0, 0.05, 0.2, 0.4)]
for t in threads:
    t.start()
for t in threads:
    t.join()
assert not failures, failures
wait_idle("all were read", 5)

gone = connect()
gone.sendall(request(60000))
time.sleep(0.5)  # blocked by now, and in the middle of an event
assert null.metric("spand_streams") == 1 and null.metric("spand_sse_backlog_bytes") > 0
gone.close()
wait_idle("a client that left", 2)

never = connect()
never.sendall(request(60000))
began = time.monotonic()
time.sleep(1)
assert null.metric("spand_streams") == 1
wait_idle("a client that never reads", 12)
assert time.monotonic() - began > 4.5, "cut before its deadline"
never.close()
assert null.stop() == 0
print("stalled: ok")
