"""Chromium without a window, driven through the WebDriver protocol of its own driver (W3C), which is JSON over HTTP.

Debian's packages `chromium` and `chromium-driver`, installed when missing and allowed; where they are not to be had,
`NotToBeHad` says so.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Browser", "NotToBeHad", "debian_packages", "open_browser"]

START_S = 30.0
SCRIPT_S = 240.0


class NotToBeHad(Exception):
    """A package that this machine's registries do not have; the text says which and what they answered."""


def debian_packages(*names: str, program: str) -> None:
    """Install Debian packages unless `program` is there. Raises `NotToBeHad`."""
    if shutil.which(program):
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise NotToBeHad(f"{program} is not installed, and this is no Debian where we may install {', '.join(names)}")
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *names]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode or not shutil.which(program):
        raise NotToBeHad(f"apt-get install {' '.join(names)}: {done.stderr.strip()[-300:]}")


class Browser:
    """One session."""

    def __init__(self, driver: str, arguments: list[str]) -> None:
        self._driver = driver
        options = {"args": arguments}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "timeouts": {"script": int(SCRIPT_S * 1000)}}
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"
        self.version: str = answer["capabilities"]["browserVersion"]

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:  # Any: what the page returns
        """The result of an async function body with `arguments`; what it throws becomes a RuntimeError."""
        wrapped = (
            "const done = arguments[arguments.length - 1]; const args = Array.from(arguments).slice(0, -1);"
            f"(async () => {{ {script} }})().then((value) => done({{value}}),"
            " (error) => done({error: String(error && error.stack || error)}));"
        )
        found = self._call("POST", f"{self._session}/execute/async", {"script": wrapped, "args": list(arguments)})
        if "error" in found:
            raise RuntimeError(found["error"])
        return found.get("value")

    def type(self, selector: str, text: str) -> None:
        """Type into an element as a user does; `\\ue007` is Enter."""
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        element = next(iter(found.values()))
        self._call("POST", f"{self._session}/element/{element}/value", {"text": text})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def close(self) -> None:
        self._call("DELETE", self._session)

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SCRIPT_S + 10) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                value = json.load(error)["value"]
            raise RuntimeError(f"{value['error']}: {value['message']}") from None


@contextlib.contextmanager
def open_browser(directory: Path, port: int) -> Iterator[Browser]:
    """A headless Chromium with a profile of its own below `directory`; its driver listens on `port`."""
    debian_packages("chromium", "chromium-driver", program="chromedriver")
    log = directory / "chromedriver.log"
    process = subprocess.Popen(["chromedriver", f"--port={port}", f"--log-path={log}"], stdout=subprocess.DEVNULL)
    try:
        _wait(port)
        arguments = ["--headless=new", "--disable-gpu", "--no-first-run", f"--user-data-dir={directory / 'profile'}"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # it refuses to run as root otherwise
        browser = Browser(f"http://127.0.0.1:{port}", [*arguments, "--window-size=900,700"])
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        process.wait(10)


def _wait(port: int) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
                if json.load(answer)["value"]["ready"]:
                    return
        except OSError:
            pass
        if time.monotonic() > until:
            raise RuntimeError(f"chromedriver is not ready after {START_S:.0f} s")
        time.sleep(0.1)
