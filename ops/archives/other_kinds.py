"""Kinds of archives and tables that are not read: named in counts and problems, not passed over."""

from __future__ import annotations

from ops.archives.entry import PARQUET, ZIP, is_container

#: Kind -> suffixes of its files.
_SUFFIXES = {
    "tar compressed with Zstandard": (".tar.zst", ".tzst", ".tar.zstd"),
    "tar compressed with LZ4": (".tar.lz4",),
    "tar compressed with LZMA": (".tar.lzma", ".tlz", ".tar.lz"),
    "tar compressed with compress": (".tar.z", ".taz"),
    "tar compressed with Brotli": (".tar.br",),
    "7z": (".7z",),
    "RAR": (".rar", ".cbr"),
    "cpio": (".cpio",),
    "parts of split archives": (".z01", ".001", ".r00", ".part"),
    "cabinet": (".cab",),
    "disk image": (".iso", ".img", ".dmg", ".vhd", ".vmdk", ".squashfs"),
    "Arrow IPC": (".arrow", ".feather", ".ipc", ".arrows"),
    "Lance": (".lance",),
    "ORC": (".orc",),
    "Avro": (".avro",),
    "TFRecord": (".tfrecord", ".tfrecords"),
    "RecordIO": (".rec",),
    "LMDB": (".mdb", ".lmdb"),
    "HDF5": (".h5", ".hdf5", ".hdf"),
    "Zarr": (".zarr",),
    "NumPy": (".npz", ".npy"),
    "SQLite": (".sqlite", ".sqlite3", ".db"),
    "pickle": (".pkl", ".pickle"),
}
_BY_SUFFIX = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
_ENDINGS = tuple(_BY_SUFFIX)
#: First bytes -> kind, whatever the file is called.
_STARTS = {
    b"\x28\xb5\x2f\xfd": "a file compressed with Zstandard",
    b"\x04\x22\x4d\x18": "a file compressed with LZ4",
    b"\x1f\x9d": "a file compressed with compress",
    b"\x5d\x00\x00": "a file compressed with LZMA",
    b"LZIP": "a file compressed with lzip",
    b"\x1f\x8b\x08": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"MSCF": "a cabinet",
    b"070701": "a cpio archive",
    b"070702": "a cpio archive",
    b"070707": "a cpio archive",
    b"\xc7\x71": "a cpio archive",
    b"!<arch>\n": "an ar archive",
    b"PK\x03\x04": "a zip",
    b"PK\x05\x06": "a zip",
    b"PK\x07\x08": "a part of a split zip",
    b"PAR1": "a Parquet file",
    b"PARE": "an encrypted Parquet file",
    b"ARROW1": "an Arrow IPC file",
    b"FEA1": "a Feather file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"\x89HDF\r\n": "an HDF5 file",
    b"SQLite format 3": "an SQLite database",
    b"version https://git-lfs": "a pointer of Git LFS, without the content",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
}
_REMEDY = "store the images as files, tar, zip or Parquet"


def left_out_as(name: str, is_member: bool) -> str | None:
    """The reason to leave out a file that is an archive or a table of another kind; else None.

    An archive within an archive is not opened, also one that would be read as a file of its own.
    """
    lower = name.lower()
    if is_member and is_container(lower):
        return f"archives within archives, which are not opened; {_REMEDY}"
    if not lower.endswith(_ENDINGS):
        return None
    kind = next(kind for suffix, kind in _BY_SUFFIX.items() if lower.endswith(suffix))
    return f"files of a kind that is not read ({kind}); {_REMEDY}"


def kind_of(start: bytes) -> str | None:
    """What a file is by its first bytes, with an article; None if they are not known."""
    if start[257:262] == b"ustar":
        return "a tar"
    return next((kind for sign, kind in _STARTS.items() if start.startswith(sign)), None)


def misnamed(name: str, start: bytes) -> str | None:
    """What a file is that is called a tar, a zip or Parquet and is something else; else None."""
    lower, kind = name.lower(), kind_of(start)
    if lower.endswith(PARQUET):
        named, own = "Parquet", {"a Parquet file"}
    elif lower.endswith(ZIP):
        named, own = "a zip", {"a zip"}
    else:
        named, own = "a tar", {"a tar", "a gzip file", "a bzip2 file", "an xz file"}
    if kind is None or kind in own:
        return None
    return f"it is {kind}, not {named} as its name says; {_REMEDY}, under the suffix of their kind"
