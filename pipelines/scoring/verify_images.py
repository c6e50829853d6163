"""Compares a run's inventory and rows with the archive: versions of files, hashes of bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa

from ops.archives.fetch import FetchSettings
from ops.archives.hash_images import HashImages
from ops.archives.inventory import READING_ORDER
from ops.progress import ProgressCallback
from ops.storage import files, uris, versions
from ops.storage.storage_errors import NotFound, StorageError
from pipelines.scoring.violations import Findings, RunUnderCheck
from pipelines.tables.database import load

#: Images that are read at least, so that a share of a small run is not empty.
_LEAST = 100
_THREADS = 16
_COLUMNS = ("image_id", "uri", "bytes", "version", "member", "problem")
#: One row for each file or archive of the inventory, whose images may lie in its members.
_FILES = """
    CREATE TABLE files AS
    SELECT split_part(uri, '#', 1) AS file, split_part(version, '@', 1) AS version,
           count(*) AS images
    FROM inventory WHERE version IS NOT NULL GROUP BY ALL ORDER BY file
"""
#: Images whose file is the listed version, and whose bytes were hashed.
_SAMPLED = f"""
    SELECT inventory.*, hashes.content_sha256 AS scored_sha256
    FROM inventory JOIN hashes USING (image_id)
    SEMI JOIN unchanged ON split_part(inventory.uri, '#', 1) = unchanged.file
        AND split_part(inventory.version, '@', 1) = unchanged.version
    WHERE inventory.problem IS NULL AND hashes.content_sha256 IS NOT NULL
        AND md5_number_lower(image_id) / 18446744073709551616.0 < $share
    ORDER BY {READING_ORDER}
"""  # noqa: S608 - the order is a constant


def check_images(
    run: RunUnderCheck,
    inventory: str,
    database: duckdb.DuckDBPyConnection,
    content_sample: float,
    findings: Findings,
    progress: ProgressCallback,
) -> None:
    """Compare all versions of the inventory with the archive's files, and hashes of a sample.

    Files that were replaced or removed since are counted, which breaks no rule: the next night
    takes them up. Files of the listed version must hold the bytes that were scored.
    `content_sample` is the share of images that are read, chosen by a hash of their ids.
    """
    load(database, "inventory", inventory, _COLUMNS)
    database.execute(_FILES)
    database.execute("CREATE TABLE unchanged (file VARCHAR, version VARCHAR)")
    _compare_versions(database, findings, progress)
    if content_sample and findings.files["unchanged"]:
        load(database, "hashes", run.table, ("image_id", "content_sha256"))
        share = max(content_sample, _LEAST / max(findings.images, 1))
        _compare_hashes(run, database, share, findings, progress)


def _compare_versions(
    database: duckdb.DuckDBPyConnection, findings: Findings, progress: ProgressCallback
) -> None:
    [(total,)] = database.execute("SELECT count(*) FROM files").fetchall()
    done, writer = 0, database.cursor()  # of its own, as the rows of `files` are a stream
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in database.sql("FROM files").to_arrow_reader(2**12):
            table = pa.Table.from_batches([batch])
            states = list(pool.map(_state, *(table[n].to_pylist() for n in ("file", "version"))))
            for state, images in zip(states, table["images"].to_pylist(), strict=True):
                findings.files[state] += images
            same = table.filter(pa.array([state == "unchanged" for state in states]))
            writer.register("same", same.select(["file", "version"]))
            writer.execute("INSERT INTO unchanged FROM same")
            done += len(table)
            progress("versions", done, total, 0)


def _state(file: str, version: str) -> str:
    """Whether a file has the listed version now.

    It is one of unchanged, changed, gone, unavailable, and unknown if the version is of an
    inventory by another tool.
    """
    if not versions.is_known(version):
        return "unknown"
    try:
        now = files.describe(uris.parse(file).location).version
    except NotFound:
        return "gone"
    except StorageError:
        return "unavailable"
    return "unchanged" if now == version else "changed"


def _compare_hashes(
    run: RunUnderCheck,
    database: duckdb.DuckDBPyConnection,
    share: float,
    findings: Findings,
    progress: ProgressCallback,
) -> None:
    hash_images = HashImages(FetchSettings(**run.record.get("fetch", {})), _THREADS)
    for batch in database.sql(_SAMPLED, params={"share": share}).to_arrow_reader(64):
        for row in hash_images(pa.Table.from_batches([batch])).to_pylist():
            if row["status"] == "ok":
                findings.hashed += 1
                if row["content_sha256"] != row["scored_sha256"]:
                    _add(findings, f"{row['uri']}: its bytes have another hash")
            elif row["status"] == "unreadable":
                _add(findings, f"{row['uri']}: {row['reason']}")
            else:
                findings.files[f"not read ({row['status']})"] += 1
        progress("hashes", findings.hashed, 0, len(findings.violations))


def _add(findings: Findings, value: str) -> None:
    findings.add(
        "files of the listed version hold the bytes that were scored",
        [value],
        "restore the files; or score what they hold now with python -m jobs.nightly "
        "--verify-content 100%",
    )
