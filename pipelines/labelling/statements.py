"""What a file says of images and regions, before it is known which rows of scores they have."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from ops.errors import UserError
from ops.results.decision_table import DECISIONS, LONGEST_COMMENT, NAME_RULE, is_name
from pipelines.labelling.refusals import Refusals, Rule

_WORD = Rule("of an unknown word", f"a decision is one of {', '.join(DECISIONS)}")
_NAMELESS = Rule("that name no image", "name it by image_id, or by its address")
_NAME = Rule("whose name of a person is not taken", f"it has {NAME_RULE}")
_TIME = Rule("whose time is not read", "write it as 2026-11-20T06:12:00Z; UTC is the default")
_REGION = Rule("whose region is no number", "regions of an image are numbered from 1")
_BOX = Rule("whose bbox is not four numbers", "a bbox is [x, y, width, height] in pixels")
_LONGEST_ADDRESS = 4096
#: What no text holds: control characters, and halves of characters, which UTF-8 cannot store.
_UNPRINTED = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Statement:
    """A decision as a file has it."""

    where: str
    """Where in the file it stands, for messages."""
    decision: str
    image_id: str = ""
    address: str = ""
    """A URI, a path, or the end of one; it counts if there is no `image_id`."""
    run_id: str = ""
    """The run whose row was shown; empty if the file does not say."""
    region: int | None = None
    box: Box | None = None
    """Left, top, width and height of a shape, in pixels of the picture."""
    who: str = ""
    at: datetime.datetime | None = None
    comment: str | None = None


class Statements:
    """Collects the statements of a file from values of any kind, and what is wrong with them."""

    def __init__(self, file: str) -> None:
        self.refusals = Refusals(file)
        self.undecided = 0
        """How many entries of the file say nothing."""
        self._taken: list[Statement] = []

    def add(
        self,
        where: str,
        decision: object,
        *,
        image_id: object = "",
        address: object = "",
        run_id: object = "",
        region: object = None,
        box: object = None,
        who: object = "",
        at: object = "",
        comment: object = "",
    ) -> None:
        """Add what an entry of the file says, if its values keep the rules."""
        try:
            statement = Statement(
                where,
                _decision(decision),
                _text("image_id", image_id),
                _text("address", address),
                _text("run_id", run_id),
                _region(region),
                _box(box),
                _name(who),
                _time(at),
                _text("comment", comment, LONGEST_COMMENT, "\t\n\r") or None,
            )
            if not (statement.image_id or statement.address):
                raise _Broken(_NAMELESS)
        except _Broken as broken:
            self.refusals.add(broken.rule, where, broken.value)
        else:
            self._taken.append(statement)

    def taken(self) -> list[Statement]:
        """All of them. Raises UserError if there are none, or what is wrong with some."""
        self.refusals.check()
        if not self._taken:
            nothing = f" in {self.undecided:,} entries" if self.undecided else ""
            raise UserError(f"{self.refusals.file} holds no decision{nothing}; nothing is stored")
        return self._taken


class _Broken(Exception):
    """A value breaks a rule."""

    def __init__(self, rule: Rule, value: object = None) -> None:
        super().__init__(rule.broken)
        self.rule, self.value = rule, value


def _decision(value: object) -> str:
    word = re.sub(r"[\s-]+", "_", value.strip().casefold()) if isinstance(value, str) else ""
    if word not in DECISIONS:
        raise _Broken(_WORD, value)
    return word


def _text(what: str, value: object, longest: int = _LONGEST_ADDRESS, spaces: str = "") -> str:
    """A text without spaces around it; empty for null. `spaces` are control characters that may be
    in it.
    """
    if value is None:
        return ""
    remedy = f"it is a text of at most {longest:,} characters that can be printed"
    rule = Rule(f"whose {what} is not taken", remedy)
    if not isinstance(value, str) or len(value) > longest:
        raise _Broken(rule, value)
    if _UNPRINTED.search(value.translate(dict.fromkeys(map(ord, spaces)))):
        raise _Broken(rule, value)
    return value.strip()


def _name(value: object) -> str:
    """The name of a person; empty for null."""
    if value is None:
        return ""
    if not isinstance(value, str) or not is_name(name := value.strip()):
        raise _Broken(_NAME, value)
    return name


def _region(value: object) -> int | None:
    """The number of a region, also from a text; None for null and the empty text."""
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "":
        return None
    if isinstance(text, str) and re.fullmatch(r"[0-9]{1,9}(\.0)?", text):
        text = float(text)  # as tables write a column of which some cells are empty
    if isinstance(text, float) and text.is_integer():
        text = int(text)
    if isinstance(text, bool) or not isinstance(text, int) or text < 1:
        raise _Broken(_REGION, value)
    return text


def _box(value: object) -> Box | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise _Broken(_BOX, value)
    if any(isinstance(side, bool) or not isinstance(side, (int, float)) for side in value):
        raise _Broken(_BOX, value)
    try:
        left, top, width, height = map(float, value)
    except OverflowError:
        raise _Broken(_BOX, value) from None
    return left, top, width, height


def _time(value: object) -> datetime.datetime | None:
    if value is None or value == "":
        return None
    try:
        read = datetime.datetime.fromisoformat(value.strip()) if isinstance(value, str) else None
        if read is None:
            raise _Broken(_TIME, value)
        return read.replace(tzinfo=read.tzinfo or datetime.UTC).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise _Broken(_TIME, value) from None
