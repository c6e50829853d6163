"""What every job has in common, from its command line to its exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import takewhile
from typing import Any, NoReturn, TypeVar

from jobs.cli import locations
from jobs.cli.console import echo
from jobs.cli.parser import Parser
from ops.errors import UserError
from ops.plain_text import printable
from ops.redact import redact
from ops.storage import s3
from ops.storage.storage_errors import DEVICE_ERRORS, AccessDenied
from pipelines.tables.lock import Locked

S = TypeVar("S")
#: The exit code EX_TEMPFAIL of sysexits.h: try again later.
BUSY = 75
#: The exit code of --fail-on-warning: the job is done, and it warned.
WARNED = 3


def parse(
    kind: type[S],
    doc: str,
    argv: Sequence[str],
    groups: Mapping[str, type[Any]] | None = None,
    words: Sequence[str] = (),
) -> tuple[S, dict[str, Any]]:
    """Parse settings from a command line, and from the TOML file that --config names.

    The values of the settings in `words` may stand first without their names.
    Returns an instance of `kind`, and one of each of `groups`, whose settings are `--group.name`.
    Raises SettingError for a place that is neither a path nor an s3:// URI.
    """
    prog = f"python -m {doc.split('python -m ', 1)[-1].split(maxsplit=1)[0]}"
    parser = Parser(description=doc, prog=prog)
    parser.add_class_arguments(kind, None)
    for name, group in (groups or {}).items():
        parser.add_class_arguments(group, name)
    argv = [_underscored(arg) for arg in _named(argv, words)]
    parsed = parser.instantiate(parser.parse_args(argv))
    values = {name: value for name, value in vars(parsed).items() if name != "config"}
    of_groups = {name: values.pop(name) for name in groups or {}}
    return kind(**locations.with_checked_places(values)), of_groups


def check_access(settings: Any) -> None:
    """Check every S3 location among settings, before anything starts.

    Raises an error if a bucket does not exist or access is denied.
    """
    for place in sorted(set(_on_s3(settings))):
        s3.check_access(place)


def _on_s3(settings: Any) -> Iterator[str]:
    """The S3 locations among settings and their groups."""
    if isinstance(settings, str):
        if s3.is_s3(settings):
            yield settings
    elif isinstance(settings, Mapping):
        yield from _on_s3(list(settings.values()))
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _on_s3(value)
    elif is_dataclass(settings) and not isinstance(settings, type):
        yield from _on_s3([getattr(settings, entry.name) for entry in fields(settings)])


def _named(argv: Sequence[str], words: Sequence[str]) -> list[str]:
    """Add the names of settings to the leading values of a command line."""
    leading = list(takewhile(lambda word: not word.startswith("-"), argv))[: len(words)]
    named = [f"--{name}={word}" for name, word in zip(words, leading, strict=False)]
    return [*named, *argv[len(leading) :]]


def _underscored(argument: str) -> str:
    """The name of a setting with underscores: --max-failed is --max_failed."""
    if not argument.startswith("--"):
        return argument
    name, separator, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + separator + value


def _is_mendable(error: Exception) -> bool:
    """Whether a sentence is enough; every other exception is a bug and shows its traceback.

    A disk that is full or fails can interrupt any code that writes, also that of libraries.
    """
    return isinstance(error, UserError) or (
        isinstance(error, OSError) and error.errno in DEVICE_ERRORS
    )


def _remedy(error: Exception) -> str:
    if isinstance(error, AccessDenied) and s3.is_s3(error.location):
        return (
            "; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, must name keys that "
            "may list, read and write there"
        )
    return ""


def describe(error: BaseException) -> str:
    """An error as text for records: a user's sentence, or the class and message of a bug."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = printable(redact(str(error)))
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


class _OneLine(logging.Formatter):
    """Formats a log record as one line without secrets and control characters.

    A traceback may follow.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as in the base
        return printable(redact(super().formatMessage(record)))


def busy(error: Locked, code: int = BUSY) -> int:
    """Say that another job holds the output folder; returns `code`, the exit code."""
    echo(f"{error}; nothing to do here")
    return code


def start(job: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a job and exit with its code."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = os.environ.get("NIGHTLOUPE_LOG", "WARNING")
    logging.basicConfig(level=level, handlers=[handler])
    # It warns when it builds its cache of fonts.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    try:
        code = job(sys.argv[1:])
    except Locked as locked:
        code = busy(locked)
    except KeyboardInterrupt:
        echo("stopped; start the same command again to continue")
        code = 130
    except Exception as error:
        if _is_mendable(error) and os.environ.get("NIGHTLOUPE_LOG") != "DEBUG":
            echo(f"error: {printable(redact(str(error)))}{_remedy(error)}")
            _end(error.exit_code if isinstance(error, UserError) else 1)
        if not _leave_cluster():
            traceback.print_exc()
            os._exit(1)
        raise
    _end(code)


def _end(code: int) -> NoReturn:
    """Leave the cluster and exit, also if the cluster does not answer."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    if not _leave_cluster():
        echo("warning: the Ray cluster did not answer when it was left")
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _leave_cluster() -> bool:
    """Leave the cluster, if there is one; False if it does not answer. See `connection.leave`."""
    # Commands that read results import no Ray.
    connection = sys.modules.get("pipelines.cluster.connection")
    return connection is None or bool(connection.leave())
