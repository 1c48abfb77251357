"""The page at /: complete in itself, and alive in a headless Chromium."""

import base64
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request

import pytest

from daemon import Daemon

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_it_is_one_file_that_asks_nobody_else(daemon):
    status, headers, data = daemon.get("/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    outside = [u for u in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", data.decode())
               if "www.w3.org/2000/svg" not in u]
    assert not outside, outside
    assert daemon.request("HEAD", "/")[0] == 200 and daemon.request("POST", "/", b"")[0] == 405


def test_with_keys_a_browser_is_asked_for_one(tmp_path):
    (tmp_path / "keys").write_text("me key-of-mine\n")
    d = Daemon("--api-keys-file", str(tmp_path / "keys"))
    try:
        status, headers, _ = d.get("/")
        assert status == 401 and headers["www-authenticate"].startswith("Basic")
        basic = {"Authorization": "Basic " + base64.b64encode(b"me:key-of-mine").decode()}
        assert d.request("GET", "/", headers=basic)[0] == 200
        assert d.request("GET", "/ui/plan", headers=basic)[0] == 200
    finally:
        assert d.stop() == 0


class Browser:
    """Chromium over its debugging pipe: one page, JavaScript in, values out."""

    def __init__(self, folder):
        out_r, out_w = os.pipe()
        in_r, in_w = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4.
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{in_r} 4>&{out_w}', "sh", CHROMIUM, "--headless=new", "--no-sandbox",
             "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--window-size=1100,1000",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(in_r, out_w), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(in_r)
        os.close(out_w)
        self.out, self.into = os.fdopen(out_r, "rb"), os.fdopen(in_w, "wb")
        self.n, self.buffer, self.requested, self.errors = 0, b"", [], []
        target = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"][0]
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(domain + ".enable")

    def call(self, method, **params):
        self.n += 1
        message = {"id": self.n, "method": method, "params": params}
        if getattr(self, "session", None):
            message["sessionId"] = self.session
        self.into.write(json.dumps(message).encode() + b"\0")
        self.into.flush()
        while True:
            answer = self.read()
            if answer.get("id") == self.n:
                assert "result" in answer, answer
                return answer["result"]

    def read(self):
        while b"\0" not in self.buffer:
            chunk = os.read(self.out.fileno(), 65536)
            assert chunk, "chromium has ended"
            self.buffer += chunk
        one, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(one)
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(message["params"])
        return message

    def value(self, code):
        return self.call("Runtime.evaluate", expression=code, awaitPromise=True,
                         returnByValue=True)["result"].get("value")

    def text(self, element):
        return self.value(f"document.getElementById('{element}').textContent")

    def wait(self, code, limit_s=30):
        deadline = time.monotonic() + limit_s
        while not self.value(code):
            assert time.monotonic() < deadline, (code, self.value("document.body.innerText"), self.errors)
            time.sleep(0.1)

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here (Debian: chromium)")
def test_it_lives(tmp_path):
    d = Daemon("--plan", "streaming:64,448", "--max-batch", "4")
    browser = None
    try:
        browser = Browser(tmp_path / "profile")
        browser.call("Page.navigate", url=d.url + "/")
        browser.wait("document.getElementById('state')?.textContent === 'healthy'")
        browser.wait("document.getElementById('about').textContent.includes('demo-llama')")
        browser.wait("document.getElementById('spans-text').textContent.includes('%')")
        assert browser.value("document.getElementById('spans').height") == 8
        browser.value("document.getElementById('max').value = 400; document.getElementById('send').click()")
        browser.wait("document.getElementById('running').textContent === '1'")
        browser.wait("document.getElementById('answer').textContent.length > 200")
        browser.wait("Number(document.getElementById('rate').textContent) > 0")
        assert browser.text("kv") != "0.0 %"
        picture = os.environ.get("PAGE_PICTURE")
        if picture:
            with open(picture, "wb") as f:
                f.write(base64.b64decode(browser.call("Page.captureScreenshot")["data"]))
        browser.value("document.getElementById('stop').click()")
        browser.wait("document.getElementById('speed').textContent === 'stopped'")
        browser.wait("document.getElementById('running').textContent === '0'")
        # Text that looks like a page stays text.
        browser.value("document.getElementById('prompt').value = '<img src=x onerror=alert(1)>';"
                      "document.getElementById('max').value = 4; document.getElementById('send').click()")
        browser.wait("document.getElementById('speed').textContent.includes('4 tokens')")
        assert browser.value("document.images.length") == 0
        assert not browser.errors
        assert all(u.startswith((d.url, "about:", "data:")) for u in browser.requested), browser.requested
        d.wait_idle()
    finally:
        if browser:
            browser.close()
        assert d.stop() == 0
