"""Command lines that people are told to type, or that machines start: parsed, never run."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli import entry
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
#: What a machine calls a settings file -> the file here that becomes it.
SETTINGS = {
    "night.toml": DEPLOY / "night.toml",
    "/etc/nightloupe/night.toml": DEPLOY / "kuberay" / "night" / "night.toml",
}
#: Programs of others. What a line of theirs names of ours must be there.
FOREIGN = {
    *("aws", "cat", "cd", "cp", "crontab", "docker", "export", "git", "helm", "kubectl"),
    *("curl", "openssl", "sed", "sudo", "systemctl", "mkdir", "install", "source"),
}
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


class Parsed(Exception):
    """A job has its settings, and goes no further."""


def settings_of(words: list[str]) -> object:
    """What the parser of `python -m jobs.NAME ...` makes of its words."""
    interpreter, flag, module, *words = words
    assert Path(interpreter).name == "python", interpreter
    assert flag == "-m"
    main = importlib.import_module(module).main
    parse = entry.parse

    def parse_and_stop(*asked, **named):
        raise Parsed(parse(*asked, **named)[0])

    words = [str(SETTINGS.get(word, word)) for word in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(entry, "parse", parse_and_stop)
        with pytest.raises(Parsed) as found:
            main(words)
    return found.value.args[0]


def check(line: str) -> None:
    """Raise if a line is none that could be typed."""
    words = [word for word in shlex.split(line, comments=True) if word not in {"|", "&"}]
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    if not words:
        return
    program = Path(words[0]).name
    if program == "python":
        if words[2].startswith("jobs."):
            settings_of(words)
        return
    if program == "ray":
        _ray(words[1:])
    elif program == "mlflow":
        _mlflow(words[1:])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), line
    elif program == "local-stack":
        assert (DEPLOY / "local-stack").exists()
        if len(words) > 1:
            check(shlex.join(words[1:]))
    else:
        assert program in FOREIGN, f"{program} in: {line}"
    for word in words:
        if re.fullmatch(r"(\./)?(deploy|jobs|docs|tests)/[\w./-]+", word) and word != "deploy/.env":
            assert (ROOT / word).exists(), f"{word} in: {line}"
    inner = [n for n, word in enumerate(words) if Path(word).name == "python"]
    if program in {"docker", "kubectl", "sudo"} and inner:
        check(shlex.join(words[inner[0] :]))


def _ray(words: list[str]) -> None:
    """Give the words to Ray's own command line, up to where it would act."""
    from ray.scripts.scripts import cli

    _click(cli, words)
    if "--" in words:  # of `ray job submit`: what the cluster starts
        check(shlex.join(words[words.index("--") + 1 :]))


def _mlflow(words: list[str]) -> None:
    from mlflow.cli import cli

    _click(cli, words)


def _click(command, words: list[str]) -> None:
    import click

    name = command.name or "cli"
    while isinstance(command, click.Group):
        known = command.commands
        assert words[0] in known, f"{name} {words[0]}"
        command, name, words = known[words[0]], words[0], words[1:]
    command.make_context(name, list(words))


def lines_of(text: str) -> Iterator[str]:
    """Command lines of a block: continued ones joined, comments and empty ones left out."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()
