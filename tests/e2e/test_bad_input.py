"""The table bad_input.tsv against a real daemon: every case is answered as it says, and nothing is left.

Columns: layer, target, input, expected status, expected error code. How an input is sent depends on
the target:

  raw        bytes over a socket that stays open; \\r \\n \\xNN \\\\ are escapes
  half       the same, and then our sending side is closed
  /path      the body of a POST there; the same escapes
  completions, chat, tokenize, detokenize
             JSON members that replace those of a small good body; no escapes

In all of them {{N*text}} is text N times ($I inside is its number), N a number or C, the context,
C-1 and so on. $M is the model's id in JSON and $m bare, $V the vocabulary's size, $B a good
completions body, $L its length, $X that in hexadecimal.

Status `cut` means that the connection is closed without an answer. Code `-` is a JSON error whose
code is null (or any body of a 200), `html` a page of libmicrohttpd's own, `empty` no body. `lost` is
such a page that may not arrive: the connection is reset for what was sent and not read.
"""

import concurrent.futures
import http.client
import json
import os
import re
import socket

import pytest

from daemon import Daemon

TABLE = os.path.join(os.path.dirname(__file__), "bad_input.tsv")
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions",
         "tokenize": "/tokenize", "detokenize": "/detokenize"}
LIMIT_S = 30
MANY = 8  # requests at once


def read_table():
    rows = []
    for number, line in enumerate(open(TABLE, encoding="utf-8"), 1):
        if not line.startswith("#"):
            rows.append((number, *line.rstrip("\n").split("\t")))
    return rows


ROWS = read_table()


class Sender:
    """Turns inputs into bytes and sends them."""

    def __init__(self, daemon):
        self.port = daemon.port
        info = json.loads(daemon.get("/v1/models")[2])["data"][0]
        self.model, self.context = info["id"], info["max_model_len"]
        self.vocab = self.vocab_size(daemon)
        self.good = json.dumps({"model": self.model, "prompt": "The", "max_tokens": 1})

    def vocab_size(self, daemon):
        low, high = 1, 1 << 24  # the first id that /detokenize refuses
        while low < high:
            middle = (low + high) // 2
            status, _ = daemon.post("/detokenize", {"model": self.model, "tokens": [middle]})
            low, high = (middle + 1, high) if status == 200 else (low, middle)
        return low

    def expand(self, text):
        def repeat(found):
            count = found.group(1)
            n = self.context + int(count[1:] or 0) if count[0] == "C" else int(count)
            piece = found.group(2)
            return "".join(piece.replace("$I", str(i)) for i in range(n)) if "$I" in piece else piece * n
        text = text.replace("{{$C*", "{{C*")
        text = re.sub(r"\{\{(\d+|C(?:-\d+)?)\*(.*?)\}\}", repeat, text, flags=re.S)
        for name, value in (("$M", json.dumps(self.model)), ("$m", self.model),
                            ("$V", str(self.vocab)), ("$B", self.good),
                            ("$L", str(len(self.good))), ("$X", f"{len(self.good):x}")):
            text = text.replace(name, value)
        return text

    def unescape(self, text):
        plain = {"r": b"\r", "n": b"\n", "\\": b"\\"}

        def one(found):
            e = found.group(1)
            return plain[e.decode()] if len(e) == 1 else bytes([int(e[1:], 16)])
        return re.sub(rb"\\(r|n|\\|x[0-9a-f]{2})", one, text.encode())

    def members(self, target, text, written):
        base = {"model": json.dumps(self.model), "max_tokens": "2"}
        if target == "chat":
            base["messages"] = '[{"role": "user", "content": "x"}]'
        elif target == "detokenize":
            base["tokens"] = "[5]"
        else:
            base["prompt"] = '"The"'
        for name in list(base):
            if re.search(rf'(^|, )"{name}":', written):
                del base[name]
        pairs = [f'"{name}": {value}' for name, value in base.items()]
        return ("{" + ", ".join([*pairs, text]) + "}").encode()

    def send(self, target, text):
        """Returns the status (or "cut"), the headers and the body."""
        written, text = text, self.expand(text)
        if target in ("raw", "half"):
            return self.send_raw(self.unescape(text), target == "half")
        if target in PATHS:
            return self.post(PATHS[target], self.members(target, text, written))
        return self.post(target, self.unescape(text))

    def post(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            return str(response.status), response.headers, response.read()
        finally:
            connection.close()

    def send_raw(self, data, half):
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S) as s:
            try:
                s.sendall(data)
                if half:
                    s.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # closed early: what it said may still be there
            try:
                return self.receive(s, data.startswith(b"HEAD"))
            except ConnectionResetError:
                return "cut", {}, b""

    def receive(self, s, is_head):
        got = b""
        while True:
            head, found, body = got.partition(b"\r\n\r\n")
            if found and head.split()[1] == b"100":
                got = body
                continue
            if found:
                break
            chunk = s.recv(65536)
            if not chunk:
                return "cut", {}, got
            got += chunk
        headers = {k.lower(): v.strip() for k, _, v in
                   (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])}
        want = 0 if is_head else int(headers.get("content-length", 0))
        while len(body) < want and (chunk := s.recv(65536)):
            body += chunk
        return head.split()[1].decode(), headers, b"" if is_head else body[:want]


def wrong_with(answer, status, code):
    """What is wrong with an answer, or None."""
    got, headers, body = answer
    if code == "lost" and got == "cut":
        return None
    if got != status:
        return f"status {got}, want {status}: {body[:160]!r}"
    if status == "cut":
        return f"bytes came: {body[:80]!r}" if body else None
    if code == "empty":
        return f"a body came: {body[:80]!r}" if body else None
    if code in ("html", "lost"):
        return None if b"<html>" in body else f"not the library's page: {body[:80]!r}"
    if int(status) < 400:
        return None
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"no error object: {body[:160]!r}"
    if set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return f"error object {error}"
    if code != "-" and error["code"] != code:
        return f"code {error['code']}, want {code}"
    if status == "405" and not headers.get("allow"):
        return "no Allow header"
    return None


@pytest.fixture(scope="module")
def target():
    d = Daemon("--max-batch", "8", "--max-seq-len", "1024", "--header-timeout-ms", "1000", "--body-timeout-ms", "1000",
               "--log-level", "error")
    yield d
    assert d.stop() == 0, d.output()
    assert "Sanitizer" not in d.output(), d.output()


@pytest.fixture(scope="module")
def sender(target):
    return Sender(target)


def run_rows(sender, rows):
    def one(row):
        number, _, to, text, status, code = row
        try:
            wrong = wrong_with(sender.send(to, text), status, code)
        except (OSError, http.client.HTTPException) as e:
            wrong = f"{type(e).__name__}: {e}"
        return wrong and f"line {number}: {to} {text[:120]}\n    {wrong}"
    with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
        return [wrong for wrong in pool.map(one, rows) if wrong]


def test_the_table_is_long_and_has_no_row_twice():
    assert len(ROWS) >= 400
    assert len({row[1:4] for row in ROWS}) == len(ROWS)
    assert all(len(row) == 6 for row in ROWS)


@pytest.mark.parametrize("layer", sorted({row[1] for row in ROWS}))
def test_every_case_is_answered_as_the_table_says(target, sender, layer):
    rows = [row for row in ROWS if row[1] == layer]
    wrong = run_rows(sender, rows)
    assert not wrong, f"{len(wrong)} of {len(rows)}:\n" + "\n".join(wrong)
    target.wait_idle()
    assert target.get("/health")[0] == 200
    assert target.post("/v1/completions", sender.good)[0] == 200


def resources(pid):
    status = open(f"/proc/{pid}/status").read()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)), len(os.listdir(f"/proc/{pid}/fd"))


def test_the_table_leaks_nothing(target, sender):
    """Memory and descriptors after one more pass are those after the passes before it."""
    rows = [row for row in ROWS if row[4] != "cut" and "{{" not in row[3]][::2]
    seen = []
    for _ in range(4):
        assert not run_rows(sender, rows)
        target.wait_idle()
        seen.append(resources(target.process.pid))
    slack_kb = 65536 if "address" in os.environ.get("SPAND", "") else 16384
    assert min(seen[2][0], seen[3][0]) <= max(seen[0][0], seen[1][0]) + slack_kb, seen
    assert seen[-1][1] <= seen[0][1] + 2, seen
