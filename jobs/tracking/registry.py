"""Versions of registered models: found by URI, and named for people."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jobs.tracking import database
from jobs.tracking.redact import redact
from ops.errors import UserError
from ops.plain_text import printable
from ops.storage.storage_errors import NotFound


def find_version(uri: str, client: Callable[[], Any], tracker: str) -> Any:
    """The version that `models:/name@alias` or `models:/name/3` names, of MLflow's class.

    `client` connects to the registry, `tracker` is its address. Raises UserError for another form,
    NotFound if there is no such version.
    """
    match = re.fullmatch(r"models:/([^@/]+)(?:@([^/]+)|/(\d+))", uri)
    if not match:
        raise UserError(f"{uri!r} is neither models:/name@alias nor models:/name/version")
    name, alias, number = match.groups()
    from alembic.util import CommandError  # noqa: PLC0415 - with MLflow, takes seconds
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        if alias:
            return client().get_model_version_by_alias(name, alias)
        return client().get_model_version(name, number)
    except (MlflowException, SQLAlchemyError, CommandError) as error:
        known = database.remedy(tracker, str(error))
        message = f"{uri} is not in the registry at {tracker}: {str(error)[:300]}{known}"
        raise NotFound(redact(message)) from None


def name_of(version: Any, uri: str) -> str:
    """What people call a version: `tiles v3, champion`, where the alias of the URI comes first."""
    asked = uri.partition("@")[2]
    aliases = sorted(set(map(str, version.aliases)), key=lambda alias: (alias != asked, alias))
    return printable(", ".join([f"{version.name} v{version.version}", *aliases]))
