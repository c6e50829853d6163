"""`jobs.check`: a sound run passes, and damage is printed. Runs are drawn, without Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil

import pytest

from ops.detectors.model_folder import read_card
from ops.storage import files, paths
from tests.checked_runs import NIGHT, POLICIES, finished, to_damage
from tests.run_damages import DAMAGES, lose_score, rescale_map, truncate_map
from tests.runs import Part, finish, model_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run under each policy of maps; read-only."""
    return {policy: finished(tmp_path_factory.mktemp("out"), policy) for policy in POLICIES}


@pytest.fixture
def damage(runs, tmp_path):
    with to_damage(runs["flagged"], tmp_path / "kept") as damage:
        yield damage


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
