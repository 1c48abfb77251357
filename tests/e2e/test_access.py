"""Keys, TLS, UNIX sockets, origins: who gets in, and what changes on SIGHUP."""

import base64
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time

import pytest

from daemon import Daemon, run

GOOD = {"model": "demo-llama", "prompt": "The", "max_tokens": 2}


def bearer(key):
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def wait_line(daemon, text, limit_s=20):
    deadline = time.monotonic() + limit_s
    while not any(text in line for line in daemon.lines):
        assert time.monotonic() < deadline, daemon.output()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("alice sk-alice-123\nbob sk-bob-45678\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def closed(keys_file):
    d = Daemon("--api-keys-file", str(keys_file), "--max-requests-per-key", "1")
    yield d
    assert d.stop() == 0, d.output()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/demo-llama", "/metrics", "/version", "/",
                                  "/v1/nothing", "/debug/state", "/v1/completions", "/health/../metrics",
                                  "//health", "/HEALTH"])
@pytest.mark.parametrize("headers", [{}, bearer("sk-alice-124"), bearer(""), {"X-Api-Key": "x"},
                                     {"Host": "x/health"}])
def test_every_path_wants_a_key(closed, path, headers):
    status, answer_headers, data = closed.request("GET", path, headers=headers)
    if "/" in headers.get("Host", ""):
        assert status == 400  # a forged Host changes nothing
        return
    assert status == 401
    assert answer_headers["www-authenticate"]
    assert json.loads(data)["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/v1/health", "/ping"])
def test_health_wants_none(closed, path):
    assert closed.get(path)[0] == 200


def test_keys_open_everything(closed):
    for headers in (bearer("sk-alice-123"), {"X-Api-Key": "sk-bob-45678"},
                    {"Authorization": "Basic " + base64.b64encode(b"any:sk-bob-45678").decode()}):
        assert closed.request("GET", "/v1/models", headers=headers)[0] == 200
        assert closed.request("GET", "/metrics", headers=headers)[0] == 200
        assert closed.request("POST", "/v1/completions", json.dumps(GOOD), headers)[0] == 200


def test_a_wrong_key_is_refused_before_the_body(closed):
    with socket.create_connection(("127.0.0.1", closed.port), timeout=5) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer nope\r\n"
                  b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
        assert b" 401 " in s.recv(1000).split(b"\r\n")[0]


def test_the_log_names_the_key_and_never_shows_it(closed):
    closed.request("POST", "/v1/completions", json.dumps(GOOD), bearer("sk-alice-123"))
    wait_line(closed, "key=alice")
    assert "sk-alice" not in closed.output()


def test_a_key_has_its_share(closed):
    """The second request of a key is refused while the first one runs; another key's is not."""
    s = socket.create_connection(("127.0.0.1", closed.port), timeout=20)
    body = json.dumps({**GOOD, "max_tokens": 3000, "stream": True, "ignore_eos": True}).encode()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-alice-123\r\n"
              b"Content-Length: %d\r\n\r\n" % len(body) + body)
    s.recv(100)
    status, headers, data = closed.request("POST", "/v1/completions", json.dumps(GOOD),
                                           bearer("sk-alice-123"))
    assert status == 429 and headers["retry-after"]
    assert json.loads(data)["error"]["code"] == "rate_limit_exceeded"
    assert closed.request("POST", "/v1/completions", json.dumps(GOOD), bearer("sk-bob-45678"))[0] == 200
    s.close()
    deadline = time.monotonic() + 5
    while closed.request("POST", "/v1/completions", json.dumps(GOOD), bearer("sk-alice-123"))[0] != 200:
        assert time.monotonic() < deadline


def test_sighup_changes_the_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("first-key-1\n")
    d = Daemon("--api-keys-file", str(path), "--metrics-without-key")
    try:
        assert d.request("GET", "/v1/models", headers=bearer("first-key-1"))[0] == 200
        assert d.get("/metrics")[0] == 200
        path.write_text("second-key-2\n")
        d.process.send_signal(signal.SIGHUP)
        wait_line(d, "reloaded")
        assert d.request("GET", "/v1/models", headers=bearer("first-key-1"))[0] == 401
        assert d.request("GET", "/v1/models", headers=bearer("second-key-2"))[0] == 200
        path.write_text("# all gone\n")
        d.process.send_signal(signal.SIGHUP)
        wait_line(d, "reload failed")
        assert d.request("GET", "/v1/models", headers=bearer("second-key-2"))[0] == 200
    finally:
        assert d.stop() == 0


def test_a_bad_key_file_stops_the_start(tmp_path):
    (tmp_path / "keys").write_text("short\n")
    done = run("serve", "--port", "0", "--api-keys-file", str(tmp_path / "keys"))
    assert done.returncode == 2 and b"line 1" in done.stderr


def test_credentials_of_systemd_are_found(tmp_path):
    (tmp_path / "api-keys").write_text("from-systemd-1\n")
    d = Daemon(env={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    try:
        assert d.get("/v1/models")[0] == 401
        assert d.request("GET", "/v1/models", headers=bearer("from-systemd-1"))[0] == 200
    finally:
        assert d.stop() == 0


def make_certificate(folder, name):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", str(folder / "key.pem"),
                    "-out", str(folder / "cert.pem")], check=True, capture_output=True)


class TlsDaemon(Daemon):
    def request(self, method, path, body=None, headers=None, timeout=60):
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=context)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            data = response.read()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, data
        finally:
            connection.close()


def shown_name(port):
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return subprocess.run(["openssl", "x509", "-noout", "-subject"], input=pem, text=True,
                          capture_output=True).stdout


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder, "first")
    d = TlsDaemon("--tls-cert-file", str(folder / "cert.pem"), "--tls-key-file", str(folder / "key.pem"),
                  "--header-timeout-ms", "1000")
    d.folder = folder
    yield d
    assert d.stop() == 0, d.output()


def test_tls_answers_and_streams(tls):
    assert tls.post("/v1/completions", GOOD)[0] == 200
    long = tls.post("/v1/completions", {**GOOD, "max_tokens": 200, "ignore_eos": True, "logprobs": 5})
    assert long[0] == 200 and len(json.dumps(long[1])) > 20000
    events = tls.events("/v1/completions", {**GOOD, "max_tokens": 20, "stream": True, "ignore_eos": True})
    assert len(events) > 5 and events[-1] == "[DONE]"


def test_tls_notices_a_client_that_leaves(tls):
    context = ssl._create_unverified_context()
    raw = socket.create_connection(("127.0.0.1", tls.port), timeout=20)
    s = context.wrap_socket(raw)
    body = json.dumps({**GOOD, "max_tokens": 4000, "stream": True, "ignore_eos": True}).encode()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    s.recv(100)
    s.close()
    tls.wait_idle(3)


def test_tls_refuses_old_versions_and_plain_http(tls):
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        context = ssl._create_unverified_context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(socket.create_connection(("127.0.0.1", tls.port), timeout=5))
    with socket.create_connection(("127.0.0.1", tls.port), timeout=10) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            assert not s.recv(1000).startswith(b"HTTP")
        except ConnectionError:
            pass
    assert tls.get("/health")[0] == 200


def test_half_a_handshake_is_cut_in_time(tls):
    with socket.create_connection(("127.0.0.1", tls.port), timeout=10) as s:
        began = time.monotonic()
        s.sendall(b"\x16\x03\x01\x02\x00\x01")
        try:
            assert s.recv(1000) == b""
        except ConnectionError:
            pass
        assert time.monotonic() - began < 2.5


def test_sighup_changes_the_certificate_and_keeps_connections(tls):
    connection = http.client.HTTPSConnection("127.0.0.1", tls.port, timeout=20,
                                             context=ssl._create_unverified_context())
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    assert "first" in shown_name(tls.port)
    make_certificate(tls.folder, "second")
    tls.process.send_signal(signal.SIGHUP)
    wait_line(tls, "reloaded")
    assert "second" in shown_name(tls.port)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    key = (tls.folder / "key.pem").read_text()
    make_certificate(tls.folder, "third")
    (tls.folder / "key.pem").write_text(key)
    tls.process.send_signal(signal.SIGHUP)
    wait_line(tls, "is not the key of the certificate")
    assert "second" in shown_name(tls.port)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self.path)


class UnixDaemon(Daemon):
    def __init__(self, path, *flags):
        self.unix = path
        super().__init__("--unix-socket", path, *flags, address=f"unix:{path}")

    def request(self, method, path, body=None, headers=None, timeout=60):
        connection = UnixConnection(self.unix)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()


def test_unix_socket(tmp_path):
    path = str(tmp_path / "s")
    d = UnixDaemon(path, "--unix-socket-mode", "0600")
    try:
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert d.post("/v1/completions", GOOD)[0] == 200
        done = run("serve", "--unix-socket", path)
        assert done.returncode == 1 and b"in use" in done.stderr
        d.process.kill()
        d.process.wait()
        assert os.path.exists(path)
        d = UnixDaemon(path)  # what the killed one left behind is replaced
        assert d.post("/v1/completions", GOOD)[0] == 200
    finally:
        assert d.stop() == 0
    assert not os.path.exists(path)


@pytest.fixture(scope="module")
def cors():
    d = Daemon("--cors-origins", "https://a.example, http://localhost:3000")
    yield d
    assert d.stop() == 0


def test_listed_origins_may_call(cors):
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST",
           "Access-Control-Request-Headers": "authorization,content-type"}
    status, headers, body = cors.request("OPTIONS", "/v1/completions", headers=ask)
    assert status == 204 and body == b""
    assert headers["access-control-allow-origin"] == "https://a.example"
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == "authorization,content-type"
    status, headers, _ = cors.request("POST", "/v1/completions", json.dumps(GOOD),
                                      {"Origin": "http://localhost:3000"})
    assert status == 200 and headers["access-control-allow-origin"] == "http://localhost:3000"
    assert headers["vary"] == "Origin"


def test_others_may_not(cors):
    ask = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = cors.request("OPTIONS", "/v1/completions", headers=ask)
    assert status == 405 and "access-control-allow-origin" not in headers
    headers = cors.request("GET", "/health", headers={"Origin": "https://evil.example"})[1]
    assert "access-control-allow-origin" not in headers
