"""Views of parts: which detector an image is for.

With pooled views one detector is fitted for each product; with separate ones, for each product and
view. Images without a view are then one more view, whose detector has the name of the product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ops.errors import UserError

#: Detectors per product, or per product and view.
Views = Literal["pooled", "separate"]
#: Stands between product and view in the name of a detector; no name of either holds it then.
_BETWEEN = "/"


def detector_name(row: Mapping[str, Any], views: Views) -> str:
    """The name of the detector that an image is for, by its `product` and `view`."""
    view = row.get("view") if views == "separate" else None
    product = str(row["product"])
    return product if view is None else f"{product}{_BETWEEN}{view}"


def detector_names(rows: pa.Table, views: Views) -> pa.ChunkedArray:
    """The names of the detectors that images are for; null where the product is."""
    products = rows["product"]
    if views == "pooled" or "view" not in rows.schema.names:
        return products
    joined = pc.binary_join_element_wise(products, rows["view"], _BETWEEN)
    return pc.if_else(pc.is_null(rows["view"]), products, joined)


def detector_sql(views: Views, table: str = "") -> str:
    """The same as `detector_name`, as an expression of SQL over the columns of a table."""
    product, view = (f"{table}.{name}" if table else name for name in ("product", "view"))
    return product if views == "pooled" else f"({product} || coalesce('{_BETWEEN}' || {view}, ''))"


def with_detectors(rows: pa.Table, views: Views) -> pa.Table:
    """Rows whose product is the name of their detector."""
    at = rows.schema.get_field_index("product")
    return rows.set_column(at, "product", detector_names(rows, views))


def views_of(record: Mapping[str, Any]) -> Views:
    """Those of the model of a run, by its record."""
    return "separate" if record.get("views") == "separate" else "pooled"


def product_of(detector: str, views: Views) -> str:
    """The product of a detector."""
    return detector.partition(_BETWEEN)[0] if views == "separate" else detector


def view_of(detector: str, views: Views) -> tuple[str, str | None]:
    """The product and the view of a detector; the view is None where it has none of its own."""
    product, between, view = detector.partition(_BETWEEN)
    return (product, view) if views == "separate" and between else (detector, None)


def check_names(names: Iterable[str | None]) -> None:
    """Check products and views of which separate detectors are fitted. Raises UserError."""
    wrong = sorted({name for name in names if name and _BETWEEN in name})
    if wrong:
        raise UserError(
            f"--views separate names detectors PRODUCT/VIEW, and {wrong[0]!r} holds a slash; give "
            "products and views other names in the inventory, or choose --views pooled"
        )
