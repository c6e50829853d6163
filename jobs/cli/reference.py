"""Writes docs/reference.md: the usage and the settings of every job, from their docstrings.

python -m jobs.cli.reference
"""

from __future__ import annotations

import html
import importlib
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jobs.cli.parser import Parser, type_name
from jobs.cli.sources import Listing
from ops.archives.fetch import FetchSettings
from ops.detectors.registry import DETECTORS
from ops.features.backbone import BackboneSettings
from ops.images.decode import DecodeSettings
from ops.results.regions import RegionSettings
from pipelines.cluster.resources import Resources
from pipelines.fitting.also_whole import FitInput
from pipelines.fitting.request import Select

FILE = Path(__file__).parents[2] / "docs" / "reference.md"
#: In the order of their use, each with the job whose settings it takes.
JOBS = {
    "demo": "demo",
    "inventory": "inventory",
    "plan": "fit",
    "fit": "fit",
    "ensemble": "ensemble",
    "score": "score",
    "check": "check",
    "evaluate": "evaluate",
    "compare": "compare",
    "promote": "promote",
    "nightly": "nightly",
    "query": "query",
    "report": "report",
    "trends": "trends",
    "review": "review",
    "label": "label",
    "tune": "tune",
    "expire": "expire",
}
#: Groups of settings that several jobs take.
GROUPS: dict[str, type[Any]] = {
    "regions": RegionSettings,
    "select": Select,
    "backbone": BackboneSettings,
    "input": FitInput,
    "decode": DecodeSettings,
    "fetch": FetchSettings,
    "resources": Resources,
}
_ARCHIVES = "Settings of archives"
_HEAD = """# Reference

Usage and settings of every job. `python -m jobs.cli.reference` writes this file from docstrings; a
test checks that it is up to date.

`--name value` sets a setting, `--group.name value` one of a group; hyphens and underscores in names
are the same. `--config FILE` reads settings from a TOML file, a group as a table `[group]`; the
command line overrides the file. `--help` shows the settings of one job.

Exit codes: 0 the job is done; 1 it failed, and a message says why; 2 a setting is wrong; 3 it is
done and warned, with --fail-on-warning; 75 another night is running on the output folder; 130
interrupted.
"""


class Setting(NamedTuple):
    """A row of a table."""

    name: str
    kind: str
    default: object
    meaning: str


def write() -> None:
    """Write the file."""
    FILE.write_text(text(), encoding="utf-8")


def text() -> str:
    """The content of the file."""
    archive = [setting.name for setting in _settings(Listing)]
    sections = [_HEAD, *(_job(job, owner, archive) for job, owner in JOBS.items())]
    sections.append(f"## {_ARCHIVES}\n\n{_table(_settings(Listing))}")
    sections.append("## Groups of settings\n")
    for name, kind in GROUPS.items():
        summary = _escaped(_first_paragraph(kind.__doc__ or ""))
        sections.append(f"### {name}\n\n{summary}\n\n{_table(_settings(kind, name))}")
    sections.append("## Settings of the detectors\n\n`--method` chooses the detector of a fit.\n")
    for name, detector in DETECTORS.items():
        summary = _escaped(_first_paragraph(detector.__doc__ or ""))
        sections.append(f"### {name}\n\n{summary}\n\n{_table(_settings(detector.Settings, name))}")
    return "\n".join(sections)


def _job(job: str, owner: str, archive: list[str]) -> str:
    doc = importlib.import_module(f"jobs.{job}").__doc__ or ""
    settings = list(_settings(importlib.import_module(f"jobs.{owner}").Settings))
    own = [s for s in settings if "." not in s.name and s.name not in archive]
    groups = dict.fromkeys(s.name.split(".")[0] for s in settings if "." in s.name)
    parts = [f"## jobs.{job}\n", _usage(doc)]
    if job != owner:  # its docstring says whose settings it takes
        return "\n".join(parts)
    if {s.name for s in settings} >= set(archive):
        anchor = _ARCHIVES.lower().replace(" ", "-")
        parts.append(f"Archives: the [settings of archives](#{anchor}).\n")
    if groups:
        links = ", ".join(f"[{name}](#{name})" for name in groups)
        detectors = ", and [one per detector](#settings-of-the-detectors)" if job == "fit" else ""
        parts.append(f"Groups: {links}{detectors}.\n")
    return "\n".join([*parts, _table(own)])


def _usage(doc: str) -> str:
    """A docstring with its command lines as a block of code."""
    paragraphs = textwrap.dedent(doc).strip().split("\n\n")
    blocks = (
        f"```bash\n{block}\n```" if block.startswith("python -m") else _escaped(block)
        for block in paragraphs
    )
    return "\n\n".join(blocks) + "\n"


def _settings(kind: type[Any], group: str | None = None) -> Iterator[Setting]:
    parser = Parser(prog="reference")
    parser.add_class_arguments(kind, group)
    kinds = parser.settings()
    for action in parser._actions:
        if action.dest in kinds:
            help_text = " ".join(str(action.help or "").split())
            kind_name = re.sub(r"\ban? ", "", type_name(kinds[action.dest]))
            yield Setting(action.dest, kind_name, action.default, help_text)


def _table(settings: Iterable[Setting]) -> str:
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        unset = setting.default in (None, "", [])
        default = "" if unset else f"`{str(setting.default).replace('|', chr(92) + '|')}`"
        meaning = _escaped(setting.meaning)
        rows.append(f"| `{setting.name}` | {setting.kind} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _escaped(text: str) -> str:
    """Prose in which Markdown marks up nothing."""
    plain = html.escape(text, quote=False)
    return plain.replace("|", "\\|").replace("*", "\\*")


def _first_paragraph(doc: str) -> str:
    return " ".join(doc.strip().split("\n\n")[0].split())


if __name__ == "__main__":
    write()
