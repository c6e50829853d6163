"""A sound run passes; each kind of damage is found and named. Runs are drawn, without Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil

import pyarrow as pa
import pytest

from ops.detectors.model_folder import read_card
from ops.results import map_png
from ops.results.anomaly_map import Scale
from ops.results.score_table import SCHEMA
from ops.storage import files, parquet, paths, uris
from pipelines.scoring import verify
from pipelines.scoring.run import ScoreSettings
from pipelines.scoring.violations import RunUnderCheck
from pipelines.tables import run_records
from tests.runs import Part, draw_map, finish, list_parts, model_of

NIGHT = "2026-11-20"
PARTS = [
    *(Part(f"bolt{i}.png", "bolt", 1.5 + i / 10) for i in range(12)),
    *(Part(f"nut{i}.png", "nut", 1.75 + i / 10) for i in range(5)),
    Part("broken.png", "nut", None),
]
POLICIES = ("none", "flagged", "all", "top:4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run under each policy of maps; read-only."""
    model = model_of(["bolt", "nut"])
    found = {}
    for policy in POLICIES:
        folder = tmp_path_factory.mktemp("out")
        found[policy] = finish(str(folder), PARTS, model, NIGHT, ScoreSettings(policy, False, 10))
    return found


class Damage:
    """A run to be damaged."""

    def __init__(self, run):
        self.run, self.out = run, run.out
        self.table = run.out.table(run.night, run.run_id)
        self.card = run.model.card

    def rows(self):
        return parquet.read(self.table)

    def write(self, rows, schema=SCHEMA):
        parquet.write(self.table, schema, [rows])

    def change(self, place, **values):
        rows = self.rows().to_pylist()
        rows[place] |= values
        self.write(pa.Table.from_pylist(rows, SCHEMA))

    def record(self, **totals):
        record = files.read_json(self.out.run(self.run.run_id))
        record["totals"] |= totals
        files.write_json(self.out.run(self.run.run_id), record)

    def map(self):
        """Where the last bolt's map lies, whose score is above the threshold."""
        return uris.parse(self.rows()["map_uri"][11].as_py()).location


@pytest.fixture
def damage(runs, tmp_path):
    """A copy of the flagged run in the place of the original, which comes back afterwards."""
    root = runs["flagged"].out.root
    shutil.copytree(root, tmp_path / "kept")
    yield Damage(runs["flagged"])
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "kept", root)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sound_run_keeps_its_promise_under_every_policy_of_maps(runs, leave, policy):
    code, out, err = leave("check", "--out", runs[policy].out.root)
    assert (code, err.count("error")) == (0, 0)
    drawn = {"none": 0, "flagged": 8, "all": 17, "top:4": 4}[policy]
    assert out == (
        f"run {runs[policy].run_id} is complete: 18 images with one valid row each; "
        f"all {drawn} maps were read and are valid\n"
    )


def test_a_share_of_the_maps_is_stated(runs, leave):
    code, out, _ = leave(
        "check", runs["all"].run_id, "--out", runs["all"].out.root, "--map-sample", "0.5"
    )
    assert code == 0
    read = int(out.split("; ")[1].split()[0])
    assert 0 < read < 17
    assert f"{read} of 17 maps, chosen by a hash of their ids, were read" in out


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


@pytest.mark.parametrize("do", DAMAGES, ids=lambda do: do.__name__)
def test_damage_is_found_with_rule_value_and_remedy(damage, do):
    do(damage)
    run, record = damage.run, run_records.recorded(damage.out, damage.run.run_id)
    place = str(record.get("inventory"))
    under_check = RunUnderCheck(damage.out, run.run_id, record, place, damage.card)
    findings = verify.check(under_check, 1.0, lambda *_: None)
    rule, value = DAMAGES[do]
    (violation,) = [v for v in findings.violations.values() if v.rule == rule]
    assert value in violation.examples[0]
    assert violation.remedy


@pytest.mark.parametrize("do", [lose_score, truncate_map], ids=lambda do: do.__name__)
def test_damage_is_printed_with_rule_value_and_remedy(damage, leave, do):
    do(damage)
    code, out, err = leave("check", damage.run.run_id, "--out", damage.out.root)
    assert code == 1
    assert "Traceback" not in err
    rule, value = DAMAGES[do]
    told = out.split(f"broken: {rule}\n")[1].split("broken: ")[0].splitlines()
    assert told[0].startswith("  found:  ")
    assert value in told[0]
    assert any(line.startswith("  remedy: ") for line in told)
    assert out.splitlines()[-1].startswith(f"run {damage.run.run_id} breaks ")


def test_many_violations_are_counted_and_few_named(damage, leave):
    damage.write(damage.rows().slice(0, 7))
    _, out, _ = leave("check", "--out", damage.out.root)
    told = out.split("broken: every image of the inventory has a row\n")[1].splitlines()
    assert [line.split()[0] for line in told[:6]] == ["found:"] * 6
    assert told[5] == "  found:  6 more like these"
    assert told[6].startswith("  remedy: ")


def test_values_of_a_table_do_not_act_on_the_terminal(damage, leave):
    damage.change(0, run_id="\x1b[2Jx\nbroken: nothing")
    _, out, _ = leave("check", "--out", damage.out.root)
    assert "\x1b" not in out
    assert "\nbroken: nothing" not in out


def test_without_model_and_recorded_scale_maps_must_agree_with_each_other(damage, leave):
    shutil.rmtree(damage.out.model(damage.card.model_id))
    record = files.read_json(damage.out.run(damage.run.run_id))
    del record["map_scale"]
    files.write_json(damage.out.run(damage.run.run_id), record)
    assert leave("check", "--out", damage.out.root)[0] == 0
    rescale_map(damage)
    code, out, _ = leave("check", "--out", damage.out.root)
    assert code == 1
    assert "broken: maps have the model's offset and scale" in out


def test_a_record_and_table_of_another_calibration_than_the_models_are_found(damage, leave):
    other = model_of(["bolt", "nut"], seed=1)
    folder = damage.out.model("other")
    from ops.detectors.model_folder import write_model

    write_model(folder, other)
    assert read_card(folder).model_id != damage.card.model_id
    code, out, _ = leave("check", "--out", damage.out.root, "--model", folder)
    assert code == 1
    assert "broken: the model is the one on record" in out


def test_a_run_whose_folder_has_moved_is_checked_where_it_is(damage, leave, tmp_path):
    moved = str(tmp_path / "moved")
    shutil.copytree(damage.out.root, moved)
    code, out, _ = leave("check", "--out", moved)
    assert code == 0, out


def test_group_rows_are_bounded_by_the_part_on_record(damage, leave, monkeypatch):
    from pipelines.scoring import verify_table

    monkeypatch.setattr(verify_table, "group_rows", lambda chunk_rows: chunk_rows)
    code, out, _ = leave("check", "--out", damage.out.root)
    assert code == 1
    assert "group 0: 18 rows, not 10" in out


@pytest.mark.parametrize(
    ("words", "sentence", "exit_code"),
    [
        (["--map-sample", "2"], "map_sample 2.0 must lie between 0 and 1", 2),
        (["2026-11-20-00", "--out", "o"], "holds no run 2026-11-20-00", 1),
        (["--out", "o"], "o holds no finished run", 1),
    ],
)
def test_what_cannot_be_checked_is_said_in_a_sentence(leave, words, sentence, exit_code):
    code, _, err = leave("check", *words)
    assert code == exit_code
    assert sentence in err
    assert err.count("\n") == 1


def test_every_path_of_the_model_is_known_to_the_layout(damage):
    assert files.exists(f"{damage.out.model(damage.card.model_id)}/{paths.MODEL_CARD}")


def real_parts(folder):
    """Three parts that exist; their scores are drawn."""
    folder.mkdir()
    parts = []
    for i in range(3):
        file = folder / f"bolt{i}.png"
        file.write_bytes(b"bolt%d" % i)
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        version = files.describe(str(file)).version
        parts.append(
            Part(file.name, "bolt", 1.0, folder=str(folder), version=version, content=content)
        )
    return parts


def test_versions_and_bytes_are_compared_with_the_archive(leave, tmp_path):
    folder, out = tmp_path / "parts", str(tmp_path / "out")
    run = finish(out, real_parts(folder), model_of(["bolt"]), NIGHT)
    code, said, _ = leave("check", "--out", out)
    assert code == 0
    assert said.splitlines()[0] == (
        "in the archive, images are now: 3 unchanged; 3 were read and hashed"
    )
    for words, line in {
        ("--content-sample", "0"): "in the archive, images are now: 3 unchanged; 0 were read and "
        "hashed",
        ("--versions", "false"): said.splitlines()[1],
    }.items():
        code, told, _ = leave("check", "--out", out, *words)
        assert (code, told.splitlines()[0]) == (0, line)
    # What changed or is gone since is counted, and breaks no rule of the run.
    (folder / "bolt0.png").write_bytes(b"replaced")
    (folder / "bolt1.png").unlink()
    code, said, _ = leave("check", "--out", out)
    assert (code, said.splitlines()) == (
        0,
        [
            "in the archive, images are now: 1 changed, 1 gone, 1 unchanged; the next night scores "
            "what has changed; 1 were read and hashed",
            f"run {run.run_id} is complete: 3 images with one valid row each; all 0 maps were "
            "read and are valid",
        ],
    )


def test_a_row_with_another_hash_than_its_file_is_found(leave, tmp_path):
    out, parts = str(tmp_path / "out"), real_parts(tmp_path / "parts")
    parts[1] = dataclasses.replace(parts[1], content="0" * 64)
    finish(out, parts, model_of(["bolt"]), NIGHT)
    code, said, _ = leave("check", "--out", out)
    assert code == 1
    assert "broken: files of the listed version hold the bytes that were scored\n" in said
    assert f"  found:  {parts[1].uri}: its bytes have another hash\n" in said
    assert "breaks 1 rule" in said
