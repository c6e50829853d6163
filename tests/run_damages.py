"""Each kind of damage to a run, with the rule that it breaks and the value that is named."""

from __future__ import annotations

import os
import shutil

import pyarrow as pa

from ops.results import map_png
from ops.results.anomaly_map import Scale
from ops.results.score_table import SCHEMA
from ops.storage import files
from tests.checked_runs import PARTS
from tests.runs import Part, draw_map, list_parts


def remove_row(it):
    it.write(it.rows().slice(1))


def double_row(it):
    it.write(pa.concat_tables([it.rows(), it.rows().slice(3, 1)]))


def foreign_row(it):
    it.change(2, image_id="f" * 32)


def lose_score(it):
    it.change(1, score=None)


def score_to_nan(it):
    it.change(1, score=float("nan"))


def other_score(it):
    it.change(0, score=1.0)


def other_call(it):
    it.change(0, is_anomalous=True)


def no_call(it):
    it.change(0, is_anomalous=None)


def score_of_a_failure(it):
    it.change(17, score=3.0)


def other_status(it):
    it.change(17, status="odd")


def other_run(it):
    it.change(4, run_id="2026-11-19-0000000000000000")


def other_model(it):
    it.change(4, model_id="m")


def other_product(it):
    it.change(4, product="nut")


def other_fields(it):
    it.change(4, fields=[("line", "A")])


def other_peak(it):
    it.change(4, peak_x=80)


def forget_map(it):
    it.change(11, map_uri=None)


def unasked_map(it):
    it.change(0, map_uri=draw_map(it.out, it.card, PARTS[0].image_id))


def delete_map(it):
    os.remove(it.map())


def truncate_map(it):
    data = files.read_bytes(it.map())
    files.write_bytes(it.map(), data[: len(data) // 2])


def empty_map(it):
    files.write_bytes(it.map(), b"")


def rescale_map(it):
    draw_map(it.out, it.card, PARTS[11].image_id, Scale(0.0, 0.002))


def shrink_map(it):
    levels = map_png.decode(files.read_bytes(it.map()))
    png = map_png.encode(levels.values()[:32], levels.scale, levels.geometry, levels.model_id)
    files.write_bytes(it.map(), png)


def shift_map(it):
    read = map_png.decode(files.read_bytes(it.map()))
    png = map_png.encode(read.values(), read.scale, read.geometry._replace(left=3.0), read.model_id)
    files.write_bytes(it.map(), png)


def lose_table(it):
    os.remove(it.table)


def cut_table(it):
    data = files.read_bytes(it.table)
    files.write_bytes(it.table, data[: len(data) // 2])


def damage_a_page(it):
    data = bytearray(files.read_bytes(it.table))
    data[40:80] = bytes(40)
    files.write_bytes(it.table, bytes(data))


def another_file(it):
    shutil.copy(it.table, it.table.replace("part-00000", "part-00001"))


def leave_work(it):
    files.write_bytes(it.out.chunk(it.run.run_id, 0), b"")


def drop_a_column(it):
    rows = it.rows().drop_columns(["peak_y"])
    it.write(rows, rows.schema)


def swap_columns(it):
    rows = it.rows().select(list(reversed(SCHEMA.names)))
    it.write(rows, rows.schema)


def change_a_type(it):
    schema = SCHEMA.set(SCHEMA.names.index("score"), pa.field("score", pa.float32()))
    it.write(it.rows().cast(schema), schema)


def drop_meanings(it):
    it.write(it.rows(), pa.schema([f.remove_metadata() for f in SCHEMA], SCHEMA.metadata))


def drop_the_schemas_name(it):
    it.write(it.rows(), SCHEMA.remove_metadata())


def other_totals(it):
    it.record(anomalous=3)


def other_statuses(it):
    it.record(statuses={"ok": 18})


def other_count(it):
    it.record(images=19)


def table_elsewhere(it):
    it.record(table="/elsewhere/part-00000.parquet")


def other_settings(it):
    record = files.read_json(it.out.run(it.run.run_id))
    files.write_json(
        it.out.run(it.run.run_id), record | {"settings": {"maps": "all", "chunk_rows": 10}}
    )


def forget_settings(it):
    record = files.read_json(it.out.run(it.run.run_id))
    files.write_json(it.out.run(it.run.run_id), {k: v for k, v in record.items() if k != "input"})


def lose_inventory(it):
    os.remove(it.run.inventory.location)


def renew_inventory(it):
    list_parts(it.run.inventory.location, [*PARTS, Part("new.png", "bolt", 1.0)])


def doubled_inventory(it):
    list_parts(it.run.inventory.location, [*PARTS, PARTS[0]])


DAMAGES = {
    remove_row: ("every image of the inventory has a row", PARTS[0].image_id),
    double_row: ("no image has two rows", f"{PARTS[3].image_id}, 2 times"),
    foreign_row: ("every row belongs to an image of the inventory", "f" * 32),
    lose_score: ("there are no ok rows without a finite score", "score None"),
    score_to_nan: ("there are no ok rows without a finite score", "score nan"),
    other_score: ("there are no rows whose p_value disagrees with the model", "score 1.0"),
    other_call: ("there are no rows whose is_anomalous disagrees with the threshold", "True"),
    no_call: ("there are no rows whose is_anomalous disagrees with the threshold", "None"),
    score_of_a_failure: ("there are no failed rows with score", "status 'unreadable', score 3.0"),
    other_status: ("there are no rows of an unknown status", "status 'odd'"),
    other_run: ("there are no rows whose run_id is not that of the record", "2026-11-19-000000000"),
    other_model: ("there are no rows whose model_id is not that of the record", "model_id 'm'"),
    other_product: (
        "rows have the uri, product, part, view and fields of the inventory",
        "bolt4.png, nut, None, None, None",
    ),
    other_fields: (
        "rows have the uri, product, part, view and fields of the inventory",
        "bolt4.png, bolt, None, None, {'line': 'A'}",
    ),
    other_peak: ("there are no rows whose peak lies outside of the picture", "peak_x 80"),
    forget_map: ("rows have the maps that --maps flagged requires", PARTS[11].image_id),
    unasked_map: ("no other rows have maps than --maps flagged requires", PARTS[0].image_id),
    delete_map: ("every map that a row names exists", "missing: "),
    truncate_map: ("every map can be decoded", "not a readable PNG (OSError"),
    empty_map: ("every map can be decoded", "not a readable PNG (UnidentifiedImageError"),
    rescale_map: ("maps have the model's offset and scale", "scale=0.002"),
    shrink_map: ("maps have the size of the detector's input", "(32, 64), not (64, 64)"),
    shift_map: ("maps cover their images", "left=3.0"),
    lose_table: ("the run's table exists", "part-00000.parquet does not exist"),
    cut_table: ("the table can be read to its end", "Parquet"),
    damage_a_page: ("the table can be read to its end", ""),
    another_file: ("the run's table is the only file in its folder", "part-00001.parquet"),
    leave_work: ("a published run has no work files", "part-00000.parquet"),
    drop_a_column: ("the table's columns are those of the schema", "peak_y is missing"),
    swap_columns: ("the table's columns are those of the schema", "in another order"),
    change_a_type: ("the table's columns are those of the schema", "score is float, not double"),
    drop_meanings: ("the metadata of each column has its meaning", "image_id"),
    drop_the_schemas_name: ("the table's metadata names its schema", "None, not b'scores 4'"),
    other_totals: ("the record's total of anomalous is the table's", "3, not 8"),
    other_statuses: ("the record's total of statuses is the table's", "{'ok': 18}, not {'ok': 17"),
    other_count: ("the record's totals count all its images", "19, not 18"),
    table_elsewhere: ("the record names the run's table", "/elsewhere/part-00000.parquet"),
    other_settings: ("the run's id is a hash of inventory, model and settings", ", not '"),
    forget_settings: ("the record has all required fields", "input"),
    lose_inventory: ("the inventory that was scored can be read", "No such file"),
    renew_inventory: ("the run's id is a hash of inventory, model and settings", ", not '"),
    doubled_inventory: ("the inventory lists no image twice", f"{PARTS[0].image_id}, 2 times"),
}  # fmt: skip
