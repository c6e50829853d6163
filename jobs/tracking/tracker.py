"""MLflow: one run per job, delivered when the job ends. A tracker that is down fails no job."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from jobs.tracking import database, pyfunc, registry
from jobs.tracking.record import Record, flat
from ops.detectors.model_card import versions
from ops.detectors.model_folder import Model, read_model, write_model
from ops.errors import UserError
from ops.plain_text import in_markdown, printable
from ops.redact import redact
from ops.storage import files, s3
from ops.storage.paths import Out
from ops.storage.storage_errors import NotFound, storage_errors

#: MLflow refuses batches of more than 1000 entities, or of more than 100 parameters or tags.
_METRICS, _TEXTS = 800, 100
_NAME, _NOTE = 250, 4900  # characters that it takes
log = logging.getLogger(__name__)
EXPERIMENT = "nightloupe"
#: Names of spooled records; other files, of systems and editors, stay where they are.
_SPOOLED = re.compile(r"[0-9a-f]{32}\.json")


@contextlib.contextmanager
def _troubles(uri: str | None) -> Iterator[list[str]]:
    """Suppress every exception of the block, and list its redacted message, with a known remedy.

    Log the message after the block: a log handler that fails inside it prints the exception, which
    may hold an address with a password.
    """
    troubles: list[str] = []
    try:
        yield troubles
    except Exception as error:
        troubles.append(_told(error)[:300] + database.remedy(uri or "", str(error)))


def _told(value: object) -> str:
    """A value as the tracker or a log gets it: without secrets and control characters."""
    return printable(redact(str(value)))


def tracking_uri(out: str) -> str | None:
    """MLFLOW_TRACKING_URI, else a SQLite file under a local output folder, else None."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    return None if s3.is_s3(out) else f"sqlite:///{os.path.abspath(Out(out).tracker())}"


class Tracker:
    """Tracks the jobs of one output folder, and its models in the registry."""

    def __init__(self, out: str) -> None:
        self.out = Out(out)
        self.uri = tracking_uri(out)

    @contextlib.contextmanager
    def run(self, job: str, settings: Mapping[str, Any]) -> Iterator[Record]:
        """Track a job: its record is delivered when the block ends, also if it fails."""
        record = Record(job, params=flat(settings), tags=versions())
        try:
            yield record
        except BaseException as error:
            record.status = "FAILED"
            record.tags["error"] = f"{type(error).__name__}: {error}"
            self._end(record)
            raise
        self._end(record)

    def _end(self, record: Record) -> None:
        if not record.ended_ms:  # else it was delivered with its model
            self.deliver(record)

    def deliver(self, record: Record) -> str | None:
        """Send a record and all spooled ones to MLflow; the run's id, or None if it was spooled."""
        record.ended_ms = record.ended_ms or int(time.time() * 1000)
        record.params = {name: _told(value) for name, value in record.params.items()}
        record.tags = {name: _told(value) for name, value in record.tags.items()}
        run_id: str | None = None
        with _troubles(self.uri) as troubles:
            run_id = self._log(record)
        if troubles:
            location = files.join(self.out.spool(), f"{record.delivery}.json")
            files.write_json(location, asdict(record))
            log.warning("tracking failed (%s); kept in %s", *troubles, location)
            return None
        with _troubles(self.uri) as troubles:
            self._deliver_spooled()
        for trouble in troubles:
            log.warning("%s stays undelivered (%s)", self.out.spool(), trouble)
        return run_id

    def _deliver_spooled(self) -> None:
        spool = self.out.spool()
        for name in filter(_SPOOLED.fullmatch, files.names(spool)):
            record = Record(**files.read_json(files.join(spool, name)))
            client = self._client()
            if run_id := self._ended(client, record):
                self._complete(client, run_id, record)
            else:
                self._log(record)
            files.remove_file(files.join(spool, name))

    def _ended(self, client: Any, record: Record) -> str | None:
        """Id of the finished run of a record, if any; its unfinished runs are removed."""
        finished_id: str | None = None
        tag = f"tags.delivery = '{record.delivery}'"
        for run in client.search_runs([self._experiment(client)], tag):
            if run.info.status == "RUNNING":
                client.delete_run(run.info.run_id)
            else:
                finished_id = str(run.info.run_id)
        return finished_id

    def _client(self) -> Any:
        if self.uri is None:
            raise UserError("no tracker: set MLFLOW_TRACKING_URI when --out lies on S3")
        # A job must not wait long for a tracking server that is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # MLflow would print the server's address, which may contain a password.
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        from mlflow import MlflowClient  # noqa: PLC0415 - takes 1.5 s, so only where it is used

        for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)

        if self.uri.startswith(database.PREFIX):
            with storage_errors(self._database_folder()):
                os.makedirs(self._database_folder(), exist_ok=True)
            database.make(self.uri.removeprefix(database.PREFIX))
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def _database_folder(self) -> str:
        return os.path.dirname(os.path.abspath(str(self.uri).removeprefix(database.PREFIX)))

    def _experiment(self, client: Any) -> str:
        if experiment := client.get_experiment_by_name(EXPERIMENT):
            return str(experiment.experiment_id)
        # Without a server, MLflow would write artifacts to the current folder.
        is_sqlite = str(self.uri).startswith(database.PREFIX)
        artifacts = os.path.join(self._database_folder(), "mlartifacts") if is_sqlite else None
        return str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))

    def _log(self, record: Record) -> str:
        client = self._client()
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415

        note = {"mlflow.note.content": in_markdown(_told(record.description))[:_NOTE]}
        run = client.create_run(
            self._experiment(client),
            start_time=record.started_ms,
            tags={"delivery": record.delivery, "job": record.job}
            | (note if record.description else {}),
            run_name=_told(record.title or record.job)[:_NAME],
        )
        run_id = str(run.info.run_id)
        now = record.ended_ms
        points = [Metric(k, float(v), now, 0) for k, v in record.metrics.items()]
        points += [
            Metric(name, float(value), now, epoch)
            for name, curve in record.curves.items()
            for epoch, value in enumerate(curve, start=1)
        ]
        params = [Param(k, v[:500]) for k, v in record.params.items()]
        tags = [RunTag(k, v[:500]) for k, v in record.tags.items()]
        batches = max(-(-len(points) // _METRICS), -(-max(len(params), len(tags)) // _TEXTS))
        for n in range(batches):
            client.log_batch(
                run_id,
                metrics=points[n * _METRICS : (n + 1) * _METRICS],
                params=params[n * _TEXTS : (n + 1) * _TEXTS],
                tags=tags[n * _TEXTS : (n + 1) * _TEXTS],
            )
        client.set_terminated(run_id, record.status, end_time=record.ended_ms)
        self._complete(client, run_id, record)
        return run_id

    def _complete(self, client: Any, run_id: str, record: Record) -> None:
        """Send a run's files. A failure is logged only, as the files remain where they are."""
        with (
            _troubles(self.uri) as troubles,
            tempfile.TemporaryDirectory(prefix="nightloupe-") as folder,
        ):
            self._ended(client, record)  # where a lost answer made MLflow ask for a run again
            for name, location in record.files.items():
                path = os.path.join(folder, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                files.write_bytes(path, files.read_bytes(location))
            if record.files:
                client.log_artifacts(run_id, folder)
        for trouble in troubles:
            log.warning("files of %s were not delivered (%s)", record.job, trouble)

    def page(self, run_id: str) -> str:
        """URL of a scoring run, or else of its experiment, on a tracking server.

        The address of a tracker that is no server; empty without a tracker.
        """
        uri = redact(str(self.uri or "")).replace("***@", "")
        if not uri.startswith(("http://", "https://")):
            return uri
        with _troubles(self.uri) as troubles:
            client = self._client()
            experiment = self._experiment(client)
            condition = f"tags.run_id = '{run_id}' AND attributes.status = 'FINISHED'"
            # Later runs of jobs.evaluate and jobs.report carry the same tag.
            oldest = ["attributes.start_time ASC"]
            runs = client.search_runs([experiment], condition, order_by=oldest, max_results=1)
            uri = f"{uri.rstrip('/')}/#/experiments/{experiment}"
            uri += f"/runs/{runs[0].info.run_id}" if runs else ""
        for trouble in troubles:
            log.warning("the tracker was not asked for run %s (%s)", run_id, trouble)
        return uri

    def register(self, model: Model, name: str, alias: str, record: Record) -> str | None:
        """Deliver a fit's record with its model as artifact, as a version under an alias.

        Without an alias it is `registry.free_alias`. Returns `models:/name@alias`, or None if the
        tracker failed; the model folder is unharmed.
        """
        run_id = self.deliver(record)
        if run_id is None:
            return None
        with _troubles(self.uri) as troubles:
            client = self._client()
            with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
                write_model(folder, model)
                pyfunc.describe(folder)
                client.log_artifacts(run_id, folder, "model")
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            source = f"{client.get_run(run_id).info.artifact_uri}/model"
            tags = {"model_id": model.card.model_id, "method": model.card.method}
            version = client.create_model_version(
                name, source, run_id, tags=tags, description=redact(pyfunc.page(model))
            )
            alias = alias or registry.free_alias(client, name, model.card.model_id)
            client.set_registered_model_alias(name, alias, version.version)
        for trouble in troubles:
            log.warning("the model was not registered (%s)", trouble)
        return None if troubles else f"models:/{name}@{alias}"

    @contextlib.contextmanager
    def located(self, model: str) -> Iterator[str]:
        """The folder of a model: the given one, or a temporary copy from the registry."""
        with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
            yield self.fetch_model(model, folder) if model.startswith("models:/") else model

    @contextlib.contextmanager
    def opened(self, model: str) -> Iterator[Model]:
        """A model from a folder, S3, or the registry."""
        with self.located(model) as folder:
            yield read_model(folder)

    def name_of(self, model: str) -> str:
        """What people call a registered model; empty for a folder, or if the registry fails."""
        if not model.startswith("models:/"):
            return ""
        name = ""
        with _troubles(self.uri) as troubles:
            name = registry.name_of(self.version(model), model)
        for trouble in troubles:
            log.warning("the registry was not asked for the name of %s (%s)", model, trouble)
        return name

    def version(self, uri: str) -> Any:
        """The version that a URI names, see `registry.find_version`."""
        return registry.find_version(uri, self._client, str(self.uri))

    def move_alias(self, version: Any, alias: str) -> Any | None:
        """Give an alias to a version; returns the version that had it. Raises UserError."""
        return registry.move_alias(self._client(), version, alias, str(self.uri))

    def fetch_model(self, uri: str, folder: str) -> str:
        """The local folder of a registered model (`models:/name@alias`, `models:/name/3`)."""
        version = self.version(uri)
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415 - with MLflow, takes seconds
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            return str(download_artifacts(version.source, dst_path=folder, tracking_uri=self.uri))
        except (MlflowException, OSError) as error:  # the tracking server may have stopped
            message = f"{uri} is registered at {self.uri}, but cannot be downloaded: {error}"
            raise NotFound(redact(message)) from None
