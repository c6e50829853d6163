"""Parses settings from a command line and a TOML file, with error messages for people."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
import tomllib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

import jsonargparse

from ops.plain_text import printable
from ops.redact import redact

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

#: How people call the types of settings.
_TYPES = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "a table",
    type(None): "nothing",
}
_WRONG_TYPE = re.compile(r'Parser key "([\w.]+)":')
_VALUE = re.compile(r"(?:Got|Given) value: (.*)")
#: Options that are no settings.
_SPECIAL = {"help", "config", "print_config", "print_shtab"}


class Entry(NamedTuple):
    """A setting's value in a TOML file."""

    value: object
    place: str
    """File and line."""


class Help(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Prints the description as it stands, and every setting with its default."""


class Parser(jsonargparse.ArgumentParser):
    """Reports a wrong setting on one line; after an unknown one it lists the known ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=Help, parser_mode="toml", allow_abbrev=False, **options)
        self.add_argument("--config", action=ConfigFile, help="a TOML file of settings")
        self.entries: dict[str, Entry] = {}

    def settings(self) -> dict[str, Any]:
        """The type of each setting, by name; those of a group are `group.name`."""
        actions = {action.dest: action for action in self._actions if action.option_strings}
        return {
            name: getattr(action, "_typehint", None) or action.type
            for name, action in actions.items()
            if name not in _SPECIAL and not any(other.startswith(f"{name}.") for other in actions)
        }

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The help text: a short usage line, and headings with the names of groups."""
        self.usage = f"{self.prog} [--config FILE] [--setting value ...]"
        settings = self.settings()
        for action in self._actions:
            if action.option_strings and action.dest not in {*settings, *_SPECIAL}:
                action.help = argparse.SUPPRESS  # it would set a whole group
        for name, group in (self.groups or {}).items():
            nested = any(setting.startswith(f"{name}.") for setting in settings)
            if nested and not str(group.title).startswith(f"{name}: "):
                group.title = f"{name}: {group.title}"
        return str(super().format_help(formatter))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002 - as in the base
        """Print the error and exit with 2."""
        if match := _WRONG_TYPE.match(message):
            self.refuse(self._wrong_type(match[1], message))
        sentence = " ".join(message.split())
        unknown = sentence.replace("unrecognized arguments", "unknown setting")
        hint = self._meant(sentence) if unknown != sentence else ""
        self.refuse(unknown + hint, known=unknown != sentence)

    def refuse(self, message: str, known: bool = False) -> NoReturn:
        """Print a sentence, and the known settings if asked to; exit with 2."""
        sys.stderr.write(f"error: {printable(redact(message))}\n")
        if known:
            names = ", ".join(self.settings())
            listed = textwrap.fill(names, 100, initial_indent="  ", subsequent_indent="  ")
            sys.stderr.write(f"known settings:\n{listed}\n")
        sys.exit(2)

    def _meant(self, sentence: str) -> str:
        """A question for the known names that are like the unknown ones of a sentence."""
        unknown = [word[2:].partition("=")[0] for word in sentence.split() if word[:2] == "--"]
        meant = [name for each in unknown for name in self.similar(each)]
        names = " and ".join(f"--{name.replace('_', '-')}" for name in dict.fromkeys(meant))
        return f"; did you mean {names}?" if names else ""

    def similar(self, name: str) -> list[str]:
        """The known setting that is most like a name, also without its group; or none."""
        known = list(self.settings())
        ends = {other.rpartition(".")[2]: other for other in reversed(known)}
        close = difflib.get_close_matches(name, known, 1)
        return close or [ends[each] for each in difflib.get_close_matches(name, list(ends), 1)]

    def _wrong_type(self, name: str, message: str) -> str:
        known = self.settings()
        if name not in known:
            example = next(other for other in known if other.startswith(f"{name}."))
            return f"--{name} is a group of settings; set them one by one, such as --{example}"
        value = (_VALUE.findall(message) or [""])[-1]
        place, shown = f"--{name}", repr(value)
        entry = self.entries.get(name)
        if entry and str(entry.value) == value:  # else the command line overrides the file
            place, shown = f"{entry.place}: {name}", repr(entry.value)
        return f"{place} must be {type_name(known[name])}, not {shown}"


class ConfigFile(jsonargparse.ActionConfigFile):  # type: ignore[misc,name-defined]  # untyped
    """Reads the TOML file that --config names; an error names the file and the line."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        """Check syntax and names, then set the values."""
        file = Path(values)
        if not file.is_file():
            parser.refuse(f"--config {file}: there is no such file")
        try:
            text = file.read_text(encoding="utf-8")
            table = tomllib.loads(text)
        except ValueError as error:  # neither TOML nor UTF-8
            parser.refuse(f"{file} is not valid TOML: {error}")
        known = parser.settings()
        for name, value in _flat(table, known):
            place = f"{file}, line {_line_of(text, name)}"
            if name not in known:
                self._refuse_name(parser, name, place)
            parser.entries[name] = Entry(value, place)
        super().__call__(parser, cfg, values, option_string)

    @staticmethod
    def _refuse_name(parser: Parser, name: str, place: str) -> NoReturn:
        known = list(parser.settings())
        if any(other.startswith(f"{name}.") for other in known):
            parser.refuse(f"{place}: {name} must be a table of settings: [{name}]")
        similar = parser.similar(name)
        hint = f"; did you mean {similar[0]!r}?" if similar else ""
        parser.refuse(f"{place}: unknown setting {name!r}{hint}", known=True)


def _flat(
    table: Mapping[str, Any], known: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Names and values of a table; names in a sub-table are `group.name`."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:  # else a setting that is a table
            yield from _flat(value, known, f"{name}.")
        else:
            yield name, value


def _line_of(text: str, name: str) -> int:
    """The line of a TOML file that sets `group.name`, or else the first that could."""
    group, _, key = name.rpartition(".")
    current, candidates = "", []
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
            current = header[1]
            if current == name:
                return number
        elif re.match(rf"\s*[\"']?({re.escape(key)}|{re.escape(name)})[\"']?\s*=", line):
            if current == group:
                return number
            candidates.append(number)
    return candidates[0] if candidates else 1


def type_name(hint: Any) -> str:
    """The type of a setting, for people."""
    if get_origin(hint) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) in {Union, types.UnionType}:
        kinds = [type_name(kind) for kind in get_args(hint) if kind is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    return _TYPES.get(get_origin(hint) or hint, str(hint))
