"""Between a client and its S3 server: a proxy on loopback that fails requests in the ways of S3.

Requests travel as they came, their Host and signature too, so that a server that checks signatures
accepts them only if it takes the proxy's address for its own (or ignores Host in its routing, as
radosgw does without a DNS name).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

#: What may be done to a request, and whether the client must notice.
KINDS = {
    "internal_error": "500 in the words of S3; not carried out",
    "slow_down": "503 in the words of S3; not carried out",
    "no_answer": "the connection is cut; not carried out",
    "lost_answer": "the connection is cut; carried out",
    "cut_answer": "the connection is cut in the middle of the answer; carried out",
    "wrong_length": "more bytes are promised than come; carried out",
    "slow": "the answer comes in drops; carried out, and nothing is wrong with it",
}
#: One request in ten, all kinds alike.
ONE_IN_TEN = dict.fromkeys(KINDS, 0.1 / len(KINDS))
HARMLESS = ("slow",)
#: Of these, aiohttp asks once more before anything above it hears of it.
UNHEARD = ("no_answer", "lost_answer")
_ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
    "<RequestId>0A49CE4060975EAC</RequestId><HostId>of the proxy</HostId></Error>"
)
_REFUSALS = {
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
}
DENIALS = {
    "SignatureDoesNotMatch": "The request signature we calculated does not match the signature you "
    "provided. Check your key and signing method.",
    "InvalidAccessKeyId": "The AWS Access Key Id you provided does not exist in our records.",
    "AccessDenied": "Access Denied",
}


@dataclass(frozen=True)
class Injected:
    """One fault, and the request that met it."""

    kind: str
    method: str
    target: str


@dataclass
class Proxy:
    """What it does may be changed while it runs; `log` and `counts` say what it did."""

    upstream: str
    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    gone: str = ""
    """A pattern of targets that are listed, but answered with 404."""
    denial: str = ""
    """One of DENIALS: the answer to everything."""
    planned: list[tuple[str, str]] = field(default_factory=list)
    """Kinds for the next requests that match: (kind, pattern of "METHOD target")."""
    log: list[Injected] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    address: str = ""

    def plan(self, kind: str, asked: str = "", times: int = 1) -> None:
        """Let the next requests that match a pattern meet a fault."""
        assert kind in KINDS
        self.planned += [(kind, asked)] * times

    def forget(self) -> None:
        """Inject nothing any more, and have injected nothing."""
        self.shares, self.gone, self.denial = {}, "", ""
        self.planned.clear()
        self.log.clear()
        self.requests.clear()

    @property
    def counts(self) -> Counter[str]:
        """How many faults of each kind were injected."""
        return Counter(entry.kind for entry in self.log)

    def failures(self, asked: str = "") -> int:
        """How many requests that match a pattern of "METHOD target" failed."""
        return sum(
            entry.kind not in HARMLESS and bool(re.search(asked, f"{entry.method} {entry.target}"))
            for entry in self.log
        )

    def _choose(self, method: str, target: str) -> str | None:
        """The fault for a request; by its words and how often they came, not by the order."""
        words = f"{method} {target}"
        self.requests[words] += 1
        for number, (kind, asked) in enumerate(self.planned):
            if re.search(asked, words):
                del self.planned[number]
                return kind
        without_bucket = re.sub(r"^/[^/?]*", "", target)
        drawn = random.Random(f"{self.seed} {method} {without_bucket} {self.requests[words]}")
        kinds = [None, *self.shares]
        return drawn.choices(kinds, [1 - sum(self.shares.values()), *self.shares.values()])[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request on one connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            if re.search(rb"(?i)\r\nexpect: 100-continue", head):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            await self._answer(method, target, head, body, writer)
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    async def _answer(
        self, method: str, target: str, head: bytes, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if self.denial:
            writer.write(_said(403, self.denial, DENIALS[self.denial], method))
            return
        if self.gone and method in {"GET", "HEAD"} and re.search(self.gone, target):
            writer.write(_said(404, "NoSuchKey", "The specified key does not exist.", method))
            return
        kind = self._choose(method, target)
        if kind == "wrong_length" and method == "HEAD":
            kind = "cut_answer"  # a length without a body is no promise, but a lie
        if kind:
            self.log.append(Injected(kind, method, target))
        if kind in _REFUSALS:
            writer.write(_said(*_REFUSALS[kind], method))
        elif kind != "no_answer":
            answer = await self._forward(head, body)
            await _hand_out(answer, kind, writer)
        await writer.drain()

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        place = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        head = re.sub(rb"(?i)\r\n(expect|connection): [^\r]*", b"", head)
        writer.write(head.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n" + body)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        while answer.startswith(b"HTTP/1.1 100"):
            answer = answer.partition(b"\r\n\r\n")[2]
        head, _, body = answer.partition(b"\r\n\r\n")
        head = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)
        return head + b"\r\nConnection: close\r\n\r\n" + body


async def _hand_out(answer: bytes, kind: str | None, writer: asyncio.StreamWriter) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if kind == "lost_answer":
        return
    if kind == "cut_answer":
        answer = answer[: len(answer) - len(body) // 2] if len(body) > 1 else head[: len(head) // 2]
    elif kind == "wrong_length" and length:
        more = b"%d" % (int(length[1]) + 17)
        answer = head[: length.start(1)] + more + head[length.end(1) :] + b"\r\n\r\n" + body
    elif kind == "wrong_length":
        answer = head[: len(head) // 2]
    if kind == "slow":
        step = max(1, len(answer) // 8)
        for start in range(0, len(answer), step):
            writer.write(answer[start : start + step])
            await writer.drain()
            await asyncio.sleep(0.02)
    else:
        writer.write(answer)


def _said(status: int, code: str, message: str, method: str) -> bytes:
    body = _ERROR.format(code=code, message=message).encode()
    head = (
        f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)


@contextlib.contextmanager
def running(proxy: Proxy) -> Iterator[Proxy]:
    """Run a proxy on a free port of loopback, in a thread of this process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    server = wait(asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=2**20))
    proxy.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
