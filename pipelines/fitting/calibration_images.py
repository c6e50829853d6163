"""The held-out images of a model are kept with it, so that growing it keeps its calibration.

A grown bank gives other scores, so the held-out images of the model before are scored anew, beside
new ones. Otherwise a calibration of 75 images would be replaced by one of the few new ones.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ops.archives.views import Views, product_of
from ops.detectors.model_folder import Model
from ops.errors import UserError
from pipelines.fitting.request import ROW, NothingToFit, Split
from pipelines.scoring.read_stage import CARRIED


def to_bytes(rows: pa.Table) -> bytes:
    """Rows of held-out images as the Parquet file of a model folder."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows.select(list(CARRIED)), sink)
    return bytes(sink.getvalue())


def of_model(model: Model) -> pa.Table | None:
    """The held-out images of a model with the columns `CARRIED`; None if it has none.

    Raises UserError if their file is damaged.
    """
    if not model.held_out:
        return None
    try:
        return pq.read_table(pa.BufferReader(model.held_out)).select(list(CARRIED))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(
            f"the held-out images of model {model.card.model_id} cannot be read ({error}); restore "
            "its folder from a backup, or fit the model again"
        ) from error


def with_earlier(chosen: Split, earlier: Model, before: pa.Table | None) -> Split:
    """A split that also holds out the images which the model to grow held out: those of `before`.

    Only of products of which a detector changes. An image that calibrates is not fitted on, nor is
    another image of its part; its row is the newer one if the inventory lists its address too.
    Raises NothingToFit if no image is left.
    """
    if before is None:
        return chosen
    before = before.cast(chosen.held_out.schema)
    plain = with_products(chosen.fit, earlier.card.views)
    again = is_among(plain, before)
    listed = pa.concat_tables([plain.filter(again).select(list(CARRIED)), chosen.held_out])
    fitted = chosen.fit.filter(pc.invert(again))
    if not len(fitted):
        raise NothingToFit(
            "every good image of the inventory was held out for the calibration of the model that "
            "is to be grown; add other images"
        )
    old = before.filter(pc.invert(pc.is_in(before["uri"], listed["uri"])))
    if not earlier.card.joint:
        # All views of a product calibrate its parts, also those whose detector stays as it is.
        products = pc.unique(plain.filter(pc.invert(again))["product"])
        old = old.filter(pc.is_in(old["product"], products))
        listed = listed.filter(pc.is_in(listed["product"], products))
    return Split(_renumbered(fitted), pa.concat_tables([old, listed]))


def is_among(rows: pa.Table, others: pa.Table) -> pa.Array:
    """Whether rows have the address, or are of the part, of any of the others."""
    parts = _parts(others).drop_null()
    return pc.or_(pc.is_in(rows["uri"], others["uri"]), pc.is_in(_parts(rows), parts))


def with_products(fitted: pa.Table, views: Views) -> pa.Table:
    """Rows to fit on with their products, instead of the names of separate detectors."""
    names = [product_of(name, views) for name in fitted["product"].to_pylist()]
    at = fitted.schema.get_field_index("product")
    return fitted.set_column(at, "product", pa.array(names, pa.string()))


def _parts(rows: pa.Table) -> pa.ChunkedArray:
    """A name of each row's part that no other product has; null for images of no part."""
    return pc.binary_join_element_wise(rows["product"], rows["part"], "\0")


def _renumbered(fitted: pa.Table) -> pa.Table:
    """Rows numbered without gaps, in the order of the numbers that they had."""
    numbers = np.argsort(np.argsort(fitted[ROW].to_numpy()))
    at = fitted.schema.get_field_index(ROW)
    return fitted.set_column(at, ROW, pa.array(numbers, pa.int64()))


def kept(chosen: Split, earlier: Model | None) -> bytes:
    """The file of a new model: the images that calibrate it, also of products left as they are."""
    rows = [chosen.held_out.select(list(CARRIED))]
    before = of_model(earlier) if earlier else None
    if earlier and before is not None and not earlier.card.joint:
        fitted = sorted({product_of(name, earlier.card.views) for name in chosen.products})
        others = pc.invert(pc.is_in(before["product"], pa.array(fitted, pa.string())))
        rows.append(before.filter(others).cast(rows[0].schema))
    return to_bytes(pa.concat_tables(rows))
