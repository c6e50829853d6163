"""What a night of ten million images takes to find: `python -m tests.faults due 10000000 1000`.

A drawn history over ten nights has a row for all but so many of the listed images. `pending`
runs in processes of its own, with the memory that it takes unasked, and with less.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow as pa

from ops.archives import inventory
from ops.archives.inventory import Inventory
from ops.results import score_table
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables import pending

NIGHTS = 10
MODEL = "ab" * 16
#: As long as real ones, and as hard to compress.
_IMAGES = """
    SELECT md5('u' || number) AS image_id,
           format('s3://warehouse/parts/line-{}/{:08d}.png', number % 7, number) AS uri,
           'part-' || number % 7 AS product, md5('v' || number) AS version
    FROM range($first, $last) AS numbers(number)
"""
_LISTED = f"SELECT *, 123456 AS bytes FROM ({_IMAGES}) ORDER BY product, uri"
_SCORED = f"""
    SELECT image_id, uri, product, version || image_id AS content_sha256, 'ok' AS status,
           64 AS width, 64 AS height, 8 AS bit_depth, random() AS score, random() AS p_value,
           false AS is_anomalous, 1 AS peak_x, 1 AS peak_y, $model AS model_id, $run AS run_id,
           $number AS run_number, $at::TIMESTAMP AS scored_at
    FROM ({_IMAGES}) ORDER BY product, uri
"""


def draw(folder: Path, listed: int, new: int) -> None:
    """An inventory, and a history that lacks the last `new` images of it."""
    with duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(folder)}) as database:
        _write(database, folder / "listed.parquet", inventory.SCHEMA, _LISTED, (0, listed), {})
        scored = listed - new
        for night in range(NIGHTS):
            date = f"2026-10-{night + 1:02d}"
            told = {
                "model": MODEL,
                "run": f"{date}-{night:016x}",
                "number": night + 1,
                "at": f"{date} 03:00:00",
            }
            span = (scored * night // NIGHTS, scored * (night + 1) // NIGHTS)
            place = Out(str(folder / "out")).table(date, told["run"])
            _write(database, Path(place), score_table.SCHEMA, _SCORED, span, told)


def _write(database, file, schema, question, span, told) -> None:
    asked = {"first": span[0], "last": span[1], **told}
    found = database.sql(question, params=asked).to_arrow_reader(2**16)

    parquet.write(str(file), schema, (_filled(batch, schema) for batch in found))


def _filled(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """With the columns that nobody asked for."""
    named = set(batch.schema.names)
    columns = [
        batch[f.name].cast(f.type) if f.name in named else pa.nulls(len(batch), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


def ask(folder: str, limit: str) -> None:
    """Find what is due, and say how long it took, what was held at most, and what was found."""
    out, to, start = Out(f"{folder}/out"), f"{folder}/due.parquet", time.perf_counter()
    found = pending.find_pending(out, f"{folder}/listed.parquet", MODEL, ["missing"], to, limit)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text().splitlines()
    most = int(next(x for x in status if x.startswith("VmHWM")).split()[1]) / 2**20
    print(seconds, most, found.new, found.changed, found.retried, len(Inventory(to)))


def main(words: list[str]) -> None:
    """Draw so many (10,000,000) images of which so many (1,000) are new, and a tenth of them."""
    listed, new = (int(word) for word in [*words, *("10000000", "1000")[len(words) :]])
    print("| images | new | memory of the database | seconds | most held by the process |")
    print("|---|---|---|---|---|")
    for count in (listed // 10, listed):
        with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
            draw(Path(folder), count, new)
            for limit in ("2GB", "1GB", "500MB"):
                code = f"from tests.faults.due import ask; ask({folder!r}, {limit!r})"
                done = subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    print(f"| {count:,} | | {limit} | - | {done.stderr.strip().splitlines()[-1]} |")
                    continue
                seconds, most, *found = done.stdout.split()
                assert list(map(int, found)) == [new, 0, 0, new], found
                figures = f"{float(seconds):.1f} | {float(most):.2f} GiB"
                print(f"| {count:,} | {found[0]} | {limit} | {figures} |", flush=True)
