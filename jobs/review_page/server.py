"""The web application of jobs.review: its page, lists as JSON, pictures, and decisions."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jobs.review_page.access import Access
from ops.errors import UserError
from ops.plain_text import printable
from ops.results.decision_table import DECISIONS
from pipelines.review.filters import Filter
from pipelines.review.nearest import Nearest
from pipelines.review.pictures import NoPicture, Pictures
from pipelines.review.queue import Queue, Row

_FOLDER = Path(__file__).parent
_FILES = ("page.css", "page.js", "filters.js", "viewer.js", "nearest.js")
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
#: Rows of a page of the list.
MOST = 200
#: Bytes of the body of a decision, which has the texts of a filter: names may be as long as a path.
_LONGEST = 100_000
#: Columns that the page shows.
_SHOWN = (
    *("place", "image_id", "run_id", "uri", "product", "part", "view", "fields"),
    *("status", "reason"),
    *("score", "p_value", "is_anomalous", "is_new", "width", "height", "bit_depth"),
    *("peak_x", "peak_y", "map_uri", "scored_at", "decision", "who", "decided_at"),
)


class Page:
    """Answers requests with what a list and its pictures hold."""

    def __init__(
        self, queue: Queue, pictures: Pictures, who: str, nearest: Nearest | None = None
    ) -> None:
        self._queue, self._pictures, self._who = queue, pictures, who
        self._nearest, self._searches = nearest, anyio.CapacityLimiter(1)

    def file(self, request: Request) -> Response:
        """The page, its style or one of its scripts."""
        name = request.url.path.removeprefix("/") or "page.html"
        kind = _KINDS[name.rpartition(".")[2]]
        return Response((_FOLDER / name).read_bytes(), media_type=f"{kind}; charset=utf-8")

    def overview(self, _: Request) -> Response:
        """Model, nights, products and counts."""
        number, _rows = self._queue.news(2**62)
        groups = {
            name: [row | {"label": _label(row["name"])} for row in rows]
            for name, rows in self._queue.overview().items()
        }
        fields = [
            {
                "name": name,
                "label": printable(name),
                "values": [row | {"label": _label(row["name"])} for row in rows],
            }
            for name, rows in self._queue.fields().items()
        ]
        return _json(
            groups
            | {
                "fields": fields,
                "model": printable(str(self._queue.model)),
                "out": printable(self._queue.out.root),
                "who": self._who,
                "seen": number,
                "nearest": self._nearest is not None,
            }
        )

    def parts(self, request: Request) -> Response:
        """Rows of the list: from an offset, or those after or before a place."""
        query = dict(request.query_params)
        chosen, limit = Filter.of(query), min(_number(query, "limit", 60), MOST)
        if "after" in query:
            rows = self._queue.after(chosen, _number(query, "after"), limit)
        elif "before" in query:
            rows = self._queue.before(chosen, _number(query, "before"), limit)
        else:
            rows = self._queue.page(chosen, limit, _number(query, "offset"))
        return _json(self._queue.counts(chosen) | {"rows": [_shown(row) for row in rows]})

    def part(self, request: Request) -> Response:
        """One part with its regions, and its position among those of the filter."""
        row = self._row(request)
        chosen = Filter.of(dict(request.query_params))
        position = self._queue.position(chosen, row["place"])
        regions = self._queue.regions(row["image_id"])
        return _json(
            self._queue.counts(chosen)
            | {"row": _shown(row), "regions": regions, "position": position}
        )

    def picture(self, request: Request) -> Response:
        """A crop of a part's picture: `x`, `y`, `w`, `h` in its pixels, at most `side` large."""
        query = dict(request.query_params)
        row = self._row(request)
        x, y, width, height = (_number(query, name) for name in "xywh")
        box = (x, y, x + width, y + height) if width and height else None
        lossless = query.get("kind") == "png"
        side = max(1, _number(query, "side", 1024))
        data = self._pictures.crop(row, self._record(row), box, side, lossless)
        return _image(data, "image/png" if lossless else "image/jpeg")

    def heat(self, request: Request) -> Response:
        """The colours of a part's map."""
        row = self._row(request)
        side = max(1, _number(dict(request.query_params), "side", 1024))
        return _image(self._pictures.heat(row, self._record(row), side), "image/png")

    async def nearest(self, request: Request) -> Response:
        """The good places that the peak of a part is most similar to, or why none are told."""
        # Waiting requests hold no thread, and what a browser no longer waits for is left out.
        async with self._searches:
            if await request.is_disconnected():
                return Response(status_code=499)
            return _json(await anyio.to_thread.run_sync(self._find, request))

    def _find(self, request: Request) -> dict[str, Any]:
        row = self._row(request)
        try:
            found = self._compared().of(row, self._record(row))
        except NoPicture as reason:
            return {"reason": printable(str(reason)), "places": []}
        for place in found["places"]:
            place |= {name: _label(place[name]) for name in ("uri", "product") if name in place}
        return found

    def good(self, request: Request) -> Response:
        """A good place that `nearest` named, with its surroundings."""
        query, row = dict(request.query_params), self._row(request)
        vector, side = _number(query, "vector"), max(1, _number(query, "side", 256))
        data = self._compared().crop(row, self._record(row), vector, side)
        return _image(data, "image/jpeg")

    def _compared(self) -> Nearest:
        if self._nearest is None:
            raise NoPicture("parts are not compared with good places")
        return self._nearest

    async def decide(self, request: Request) -> Response:
        """Publish a decision; it is stored when the answer comes."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST:
                raise UserError(f"the decision is longer than {_LONGEST:,} bytes")
        asked = _object(bytes(body))
        decision, who = str(asked.get("decision")), str(asked.get("who") or self._who)
        if decision not in DECISIONS:
            raise UserError(f"decision {decision!r} must be one of {', '.join(DECISIONS)}")
        # Before anything is stored, for an error says that nothing was.
        chosen = Filter.of(_texts(asked.get("filter")))
        before, after = await anyio.to_thread.run_sync(
            self._queue.decide, str(asked.get("image_id")), decision, who
        )
        seen = asked.get("seen")
        standing = _shown(before)
        replaced = standing if standing["decided_at"] != seen and before["who"] != who else None
        counts = await anyio.to_thread.run_sync(self._queue.counts, chosen)
        return _json(counts | {"row": _shown(after), "replaced": replaced})

    def news(self, request: Request) -> Response:
        """Decisions that came since the page looked last, and whether there is a new night."""
        number, rows = self._queue.news(_number(dict(request.query_params), "seen"))
        changed = [_shown(row) for row in rows]
        is_new = self._queue.has_new_night()
        return _json({"seen": number, "rows": changed, "new_night": is_new})

    def load(self, _: Request) -> Response:
        """Read the nights again."""
        self._queue.load()
        return _json({})

    def _row(self, request: Request) -> Row:
        row = self._queue.part(request.query_params.get("id", ""))
        if row is None:
            raise NoPicture("no part of the list has this id")
        return row

    def _record(self, row: Row) -> Mapping[str, Any]:
        return self._queue.records.get(row["run_id"], self._queue.record)


def application(page: Page, token: str, cookie: str, hosts: Sequence[str]) -> Starlette:
    """The application; see `Access` for `token`, `cookie` and `hosts`."""
    gets: dict[str, Callable[[Request], Response]] = {
        **dict.fromkeys(("/", *(f"/{name}" for name in _FILES)), page.file),
        "/api/overview": page.overview,
        "/api/parts": page.parts,
        "/api/part": page.part,
        "/api/news": page.news,
        "/picture": page.picture,
        "/heat": page.heat,
        "/good": page.good,
    }
    routes = [Route(path, answer, methods=["GET"]) for path, answer in gets.items()]
    routes.append(Route("/api/nearest", page.nearest, methods=["GET"]))
    routes.append(Route("/api/decisions", page.decide, methods=["POST"]))
    routes.append(Route("/api/load", page.load, methods=["POST"]))
    access = Middleware(Access, token=token, cookie=cookie, hosts=hosts)
    return Starlette(
        routes=routes,
        middleware=[access],
        exception_handlers={NoPicture: _explain(404), UserError: _explain(400)},
    )


def _explain(status: int) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": printable(str(error))}, status)

    return answer


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
        # Halves of characters, which no table stores, are told before anything is stored.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # also of bytes that are not UTF-8
        value = None
    if not isinstance(value, dict):
        raise UserError("a decision is a JSON object of Unicode texts")
    return value


def _texts(value: object) -> dict[str, str]:
    """A JSON object of texts; none for null."""
    if not isinstance(value, dict | None) or any(
        not isinstance(each, str) for each in (value or {}).values()
    ):
        raise UserError("a filter is a JSON object of texts")
    return value or {}


def _number(query: Mapping[str, str], name: str, default: int = 0) -> int:
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise UserError(f"{name} {text[:50]!r} must be a whole number of at least 0")
    return int(text)


def _label(value: str | None) -> str:
    return "none" if value is None else printable(value)


def _shown(row: Row) -> dict[str, Any]:
    """The columns that the page shows; names and addresses with their invisible characters."""
    shown = {name: row[name] for name in _SHOWN if name in row}
    for name in {"uri", "product", "part", "view", "reason", "who"} & set(shown):
        shown[name] = shown[name] and printable(shown[name])
    if "fields" in shown:
        pairs = shown["fields"] or ()
        shown["fields"] = [[printable(name), printable(value)] for name, value in pairs]
    for name in {"scored_at", "decided_at"} & set(shown):
        shown[name] = _time(shown[name])
    return shown


def _time(value: datetime.datetime | None) -> str | None:
    return value.isoformat() if value else None


def _json(content: Any) -> Response:
    return JSONResponse(content)


def _image(data: bytes, kind: str) -> Response:
    # An address names image and run, whose picture never changes; kept by this browser alone.
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})
