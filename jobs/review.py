"""Look at the parts that a model flagged in a browser, and decide what they are.

python -m jobs.review --out out
python -m jobs.review --out s3://bucket/out --model-id "tiles v3" --who ann --port 8420

Prints the address of a page with the flagged parts, the worst first. Keys: d defect, f false alarm,
u unsure, j next, k back, z undo, + and - zoom, m map, r regions. A decision is stored below
OUT/labels/ before the page shows it as saved. The page is served to this machine alone; Ctrl-C ends
it. See docs/review.md.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvicorn

from jobs.cli import entry
from jobs.cli.console import echo
from jobs.cli.user_name import user_name
from jobs.review_page.server import Page, application
from jobs.tracking.tracker import Tracker
from ops.archives.fetch import FetchSettings
from ops.errors import SettingError, UserError
from ops.results.decision_table import check_name
from ops.storage.paths import Out
from pipelines.review import queue
from pipelines.review.filters import Filter
from pipelines.review.nearest import METHODS, Nearest
from pipelines.review.pictures import Pictures
from pipelines.tables import model_names


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.review."""

    out: str = "out"
    """The output folder that holds the nights."""
    model_id: str = ""
    """The model: its id or the start of it, or a name that a run recorded, such as "tiles v3" or
    champion; default: the model of the latest finished run."""
    nearest: bool = True
    """Show the good places that a part's peak is most similar to. Only patchcore has a bank of good
    places; the model is read for the first part and takes the memory that it takes when scoring."""
    model: str = ""
    """The model's folder, or models:/name@alias, to compare with; default: that below OUT/models/,
    where jobs.fit writes it."""
    who: str = ""
    """Who decides; default: the name of the user. The page can be told another name."""
    host: str = "127.0.0.1"
    """The address to listen at. Anything but loopback lets other machines open the page, without
    encryption: prefer a tunnel, such as ssh -L."""
    port: int = 8420
    """The port to listen at; 0 = a free one."""
    address: list[str] = field(default_factory=list)
    """Further names, or NAME:PORT, under which browsers reach the page, such as that of a proxy."""
    cache: int = 1024
    """Largest number of MiB of decoded pictures that are kept; a picture of 50 million pixels takes
    143. Of good pictures a quarter of that is kept beside it."""
    decoders: int = 2
    """Number of pictures that are decoded at once."""
    fetch: FetchSettings = field(default_factory=FetchSettings)

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        check_name(self.who)
        for name, least, most in (("port", 0, 65535), ("cache", 1, 2**20), ("decoders", 1, 64)):
            if not least <= (value := getattr(self, name)) <= most:
                raise SettingError(f"{name} {value} must lie between {least} and {most}")


def main(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    entry.check_access(settings)
    out = Out(settings.out)
    model = model_names.chosen(out, settings.model_id)
    with (
        _listening(settings) as listener,
        Tracker(settings.out).located(settings.model or out.model(model.model_id)) as folder,
        queue.opened(out, model) as parts,
    ):
        pictures = Pictures(out, settings.fetch, settings.cache * 2**20, settings.decoders)
        nearest = None
        if settings.nearest and parts.record.get("method") in METHODS:
            good = Pictures(out, settings.fetch, settings.cache * 2**18, 1, "the fit")
            nearest = Nearest(folder, model.model_id, pictures, good)
        port, token = listener.getsockname()[1], secrets.token_urlsafe(32)
        page = Page(parts, pictures, settings.who or user_name(), nearest)
        app = application(page, token, f"nightloupe-{port}", _hosts(settings, port))
        echo(f"model: {model}")
        if left_out := parts.counts(Filter())["left_out"]:
            echo(
                f"{left_out:,} parts were called false alarms under this model and are left out; "
                "the page shows them when asked"
            )
        echo(f"open in a browser: http://{_name(settings.host)}:{port}/?token={token}")
        if not _is_loopback(settings.host):
            echo("warning: other machines can open the page, and its traffic is not encrypted")
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        config.timeout_graceful_shutdown = 5
        # On SIGINT it closes the connections and raises KeyboardInterrupt, as every job is ended.
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen at {settings.host} port {settings.port}: {error.strerror or error}; "
            "choose another --port, or 0 for a free one"
        ) from None


def _hosts(settings: Settings, port: int) -> list[str]:
    """What a browser may call the server."""
    names = [settings.host, "localhost", "127.0.0.1"]
    if not _is_loopback(settings.host):
        names.append(socket.gethostname())
    local = [f"{_name(name)}:{port}" for name in names]
    return [*local, *settings.address, *(f"{name}:{port}" for name in settings.address)]


def _name(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    entry.start(main)
