"""A real daemon on a free port, for the tests: start, talk, read its metrics, stop."""

import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
SPAND = os.environ.get("SPAND", os.path.join(ROOT, "build", "spand"))
MODEL = os.path.join(ROOT, "models", "demo-llama")
START_LIMIT_S = 120  # sanitizer builds start slowly


class Daemon:
    """`spand serve` with the demo model. Its output is kept in `lines`."""

    def __init__(self, *flags, env=None, model=MODEL, address=None, preexec_fn=None,
                 program=SPAND, stderr=subprocess.STDOUT):
        command = [program, "serve", "--model", model, "--port", "0", *flags]
        self.lines = []
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **(env or {})}, preexec_fn=preexec_fn,
            stdout=subprocess.PIPE, stderr=stderr, text=True, errors="replace")
        self._address = threading.Event()
        self._wanted = re.escape(address) if address else r"https?://127\.0\.0\.1:(\d+)"
        self.port = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + START_LIMIT_S
        while not self._address.wait(0.05):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError("the daemon did not start:\n" + "".join(self.lines))
        while self.get("/health")[0] != 200:
            time.sleep(0.02)

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(self._wanted, line)
            if found and not self._address.is_set():
                self.port = int(found.group(1)) if found.groups() else None
                self._address.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Returns status, headers (lower-case keys) and body bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            data = response.read()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, data
        finally:
            connection.close()

    def get(self, path):
        status, headers, data = self.request("GET", path)
        return status, headers, data

    def post(self, path, value, **kwargs):
        """Posts JSON (or raw bytes or text); returns status and the decoded answer."""
        body = value if isinstance(value, (bytes, str)) else json.dumps(value)
        if isinstance(body, str):
            body = body.encode()
        status, _, data = self.request(
            "POST", path, body, {"Content-Type": "application/json"}, **kwargs)
        return status, json.loads(data)

    def events(self, path, value):
        """Posts and returns the data of every server-sent event, decoded, with [DONE] last."""
        status, headers, data = self.request(
            "POST", path, json.dumps(value).encode(), {"Content-Type": "application/json"})
        assert status == 200, data
        assert headers["content-type"].startswith("text/event-stream")
        out = []
        for block in data.decode().split("\n\n"):
            if not block or block.startswith(":"):
                continue
            assert block.startswith("data: ") and "\n" not in block
            payload = block[len("data: "):]
            out.append(payload if payload == "[DONE]" else json.loads(payload))
        assert out[-1] == "[DONE]"
        return out

    def metrics(self):
        """Every sample of /metrics by its name with labels."""
        values = {}
        for line in self.get("/metrics")[2].decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def gauge(self, name):
        """A metric by its name without labels (the first that matches)."""
        for key, value in self.metrics().items():
            if key.split("{")[0] == name:
                return value
        raise KeyError(name)

    def wait_idle(self, limit_s=10.0):
        """Waits until nothing runs or waits and every page is back."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            values = [self.gauge("vllm:num_requests_running"),
                      self.gauge("vllm:num_requests_waiting"),
                      self.gauge("vllm:kv_cache_usage_perc")]
            if not any(values):
                return
            time.sleep(0.02)
        raise AssertionError(f"not idle after {limit_s} s: running, waiting, kv = {values}")

    def stop(self, sig=signal.SIGTERM, limit_s=60):
        """Signals and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(5)
        return code

    def output(self):
        return "".join(self.lines)


def run(*args, stdin=None, env=None, timeout=120):
    """One of the command-line programs to its end."""
    return subprocess.run([SPAND, *args], cwd=ROOT, input=stdin, capture_output=True,
                          env={**os.environ, **(env or {})}, timeout=timeout)
