"""Notifications when a night ends: one message, a ping, a file of metrics. None fails a night."""

from __future__ import annotations

import contextlib
import datetime
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jobs.cli import entry
from jobs.cli.console import echo
from jobs.notify import deliver, message, metrics_file
from jobs.notify.message import FORMS
from ops.errors import SettingError
from ops.redact import redact
from ops.storage import files, s3
from ops.storage.paths import Out
from pipelines.reports.product_counts import ProductCounts, product_counts
from pipelines.tables import run_records


@dataclass(frozen=True)
class NotifySettings:
    """Who is notified when a night ends."""

    notify: str = ""
    """Web address that gets a message when the night has ended, well or badly. Keep it in the file
    of --config, which only you can read: who knows it can send messages."""
    notify_form: str = "json"
    """What the address takes: json (of docs/message.schema.json), slack or teams (a webhook)."""
    notify_ping: str = ""
    """Web address that gets a GET request when the night has not failed: of a service that raises
    an alarm if no request comes (a dead man's switch)."""
    notify_metrics: str = ""
    """Local file, FOLDER/NAME.prom, for the textfile collector of Prometheus' node exporter."""

    def check_notify(self) -> None:
        """Check values. Raises SettingError, which shows no address."""
        deliver.check("notify", self.notify)
        deliver.check("notify-ping", self.notify_ping)
        if self.notify_form not in FORMS:
            raise SettingError(f"--notify-form {self.notify_form!r} is none of {', '.join(FORMS)}")
        name = self.notify_metrics
        if name and (s3.is_s3(name) or "://" in name or not name.endswith(".prom")):
            raise SettingError(
                f"--notify-metrics {name!r} must be a local file whose name ends in .prom: the "
                "collector reads no other"
            )

    def without_addresses(self) -> dict[str, str]:
        """The settings that are secrets, as records may show them."""
        return {
            "notify": deliver.shown(self.notify),
            "notify_ping": deliver.shown(self.notify_ping),
        }


class EndingNight:
    """A night whose end is notified: its record, and how to write what is added to it."""

    def __init__(self) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.record: dict[str, Any] = {"started": now}
        self.write: Callable[[], object] = lambda: None


@contextlib.contextmanager
def notifying(settings: NotifySettings, out: Out) -> Iterator[EndingNight]:
    """Notify when the night of the block ends, also if it fails; the block sets its record.

    A night that fails before it has a record gets one with times and error alone.
    """
    night = EndingNight()
    try:
        yield night
    except BaseException as error:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        night.record.setdefault("error", entry.describe(error))
        night.record.setdefault("ended", now)
        send_all(settings, out, night)
        raise
    send_all(settings, out, night)


def send_all(settings: NotifySettings, out: Out, night: EndingNight) -> None:
    """Send what `settings` ask for, at most once for each record. No failure is an error."""
    if settings.notify_metrics:
        with _shown("the file of --notify-metrics was not written"):
            _write_metrics(settings.notify_metrics, out, night.record)
    if settings.notify and "notified" not in night.record:
        with _shown("the message of --notify was not sent"):
            _send_message(settings, out, night)
    if settings.notify_ping and "error" not in night.record:
        with _shown("the ping of --notify-ping was not sent"):
            _warn("--notify-ping", deliver.send(settings.notify_ping, None, {}, True).problem)


def _send_message(settings: NotifySettings, out: Out, night: EndingNight) -> None:
    """Send the message, whose id is in the record before, and whose outcome is after."""
    message_id = uuid.uuid4().hex
    night.record["notified"] = {"id": message_id}
    night.write()
    content = message.message(night.record, message_id, out.root)
    body = json.dumps(FORMS[settings.notify_form](content)).encode()
    # Slack and Teams would show a message again, to whose id they pay no attention.
    headers = {"Idempotency-Key": message_id}
    outcome = deliver.send(settings.notify, body, headers, settings.notify_form == "json")
    night.record["notified"]["outcome"] = outcome.problem or "delivered"
    night.write()
    _warn("--notify", outcome.problem)


def _write_metrics(location: str, out: Out, record: dict[str, Any]) -> None:
    products: list[ProductCounts] = []
    if "totals" in record:
        products = product_counts(out, run_records.finished(out, record["run_id"]))
    nights = [record, *run_records.nights(out)]
    good = (night["ended"] for night in nights if "ended" in night and "error" not in night)
    text = metrics_file.render(record, out.root, products, next(good, None))
    files.write_bytes(location, text)


def _warn(setting: str, problem: str) -> None:
    if problem:
        echo(f"warning: the server of {setting} was not reached: {problem}")


@contextlib.contextmanager
def _shown(sentence: str) -> Iterator[None]:
    """Show an error of the block, without addresses, instead of raising it."""
    try:
        yield
    except Exception as error:  # the night is done, whatever fails here
        echo(f"warning: {sentence} ({type(error).__name__}: {redact(str(error))})")
