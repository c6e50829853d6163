"""A real Chromium without a screen, driven through its own DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    *("--headless=new", "--no-first-run", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def chromium() -> str | None:
    """Where a Chromium is."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page of one browser; what it asked for and what its scripts threw is kept."""

    def __init__(self, folder: Path) -> None:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to start otherwise
        self._process = subprocess.Popen(
            [
                *(str(chromium()), *_FLAGS, *sandbox, "--remote-debugging-port=0"),
                *(f"--user-data-dir={folder}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._loop = asyncio.new_event_loop()
        self._last = 0
        self._events: list[dict[str, Any]] = []
        self._loop.run_until_complete(self._connect(folder / "DevToolsActivePort"))
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    async def _connect(self, told: Path) -> None:
        for _ in range(300):
            if told.exists() and told.read_text().count("\n"):
                break
            await asyncio.sleep(0.1)
        port = told.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
            (page,) = [each for each in await answer.json() if each["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    def ask(self, method: str, **asked: Any) -> dict[str, Any]:
        """The answer to one command."""
        return self._loop.run_until_complete(asyncio.wait_for(self._ask(method, asked), 30))

    async def _ask(self, method: str, asked: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": asked})
        while True:
            found = json.loads((await self._socket.receive()).data)
            if found.get("id") == self._last:
                assert "error" not in found, found["error"]
                return dict(found["result"])
            self._events.append(found)

    def open(self, page: Path | str) -> None:
        """Show a file or an address, and wait until all of it is there."""
        self._events = []
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while self.value("document.readyState") != "complete":
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What an expression, or the promise that it is, comes to in the page."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = self.ask("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, pressed and let go."""
        same = {"key": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **same)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **same)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.ask("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        """The window's size in pixels of the page."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, scheme: str) -> None:
        """Light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])

    def medium(self, name: str) -> None:
        """Show the page as on `print` or `screen`."""
        self.ask("Emulation.setEmulatedMedia", media=name)

    def picture(self) -> bytes:
        """What is in sight, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot")["data"])

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        sent = [e["params"] for e in self._events if e["method"] == "Network.requestWillBeSent"]
        return [event["request"]["url"] for event in sent]

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, and what the page's policy forbade."""
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded"}
        return [event["params"] for event in self._events if event["method"] in kinds]

    def roles(self) -> list[tuple[str, str]]:
        """Role and name of all that a screen reader is told of."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        told = [node for node in nodes if not node["ignored"]]
        return [(n["role"]["value"], str(n.get("name", {}).get("value", ""))) for n in told]

    def close(self) -> None:
        """End it."""
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait(20)
