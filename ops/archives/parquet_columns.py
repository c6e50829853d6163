"""Which column of a Parquet file holds images, which their names, and how values are read.

Columns are named by their fields from the outside in, such as ("image", "bytes").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ops.archives.file_kinds import kind_of
from ops.errors import UserError

Field = tuple[str, ...]

#: Names of columns and fields of images, best first.
_IMAGES = (
    *("image", "img", "picture", "photo", "frame", "image_bytes", "img_bytes", "image_data"),
    *("jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp", "jp2", "jxl", "avif", "heic"),
)
#: Names that columns of anything have.
_ANYTHING = ("bytes", "data", "content", "binary", "blob", "value")
#: Names of columns and fields that hold names of images.
_NAMES = frozenset({"path", "name", "uri", "filename", "file_name", "key", "__key__"})
_FIELD_NAMES = _NAMES | {"file", "filepath", "file_path"}
#: Values that are looked at to find out what a column holds, and rows searched for them.
_LOOKED_AT, _SEARCHED = 3, 10_000


class Columns(NamedTuple):
    """The columns of one file: of images, and of names, of which the first that is not null counts.

    `others` are columns of bytes that were not chosen.
    """

    images: Field
    names: tuple[Field, ...]
    others: tuple[Field, ...]


def choose(table: pq.ParquetFile, column: str = "") -> Columns:
    """The columns of a file. The choice depends on nothing but the file and `column`.

    Without `column` a column named like an image is taken, else the first whose values start like
    image files. Raises UserError if no column holds bytes, or `column` does not.
    """
    schema = table.schema_arrow
    candidates = [path for path, kind in _leaves(schema) if is_bytes(kind)]
    if not candidates:
        raise UserError(_explain_no_bytes(schema))
    if twice := sorted({path[0] for path in candidates if schema.names.count(path[0]) > 1}):
        raise UserError(f"several columns are called {twice}; give each a name of its own")
    images = _named(column, candidates) if column else _best(table, candidates)
    others = tuple(path for path in candidates if path != images)
    return Columns(images, _name_columns(schema, images), others)


def _explain_no_bytes(schema: pa.Schema) -> str:
    """What the columns hold instead of image files, and what to do about it."""
    several = [".".join(path) for path, kind in _leaves(schema) if _holds_several(kind)]
    if several:
        return f"{several} hold several images in each row; store one image in each row"
    message = f"no column of bytes among {schema.names}; one must hold the image files"
    named = {".".join(path): kind for path, kind in _leaves(schema)}
    images = [name for name in named if _rank(tuple(name.split("."))) < len(_IMAGES)]
    if texts := [name for name in images if any(test(named[name]) for test in _TEXT)]:
        return f"{message}; {texts} hold text: decode it if it is base64, or list the files named"
    return f"{message}; {images} hold numbers, not files" if images else message


def _holds_several(kind: pa.DataType) -> bool:
    """Whether a type is a list or map of bytes, or of structs with them."""
    if pa.types.is_map(kind):
        kind = pa.list_(kind.item_type)
    if not _is_list(kind):
        return False
    inner = _plain(kind.value_type)
    if pa.types.is_struct(inner):
        return any(is_bytes(leaf) for _, leaf in _leaves(inner))
    return is_bytes(inner) and not _is_list(inner)


def _named(column: str, candidates: list[Field]) -> Field:
    for path in candidates:
        if column in {".".join(path), path[0]}:
            return path
    known = ", ".join(".".join(path) for path in candidates)
    raise UserError(f"column {column!r} does not hold bytes; columns that do: {known}")


def _best(table: pq.ParquetFile, candidates: list[Field]) -> Field:
    ranked = sorted(candidates, key=_rank)  # stable: equal ranks stay in the file's order
    if len(ranked) == 1 or (_rank(ranked[0]) < len(_IMAGES) <= _rank(ranked[1])):
        return ranked[0]
    return next((path for path in ranked if _holds_images(table, path)), ranked[0])


def _rank(path: Field) -> int:
    names = (*_IMAGES, *_ANYTHING)
    ranks = [names.index(name.lower()) for name in path if name.lower() in names]
    return min(ranks, default=len(names))


def _holds_images(table: pq.ParquetFile, path: Field) -> bool:
    """Whether the first values of a column start like image files."""
    looked = searched = 0
    for batch in batches(table, path, rows=16):
        for value in values(batch, path):
            searched += 1
            if value.is_valid:
                looked += 1
                if kind_of(to_bytes(value)):
                    return True
        if looked >= _LOOKED_AT or searched >= _SEARCHED:
            break
    return False


def batches(
    table: pq.ParquetFile, path: Field, rows: int, groups: list[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of one column; pages are read as they are needed, not the column chunk at once."""
    return iter(
        table.iter_batches(rows, row_groups=groups, columns=[".".join(path)], use_threads=False)
    )


def values(batch: pa.RecordBatch, path: Field) -> pa.Array:
    """The values of a column that may lie in structs; null where a struct around it is null."""
    array = _storage(batch.column(path[0]))
    for name in path[1:]:
        array = _storage(pc.struct_field(array, name))
    return array


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array.type, pa.BaseExtensionType) else array


def to_bytes(value: pa.Scalar) -> bytes:
    """The bytes of a value that is not null."""
    if _is_list(value.type):
        octets = value.values
        if octets.null_count:
            raise UserError("its list of bytes holds nulls")
        return bytes(octets.to_numpy(zero_copy_only=False).astype(np.uint8).tobytes())
    return bytes(value.as_py())


def _leaves(
    fields: pa.Schema | pa.StructType, above: Field = ()
) -> Iterator[tuple[Field, pa.DataType]]:
    """Columns, and fields of structs at any depth, with their types."""
    for field in fields:
        kind = _plain(field.type)
        if pa.types.is_struct(kind):
            yield from _leaves(kind, (*above, field.name))
        else:
            yield (*above, field.name), kind


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without what does not change its values: extensions and dictionaries."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    return _plain(kind.value_type) if pa.types.is_dictionary(kind) else kind


_BYTES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_TEXT: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
)
_LISTS: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes: binary of any kind, or lists of 8-bit integers."""
    if _is_list(kind):
        return bool(pa.types.is_uint8(kind.value_type) or pa.types.is_int8(kind.value_type))
    return any(test(kind) for test in _BYTES)


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in _LISTS)


def _name_columns(schema: pa.Schema, images: Field) -> tuple[Field, ...]:
    """Columns of names in the order of the schema: of the table, and beside the image."""
    found = []
    for path, kind in _leaves(schema):
        if schema.names.count(path[0]) > 1:
            continue
        own = path[:-1] == images[:-1] and path[-1].lower() in _FIELD_NAMES
        top = len(path) == 1 and path[0].lower() in _NAMES
        if (top or (own and len(path) > 1)) and any(test(kind) for test in _TEXT):
            found.append(path)
    return tuple(found)
