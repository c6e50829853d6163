"""From a command line to an exit code: the same door for every job."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import takewhile
from typing import Any, NoReturn, TypeVar

import jsonargparse
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

from jobs.cli.console import echo
from ops.errors import UserError
from ops.storage import files
from pipelines.tables.lock import Locked

S = TypeVar("S")
#: What sysexits.h calls a temporary failure: nothing is wrong, and later will do.
BUSY = 75
#: What a user can mend: told in a sentence. All else is a bug and shows its traceback.
MENDABLE = (
    BotoCoreError,  # no credentials, no such host
    UserError,
    OSError,  # not there, forbidden, disk full, no connection
)

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _Help(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Examples as they stand, and every setting with its default."""


class _Parser(jsonargparse.ArgumentParser):
    """Names the known settings when it meets an unknown one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002 - as in the base
        """Say what is wrong, then leave with 2."""
        known = [
            name.removeprefix("--")
            for action in self._actions
            for name in action.option_strings
            if name.startswith("--") and name[-1] != "+" and action.help != argparse.SUPPRESS
        ]
        listed = textwrap.fill(", ".join(known), 100, initial_indent="  ", subsequent_indent="  ")
        sys.stderr.write(f"error: {message}\nknown settings:\n{listed}\n")
        sys.exit(2)


class _ConfigFile(jsonargparse.ActionConfigFile):  # type: ignore[misc,name-defined]  # untyped
    """Says that a file is not there, where the base would take its name for settings."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        """Read it."""
        if not os.path.isfile(values):
            parser.error(f"--config {values}: there is no such file")
        super().__call__(parser, cfg, values, option_string)


def parse(
    kind: type[S],
    doc: str,
    argv: Sequence[str],
    groups: Mapping[str, type[Any]] | None = None,
    words: Sequence[str] = (),
) -> tuple[S, dict[str, Any]]:
    """Settings from a command line, and from the TOML file that --config names.

    The settings that `words` names may stand at the beginning without their names.
    Returns an instance of `kind`, and one of each of `groups`, whose settings are `--group.name`.
    """
    parser = _Parser(
        description=doc,
        formatter_class=_Help,
        parser_mode="toml",
        allow_abbrev=False,
        prog=f"python -m {doc.split('python -m ', 1)[-1].split(maxsplit=1)[0]}",
    )
    parser.add_argument("--config", action=_ConfigFile, help="a TOML file of settings")
    parser.add_class_arguments(kind, None)
    for name, group in (groups or {}).items():
        parser.add_class_arguments(group, name)
    argv = [_underscored(arg) for arg in _named(argv, words)]
    found = parser.instantiate(parser.parse_args(argv))
    values = {name: value for name, value in vars(found).items() if name != "config"}
    chosen = {name: values.pop(name) for name in groups or {}}
    return kind(**values), chosen


def check_access(settings: Any) -> None:
    """Fail now, before a cluster or a listing, where S3 lacks a bucket of theirs or denies it."""
    for place in sorted(set(_on_s3(settings))):
        files.check_access(place)


def _on_s3(settings: Any) -> Iterator[str]:
    """Every place on S3 among settings of any depth."""
    if isinstance(settings, str):
        if files.is_s3(settings):
            yield settings
    elif isinstance(settings, Mapping):
        yield from _on_s3(list(settings.values()))
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _on_s3(value)
    elif is_dataclass(settings) and not isinstance(settings, type):
        yield from _on_s3([getattr(settings, entry.name) for entry in fields(settings)])


def _named(argv: Sequence[str], words: Sequence[str]) -> list[str]:
    """Give the leading words of a command line the names of their settings."""
    bare = list(takewhile(lambda word: not word.startswith("-"), argv))[: len(words)]
    return [f"--{name}={word}" for name, word in zip(words, bare, strict=False)] + [
        *argv[len(bare) :]
    ]


def _underscored(argument: str) -> str:
    """--max-failed and --max_failed are the same setting."""
    if not argument.startswith("--"):
        return argument
    name, separator, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + separator + value


def _remedy(error: Exception) -> str:
    if isinstance(error, PermissionError) and files.is_s3(str(error)):
        return (
            "; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, must name keys that "
            "may list, read and write there"
        )
    return ""


def start(job: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a job and leave with its exit code, which is 0 only if it kept its promise."""
    logging.basicConfig(
        level=os.environ.get("NIGHTLOUPE_LOG", "WARNING"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # It tells, as a warning, that it looks for fonts on its first day.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    try:
        code = job(sys.argv[1:])
    except Locked as busy:
        echo(f"{busy}; nothing to do here")
        code = BUSY
    except MENDABLE as error:
        if os.environ.get("NIGHTLOUPE_LOG") == "DEBUG":
            raise
        echo(f"error: {error}{_remedy(error)}")
        code = error.exit_code if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        echo("stopped; start the same command again to go on")
        code = 130
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(code)
