"""Decisions in a JSON export of Label Studio: tasks with a control of choices.

The data of a task names the image by `image_id`, `uri` or `image`, and may hold `run_id` and
`region`, as they do if a CSV file of jobs.query was imported as tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from ops.errors import UserError
from pipelines.labelling import strict_json
from pipelines.labelling.refusals import Rule
from pipelines.labelling.statements import Statements

_Object = dict[str, Any]
#: The controls of decisions and comments; one of choices may have another name if it is the only.
_DECISION, _COMMENT = "decision", "comment"
_SEVERAL = Rule("of several words at once", 'give the control choice="single"')
#: Where Label Studio serves files of a local folder.
_LOCAL_FILES = "/data/local-files/"


class _Annotation(NamedTuple):
    where: str
    data: _Object
    """What the task is about."""
    content: _Object
    words: dict[object, list[object]]
    """What was chosen or written, by control."""


def read(content: object, into: Statements) -> None:
    """Read each annotation of each task as a decision. Raises UserError."""
    annotations = list(_annotations(into.refusals.file, content))
    is_named = any(_DECISION in each.words for each in annotations)
    for each in annotations:
        controls = [_DECISION] if is_named else [name for name in each.words if name != _COMMENT]
        words = [word for name in controls for word in each.words.get(name, [])]
        if not words or each.content.get("was_cancelled"):
            into.undecided += 1
        elif len(words) > 1:
            into.refusals.add(_SEVERAL, each.where, words)
        else:
            into.add(
                each.where,
                words[0],
                image_id=each.data.get("image_id"),
                address=local_file(each.data.get("uri") or each.data.get("image")),
                run_id=each.data.get("run_id"),
                region=each.data.get("region"),
                who=_who(each.content.get("completed_by")),
                at=each.content.get("updated_at") or each.content.get("created_at"),
                comment=next(iter(each.words.get(_COMMENT, [])), None),
            )


def local_file(address: object) -> object:
    """The path of a file that Label Studio serves from a local folder; any other value as it is."""
    if isinstance(address, str) and _LOCAL_FILES in address:
        _, _, query = address.partition("?")
        return parse_qs(query.partition("#")[0]).get("d", [address])[0]
    return address


def _annotations(file: str, content: object) -> Iterator[_Annotation]:
    for number, task in enumerate(strict_json.objects(file, content, "its tasks"), 1):
        where = f"task {task['id']}" if isinstance(task.get("id"), int) else f"entry {number}"
        if not isinstance(task.get("data"), dict) or "annotations" not in task:
            raise UserError(
                f"{file}: {where} has no data or annotations; export JSON from Label Studio, not "
                "JSON-MIN"
            )
        for each in strict_json.objects(file, task["annotations"], f"the annotations of {where}"):
            words: dict[object, list[object]] = {}
            results = strict_json.objects(file, each.get("result"), f"the result of {where}")
            for result in results:
                value = result.get("value")
                key = {"choices": "choices", "textarea": "text"}.get(str(result.get("type")))
                if isinstance(value, dict) and key and isinstance(value.get(key), list):
                    words.setdefault(str(result.get("from_name")), []).extend(value[key])
            yield _Annotation(where, task["data"], each, words)


def _who(completed_by: object) -> object:
    """The address of the person, or the number that Label Studio has for them."""
    if isinstance(completed_by, dict):
        return completed_by.get("email")
    return f"Label Studio user {completed_by}" if isinstance(completed_by, int) else None
