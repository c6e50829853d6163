"""Versions of registered models: found by URI, and named for people."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jobs.tracking import database
from ops.errors import UserError
from ops.plain_text import printable
from ops.redact import redact
from ops.storage.storage_errors import NotFound

CHAMPION, CHALLENGER = "champion", "challenger"


def parsed(uri: str) -> tuple[str, str | None, str | None]:
    """Name, alias and number that a URI names, of which one is None. Raises UserError."""
    match = re.fullmatch(r"models:/([^@/]+)(?:@([^/]+)|/(\d+))", uri)
    if not match:
        raise UserError(f"{uri!r} is neither models:/name@alias nor models:/name/version")
    name, alias, number = match.groups()
    return name, alias, number


def find_version(uri: str, client: Callable[[], Any], tracker: str) -> Any:
    """The version that `models:/name@alias` or `models:/name/3` names, of MLflow's class.

    `client` connects to the registry, `tracker` is its address. Raises UserError for another form,
    NotFound if there is no such version.
    """
    name, alias, number = parsed(uri)
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


def identity(version: Any) -> dict[str, str]:
    """Number and model id of a version, for records."""
    return {
        "version": str(version.version),
        "model_id": str((version.tags or {}).get("model_id", "")),
    }


def with_alias(client: Any, name: str, alias: str) -> Any | None:
    """The version that has an alias now; None if none has."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - takes seconds

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def move_alias(client: Any, version: Any, alias: str, tracker: str) -> Any | None:
    """Give an alias to a version; returns the version that had it. Raises UserError."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - takes seconds

    name = str(version.name)
    try:
        before = with_alias(client, name, alias)
        client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as error:
        message = f"{alias} of {name} was not moved at {tracker}: {str(error)[:300]}"
        raise UserError(redact(message)) from None
    return before


def free_alias(client: Any, name: str, model_id: str) -> str:
    """The alias of a new version that was given none.

    `champion` if no other model has it: nights use it, so a fit takes it from none. Else
    `challenger`.
    """
    champion = with_alias(client, name, CHAMPION)
    is_free = champion is None or identity(champion)["model_id"] == model_id
    return CHAMPION if is_free else CHALLENGER


def name_of(version: Any, uri: str) -> str:
    """What people call a version: `tiles v3, champion`, where the alias of the URI comes first."""
    asked = uri.partition("@")[2]
    aliases = sorted(set(map(str, version.aliases)), key=lambda alias: (alias != asked, alias))
    return printable(", ".join([f"{version.name} v{version.version}", *aliases]))
