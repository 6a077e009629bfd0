"""A headless Chromium, driven by its own protocol through two pipes: no driver, no library.

What a test needs of one: open a page, run a script in it, press keys, move the mouse, take a
picture; and what the page asked for and complained of meanwhile.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

KEYS = {"Tab": 9, "Enter": 13, "Space": 32}
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # of root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
# Chromium speaks its protocol on the files 3 and 4
_LAUNCH = """
import fcntl, os, sys
high = [fcntl.fcntl(int(own), fcntl.F_DUPFD, 10) for own in sys.argv[1:3]]
for own, number in zip(high, (3, 4)):
    os.dup2(own, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


def installed():
    """Chromium, put there from Debian's packages where it is missing; None where it cannot be."""
    if found := shutil.which("chromium"):
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return None
    for words in (("update",), ("install", "-y", "--no-install-recommends", "chromium")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=60", *words],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=240,
                check=False,
            )
    return shutil.which("chromium")


class Chromium:
    """One browser with one page; a context manager.

    Args:
        file: Chromium's.
        profile: an empty directory.

    Attributes:
        requests: addresses that the page has asked for.
        complaints: what it has logged as a warning or an error, exceptions too.
    """

    def __init__(self, file, profile):
        self.requests, self.complaints = [], []
        self._count, self._rest, self._waiting = 0, b"", []
        theirs, self._ours = os.pipe()
        self._answers, theirs_out = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCH, str(theirs), str(theirs_out)),
                *(file, *_FLAGS, f"--user-data-dir={profile}"),
            ],
            pass_fds=(theirs, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(theirs_out)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._ours)
        os.close(self._answers)

    def call(self, method, **arguments):
        """A command of the protocol; what it answers."""
        self._count += 1
        told = {"id": self._count, "method": method, "params": arguments}
        if self._session is not None:
            told["sessionId"] = self._session
        os.write(self._ours, json.dumps(told).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._count:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self._note(found)

    def _next(self, seconds=60):
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], end - time.monotonic())
            if not ready:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self._answers, 1 << 20)
            if not part:
                raise TimeoutError("Chromium has ended")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def _note(self, event):
        own = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(own["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(own["exceptionDetails"])[:2000])
            case "Log.entryAdded" if own["entry"]["level"] in ("warning", "error"):
                self.complaints.append(own["entry"]["text"])
            case "Runtime.consoleAPICalled" if own["type"] in ("warning", "error", "assert"):
                self.complaints.append(json.dumps(own["args"])[:2000])
            case "Page.javascriptDialogOpening":
                self.complaints.append(f"a dialogue: {own['message']}")

    def look(self, *, width=1280, height=900, dark=False, phone=False):
        """How large the page's window is, and what the system is said to prefer."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, file):
        """Load a file, and wait until its script is through."""
        self.call("Page.navigate", url=Path(file).resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready === 'true'")

    def wait(self, script, seconds=30):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                raise TimeoutError(f"{script}: not within {seconds} s; {self.complaints}")
            time.sleep(0.05)

    def run(self, script):
        """The value of an expression, or of a promise of one."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def press(self, key):
        """A key goes down and up."""
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        name = {"Space": " "}.get(key, key)
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=key,
                windowsVirtualKeyCode=KEYS[key],
                **({"text": text} if kind == "keyDown" and text else {}),
            )

    def mouse(self, kind, x, y, pressed=False):
        """The mouse has moved (`"mouseMoved"`), or its button is down or up at a place."""
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left" if pressed or kind != "mouseMoved" else "none",
            buttons=int(pressed),
            clickCount=int(kind != "mouseMoved"),
        )

    def names(self):
        """Of everything that can be focused its role and its accessible name."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (own["role"]["value"], own.get("name", {}).get("value", ""))
            for own in nodes
            if not own["ignored"]
            and any(p["name"] == "focusable" and p["value"]["value"] for p in own["properties"])
            and own["role"]["value"] != "RootWebArea"
        ]

    def picture(self, file, whole=True):
        """A picture of the page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(file).write_bytes(base64.b64decode(found["data"]))
