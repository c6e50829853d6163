import errno
import os
import sys

import pytest

from jobs import score
from jobs.cli import entry
from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import run_records

JOBS = (
    "inventory",
    "plan",
    "fit",
    "ensemble",
    "score",
    "evaluate",
    "check",
    "compare",
    "promote",
    "nightly",
    "query",
    "expire",
    "demo",
)


def toml(tmp_path, text: str) -> str:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    return str(file)


def parsed(*words: str) -> score.Settings:
    return entry.parse(score.Settings, score.__doc__, words)[0]


def test_an_unknown_setting_is_named_and_the_known_ones_are_listed(leave):
    code, _, err = leave("score", "--frobnicate", "3")
    assert code == 2
    assert "--frobnicate" in err
    known = err.split("known settings:")[1].replace(",", " ").split()
    assert {"archive", "maps", "max_failed", "fetch.attempts", "resources.workers"} <= set(known)
    assert not [name for name in known if not name.replace(".", "_").isidentifier()]


@pytest.mark.parametrize(
    ("text", "name"),
    [('archve = "x"', "archve"), ("[fetch]\nretries = 3", "retries"), ("max-failed = 3", "failed")],
)
def test_an_unknown_setting_in_a_file_is_named_too(leave, tmp_path, text, name):
    code, _, err = leave("score", "--config", toml(tmp_path, text))
    assert code == 2
    assert name in err.split("known settings:")[0]
    assert "fetch.attempts" in err.split("known settings:")[1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('maps = "all"\narchive = "x\n', " is not valid TOML: Illegal character '\\n' (at line 2,"),
        ("maps = 'all'\n[fetch\n", " is not valid TOML: Expected ']' at the end of a table"),
        (b"\xff\xfe", " is not valid TOML: 'utf-8' codec can't decode"),
        ("\narchve = 'x'", ", line 2: unknown setting 'archve'; did you mean 'archive'?"),
        ("[fetch]\nbackoff=1.0\n\nretries = 3", ", line 4: unknown setting 'fetch.retries'"),
        ("fetch = 3", ", line 1: fetch must be a table of settings: [fetch]"),
        ("[fetch]\nattempts = 'x'", ", line 2: fetch.attempts must be an integer, not 'x'"),
        ("fetch.attempts = 'x'", ", line 1: fetch.attempts must be an integer, not 'x'"),
        ("archive = 3", ", line 1: archive must be a string or a list, not 3"),
        ("[archive]\nx = 3", ", line 1: archive must be a string or a list, not {'x': 3}"),
    ],
)
def test_an_error_in_a_file_names_the_file_the_line_and_the_rule(leave, tmp_path, text, sentence):
    file = tmp_path / "settings.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, _, err = leave("score", "--config", str(file))
    assert code == 2
    assert err.startswith(f"error: {file}{sentence}")
    assert ("known settings" in err) == ("unknown setting" in err)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fetch.attempts", "x"], "--fetch.attempts must be an integer, not 'x'"),
        (["--fetch.attempts"], "argument --fetch.attempts: expected one argument"),
        (["--fetch", "x"], "--fetch is a group of settings; set them one by one, such as --fetch."),
    ],
)
def test_a_wrong_value_on_the_command_line_is_an_error_of_one_line(leave, words, sentence):
    code, _, err = leave("score", *words)
    assert code == 2
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1


def test_the_command_line_is_named_where_it_overrides_a_file(leave, tmp_path):
    file = toml(tmp_path, "[fetch]\nattempts = 3")
    code, _, err = leave("score", "--config", file, "--fetch.attempts", "x")
    assert (code, err) == (2, "error: --fetch.attempts must be an integer, not 'x'\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-faild", "3"], "; did you mean --max-failed?"),
        (["--archve=x"], "; did you mean --archive?"),
        (["--atempts", "3"], "; did you mean --fetch.attempts?"),
        (["--fetch.attemps", "3"], "; did you mean --fetch.attempts?"),
        (["--frobnicate", "3"], ""),
    ],
)
def test_an_unknown_setting_gets_the_one_that_was_meant(leave, words, told):
    code, _, err = leave("score", *words)
    assert code == 2
    first = err.splitlines()[0]
    assert first.startswith("error: unknown setting")
    assert ("did you mean" in first) == bool(told)
    assert first.endswith(told)


def test_a_setting_cut_short_is_unknown(leave):
    code, _, err = leave("score", "--patt", "{name}")
    assert code == 2
    assert "--patt" in err.split("known settings:")[0]


@pytest.mark.parametrize(
    "words", [("--max-failed", "3%"), ("--max_failed", "3%"), ("--max-failed=3%",)]
)
def test_hyphens_and_underscores_are_the_same(words):
    assert parsed(*words).max_failed == "3%"
    assert parsed(*words, "--fetch.max-bytes", "7").fetch.max_bytes == 7


def test_values_keep_their_hyphens():
    assert parsed("--archive", "my-parts", "--pattern=a-b/{name}").pattern == "a-b/{name}"


def test_settings_come_from_a_file_and_the_command_line_overrides_them(tmp_path):
    file = toml(
        tmp_path,
        'archive = ["a", "b"]\nmaps = "top:5"\nmax_failed = "5%"\n'
        "[resources]\nbatch = 3\ncpus = 2.0",
    )
    found = parsed("--config", file, "--maps", "all", "--resources.batch", "7")
    assert found.locations() == ["a", "b"]
    assert (found.maps, found.max_failed) == ("all", "5%")
    assert (found.resources.batch, found.resources.cpus) == (7, 2.0)


def test_a_file_of_settings_that_is_not_there_is_said_so(leave):
    code, _, err = leave("score", "--config", "nowhere.toml")
    assert code == 2
    assert "nowhere.toml: there is no such file" in err


@pytest.mark.parametrize("job", JOBS)
def test_help_shows_commands(leave, job):
    code, out, _ = leave(job, "--help")
    assert code == 0
    assert out.count(f"\npython -m jobs.{job}") >= 2
    assert "--out" in out
    assert "default: " in out.partition("\nSettings of")[2]


BOTH = ["--inventory", "parts.parquet", "--archive", "parts"]
CONTRADICTIONS = {
    "inventory and archive to score": (
        "score", [*BOTH, "--model", "m"], "--inventory and --archive exclude each other"
    ),
    "inventory and archive to fit": (
        "fit", BOTH, "--inventory and --archive exclude each other"
    ),
    "neither of them": ("fit", [], "name the images: --archive"),
    "unknown layout": (
        "inventory", ["--archive", ".", "--layout", "mvtc"], "unknown layout 'mvtc'; known: mvtec"
    ),
    "layout and pattern": (
        "inventory", ["--archive", ".", "--layout", "mvtec", "--pattern", "{name}"],
        "--layout and --pattern exclude each other",
    ),
    "layout and pattern to fit": (
        "fit", ["--archive", ".", "--layout", "mvtec", "--pattern", "{name}"],
        "--layout and --pattern exclude each other",
    ),
    "misspelt field": (
        "inventory", ["--archive", ".", "--pattern", "{prodcut}"],
        "pattern '{prodcut}': did you mean {product}?",
    ),
    "no archive": ("inventory", [], "name the images: --archive"),
    "archive that is not there": (
        "inventory", ["--archive", "gone"], "no file, folder or prefix 'gone'"
    ),
    "no image": ("inventory", ["--archive", "."], "no image in .: it is empty"),
    "no model": ("score", ["--archive", "."], "name the model: --model"),
    "model that is not there": (
        "score", ["--archive", ".", "--model", "m"], "no complete model at m"
    ),
    "policy of maps": (
        "score", ["--archive", ".", "--model", "m", "--maps", "some"],
        "maps 'some' is none of: none, flagged, all, top:K",
    ),
    "top of no maps": ("score", ["--maps", "top:0"], "maps 'top:0' is none of"),
    "night": (
        "score", ["--archive", ".", "--model", "m", "--night", "yesterday"],
        "night 'yesterday' must be a date such as 2026-11-20",
    ),
    "limit of failures to score": (
        "score", ["--archive", ".", "--model", "m", "--max-failed", "few"],
        "max_failed 'few' is neither a count nor a share such as 5%",
    ),
    "limit of failures to fit": (
        "fit", ["--archive", ".", "--max-failed", "120%"],
        "max_failed '120%' must be a count, or a share from 0% to 100%",
    ),
    "share of failures to warn of": (
        "nightly", ["--archive", ".", "--model", "m", "--warn-failed", "120%"],
        "warn_failed '120%' must be a count, or a share from 0% to 100%",
    ),
    "endless failures": (
        "score", ["--archive", ".", "--model", "m", "--max-failed", "inf"],
        "max_failed 'inf' must be a count",
    ),
    "method": ("fit", ["--archive", ".", "--method", "patchcor"], "patchcor"),
    "registry without a tracker": (
        "score", ["--archive", ".", "--model", "models:/bolts@champion", "--out", "s3://bucket/out"],
        "no tracker: set MLFLOW_TRACKING_URI",
    ),
    "run that is not there": ("evaluate", ["--run", "2026-11-20-00"], "2026-11-20-00"),
}  # fmt: skip
#: Of these, what is wrong lies outside of the settings.
NO_SETTING = {
    "archive that is not there",
    "no image",
    "model that is not there",
    "registry without a tracker",
    "run that is not there",
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_cannot_be_is_told_in_one_sentence_before_anything_starts(leave, tmp_path, case):
    job, words, sentence = CONTRADICTIONS[case]
    code, out, err = leave(job, *words)
    assert code == (1 if case in NO_SETTING else 2)
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), ValueError("bug"), OSError("bug"), FileNotFoundError(2, "bug")]
)
def test_a_bug_shows_its_traceback(monkeypatch, error):
    def job(argv):
        raise error

    monkeypatch.setattr(sys, "argv", ["jobs.score"])
    with pytest.raises(type(error)):
        entry.start(job)


def exit_of(monkeypatch, capsys, job) -> str:
    """What a job prints that must leave with code 1."""
    monkeypatch.setattr(sys, "argv", ["jobs.score"])
    with pytest.raises(SystemExit) as exit_:
        entry.start(lambda argv: job())
    assert exit_.value.code == 1
    return capsys.readouterr().err


def test_a_missing_file_is_one_sentence(monkeypatch, capsys, tmp_path):
    file = str(tmp_path / "gone.json")
    for job in (files.read_json, files.open_read, files.describe):
        message = exit_of(monkeypatch, capsys, lambda job=job: job(file))
        assert message == f"error: {file}: No such file or directory\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_forbidden_folder_is_one_sentence(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "forbidden"
    folder.mkdir(mode=0o500)
    file = str(folder / "a.json")
    message = exit_of(monkeypatch, capsys, lambda: files.write_json(file, {}))
    assert message == f"error: {file}: Permission denied\n"


def test_a_full_disk_is_one_sentence(monkeypatch, capsys, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "open", full, raising=False)
    file = str(tmp_path / "a.json")
    message = exit_of(monkeypatch, capsys, lambda: files.write_json(file, {}))
    assert message == f"error: {file}: No space left on device\n"
    assert exit_of(monkeypatch, capsys, full) == "error: [Errno 28] No space left on device\n"


def test_a_job_that_is_interrupted_leaves_with_130(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        entry.start(interrupted)
    assert left.value.code == 130
    assert "again to continue" in capsys.readouterr().out


def test_there_is_no_latest_run_before_one_is_finished(tmp_path):
    out = Out(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        run_records.finished(out)
    files.write_json(out.run("a"), {"run_id": "a", "number": 1, "started": "2026-11-21"})
    with pytest.raises(FileNotFoundError, match="no finished run"):
        run_records.finished(out)


def test_the_latest_run_is_the_finished_one_that_started_last(tmp_path):
    out = Out(str(tmp_path))
    for run_id, number, totals in (
        ("z", 1, {"images": 1}),
        ("a", 2, {"images": 1}),
        ("b", 3, None),
    ):
        record = {"run_id": run_id, "number": number, "started": "2026-11-21"}
        files.write_bytes(out.table(run_id, run_id), b"table")
        files.write_json(out.run(run_id), record | ({"totals": totals} if totals else {}))
    assert run_records.finished(out)["run_id"] == "a"
    # What a writer that was killed leaves behind is no record.
    files.write_bytes(files.join(out.runs(), f".{'0a1b' * 8}.tmp"), b"{half")
    assert run_records.finished(out)["run_id"] == "a"


def test_what_is_left_of_an_expired_run_is_no_sample_to_judge_by():
    run_records.check_not_expired({"run_id": "a"})
    with pytest.raises(UserError, match=r"only the 3 rows remain"):
        run_records.check_not_expired({"run_id": "a", "expired": {"rows": 3, "at": "2026-11-21"}})


def test_an_unfinished_run_is_not_evaluated(leave, tmp_path):
    files.write_json(Out("out").run("a"), {"run_id": "a", "number": 1, "started": "2026-11-21"})
    code, _, err = leave("evaluate", "--run", "a")
    assert code == 1
    assert err == "error: run a is not finished; start its jobs.score command again\n"
