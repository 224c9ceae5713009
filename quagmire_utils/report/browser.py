"""A headless Chromium that opens one page, over its DevTools protocol: for the README's picture and for the tests.

    with Browser() as browser:
        browser.open(Path("results/mini/report.html"), width=390, scheme="dark")
        browser.screenshot(Path("phone.png"))

It notes every request, every message on the console and every error that the page causes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
PATIENCE = 120  # seconds for an answer; a loaded two-core machine takes many


def find_chromium() -> str | None:
    """The program of a Chromium or Chrome on this machine."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    return found or (MAC if Path(MAC).exists() else None)


class Browser:
    """One browser with one tab; a context manager.

    Raises ParameterError where the machine has no Chromium, and RuntimeError where it does not start or answer.
    """

    def __init__(self) -> None:
        program = find_chromium()
        if program is None:
            raise ParameterError(f"this needs a Chromium or Chrome on the PATH ({', '.join(NAMES)})")
        self.program = program
        self.requests: list[str] = []  # addresses, without the pages that `open` was given
        self.problems: list[str] = []  # errors and warnings: of the console, of the network, of scripts

    def __enter__(self) -> Browser:
        import websocket

        self._profile = tempfile.mkdtemp(prefix="quagmire-chromium-")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--mute-audio"]
        options += [f"--user-data-dir={self._profile}", "--remote-debugging-port=0", "about:blank"]
        with open(Path(self._profile) / "stderr", "wb") as stderr:
            self._process = subprocess.Popen(
                [self.program, *options], stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
            )
        try:
            self._socket = websocket.create_connection(self._tab(), timeout=PATIENCE, suppress_origin=True)
            self._number = 0
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, page: str | Path, *, width: int = 1280, height: int = 1600, scheme: str = "light") -> None:
        """Load a file, or an address, in a window of this size (CSS pixels) and colour scheme, and wait for it."""
        address = page.resolve().as_uri() if isinstance(page, Path) else page
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._address, self._loaded = address, False
        self.requests, self.problems = [], []
        failed = self._call("Page.navigate", url=address).get("errorText")
        if failed:
            raise RuntimeError(f"{address} cannot be opened: {failed}")
        deadline = time.monotonic() + PATIENCE
        while not self._loaded and time.monotonic() < deadline:
            self._receive()
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; promises are waited for."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "JavaScript failed"))
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, whole_page: bool = False) -> Path:
        """A PNG of the window, or of the whole page."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole_page}
        if whole_page:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", **options)["data"]))
        return path

    def _tab(self) -> str:
        """The address of the tab's protocol; Chromium writes its port to a file once it listens."""
        import urllib.request

        port, deadline = Path(self._profile) / "DevToolsActivePort", time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, IndexError):
                number = int(port.read_text().split()[0])
                direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with direct.open(f"http://127.0.0.1:{number}/json/list", timeout=PATIENCE) as answer:
                    tabs = json.load(answer)
                return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        said = (Path(self._profile) / "stderr").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"{self.program} did not start: {' '.join(said[-3:])}")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv())
        event, values = message.get("method"), message.get("params", {})
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent" and values["request"]["url"].partition("#")[0] != self._address:
            self.requests.append(values["request"]["url"])
        elif event == "Network.loadingFailed":
            self.problems.append(f"request failed: {values['errorText']}")
        elif event == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.problems.append(values["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.problems.append("console: " + " ".join(str(item.get("value", "")) for item in values["args"]))
        elif event == "Runtime.exceptionThrown":
            self.problems.append(values["exceptionDetails"]["text"])
        elif event == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {values['message']}")
            self._number += 1
            self._socket.send(
                json.dumps({"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}})
            )
        return message


WINDOW = (1280, 1500)  # of the README's picture


def take_screenshot(page: Path, target: Path, *, scheme: str = "light", whole_page: bool = False) -> Path:
    """A picture of the page at desktop width, with a palette of 256 colours: a third of the size."""
    from PIL import Image

    with Browser() as browser:
        browser.open(page, width=WINDOW[0], height=WINDOW[1], scheme=scheme)
        browser.screenshot(target, whole_page=whole_page)
    with Image.open(target) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    return target
