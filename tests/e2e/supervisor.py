"""What systemd does for a service with Type=notify, as far as the tests need it.

It listens on NOTIFY_SOCKET, sends SIGABRT when no WATCHDOG=1 came in time, and starts the service
again when it ended badly. Sockets can be passed as by a socket unit.
"""

import os
import re
import signal
import socket
import subprocess
import threading
import time

from daemon import MODEL, ROOT, SPAND


class Supervisor:
    def __init__(self, folder, *flags, watchdog_ms=0, env=None, listen=(), restart=True, program=SPAND):
        self.flags, self.watchdog_ms, self.restart, self.program = flags, watchdog_ms, restart, program
        self.env = {**os.environ, **(env or {})}
        self.listen = listen
        self.heard, self.lines, self.ends = [], [], []
        self.ports = []
        self.path = str(folder / "notify")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.path)
        self.notify.settimeout(0.02)
        self.stopping = False
        self.process = None
        self.start()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def start(self):
        env = {**self.env, "NOTIFY_SOCKET": self.path}
        if self.watchdog_ms:
            env["WATCHDOG_USEC"] = str(self.watchdog_ms * 1000)
        command = [self.program, "serve", "--model", MODEL, "--port", "0", *self.flags]
        fds = [s.fileno() for s in self.listen]
        if fds:
            # The shell puts the sockets where the service looks for them, and its own pid beside.
            moves = " ".join(f"{3 + i}<&{fd}" for i, fd in enumerate(fds))
            command = ["bash", "-c", f'export LISTEN_PID=$$ LISTEN_FDS={len(fds)}; exec "$@" {moves}',
                       "sh", *command]
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, pass_fds=fds, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
        self.last_sign = time.monotonic()
        threading.Thread(target=self.read, args=(self.process,), daemon=True).start()

    def read(self, process):
        for line in process.stdout:
            self.lines.append(line)
            found = re.search(r"listening on https?://127\.0\.0\.1:(\d+)", line)
            if found:
                self.ports.append(int(found.group(1)))

    def run(self):
        ready = False
        while True:
            try:
                text = self.notify.recv(8192).decode()
                self.heard.append(text)
                if "READY=1" in text:
                    ready = True
                if "WATCHDOG=1" in text or "READY=1" in text:
                    self.last_sign = time.monotonic()
            except TimeoutError:
                pass
            except OSError:
                return
            code = self.process.poll()
            if code is not None:
                self.ends.append(code)
                if self.stopping or not self.restart:
                    return
                ready = False
                self.start()
            elif ready and self.watchdog_ms and (
                    time.monotonic() - self.last_sign > self.watchdog_ms / 1000):
                self.process.send_signal(signal.SIGABRT)
                self.process.wait(20)

    def states(self):
        return [line for text in self.heard for line in text.splitlines()]

    def wait_for(self, what, limit_s=60):
        deadline = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < deadline, "".join(self.lines[-40:]) + repr(self.heard[-10:])
            time.sleep(0.02)

    def stop(self):
        self.stopping = True
        self.process.send_signal(signal.SIGTERM)
        self.wait_for(lambda: self.ends)
        self.thread.join(5)
        self.notify.close()
        return self.ends[-1]
