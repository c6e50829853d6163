"""Decisions in a COCO file: one of jobs.query that went through a labelling tool.

The category of an annotation says the decision, or else its attribute `decision`. Tools keep
categories, boxes and names of files. CVAT keeps attributes as well if its labels declare them; with
image_id, run_id and region among them nothing has to be found again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ops.errors import UserError
from ops.results.decision_table import DEFECT, FALSE_ALARM, UNDECIDED, UNSURE
from pipelines.labelling import strict_json
from pipelines.labelling.label_studio_file import local_file
from pipelines.labelling.refusals import shortened
from pipelines.labelling.statements import Statements

#: The category of what nobody has decided, and those of decisions, by their id in a file.
ANOMALY = "anomaly"
CATEGORIES = dict(enumerate((ANOMALY, DEFECT, FALSE_ALARM, UNSURE), 1))
_SAYS_NOTHING = ("", ANOMALY, UNDECIDED)


def read(content: Mapping[str, Any], into: Statements) -> None:
    """Read the annotations of `{"images": [...], "annotations": [...], "categories": [...]}`.

    An annotation without a decision says nothing. Raises UserError.
    """
    file = into.refusals.file
    images = _by_id(file, content, "images")
    categories = _by_id(file, content, "categories")
    annotations = strict_json.objects(file, content["annotations"], "annotations")
    for number, annotation in enumerate(annotations, 1):
        attributes = annotation.get("attributes") or {}
        if not isinstance(attributes, dict):
            raise UserError(f"{file}: the attributes of annotation {number} are no object")
        category = _of(categories, annotation.get("category_id")).get("name")
        words = (category, attributes.get("decision"))
        said = [word for word in words if word is not None and word not in _SAYS_NOTHING]
        if not said:
            into.undecided += 1
            continue
        into.add(
            f"annotation {number}",
            said[0],
            image_id=attributes.get("image_id"),
            address=local_file(_of(images, annotation.get("image_id")).get("file_name")),
            run_id=attributes.get("run_id"),
            region=attributes.get("region"),
            box=annotation.get("bbox"),
        )


def _by_id(file: str, content: Mapping[str, Any], name: str) -> dict[object, dict[str, Any]]:
    entries = strict_json.objects(file, content.get(name), name)
    found: dict[object, dict[str, Any]] = {}
    for entry in entries:
        own = entry.get("id")
        if not isinstance(own, (int, str)):
            raise UserError(f"{file}: an entry of {name} has the id {shortened(own)}")
        if own in found:
            raise UserError(
                f"{file}: two entries of {name} have the id {shortened(own)}; export it again"
            )
        found[own] = entry
    return found


def _of(entries: Mapping[object, dict[str, Any]], name: object) -> dict[str, Any]:
    return entries.get(name, {}) if isinstance(name, (int, str)) else {}
