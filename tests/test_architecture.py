"""The tree is the architecture: what may import what, read from the syntax trees.

One test per rule; each collects every place that breaks its rule.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: A folder of code -> the project's folders it may import.
MAY_IMPORT = {
    "ops": {"ops"},
    "pipelines": {"pipelines", "ops"},
    "jobs": {"jobs", "pipelines", "ops"},
}
FOLDERS = {"ops", "pipelines", "jobs", "deploy", "tests"}
#: Rooms that may import what lies on a lower floor, and on their own as long as there is no circle.
FLOORS = [
    {
        "ops.storage",
        "ops.augment",
        "ops.distributed",
        "ops.errors",
        "ops.failure",
        "ops.plain_text",
        "ops.redact",
        "ops.progress",
    },
    {"ops.archives"},
    {"ops.images", "ops.features", "ops.search"},
    {"ops.flows", "ops.results"},
    {"ops.detectors"},
    {"pipelines.cluster", "pipelines.tables"},
    {"pipelines.scoring", "pipelines.reports"},
    {"pipelines.review", "pipelines.labelling"},
    {"pipelines.fitting"},
    {"pipelines.nights"},
    {"jobs.cli", "jobs.tracking"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
#: A folder -> libraries that it never imports.
NEVER = {
    "ops": {"ray", "mlflow", "argparse", "jsonargparse", "optparse", "time", "datetime"},
    "pipelines": {"mlflow", "argparse", "jsonargparse", "optparse"},
    "jobs": set(),
}
#: What reads results, and so starts without torch.
READERS = [
    "ops.storage.files",
    "ops.storage.parquet",
    "ops.storage.paths",
    "ops.storage.retry",
    "ops.storage.s3",
    "ops.storage.uris",
    "ops.results.score_table",
    "pipelines.tables.current_scores",
    "jobs.query",
]
NO_NOUNS = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CODE = sorted(file for folder in MAY_IMPORT for file in (ROOT / folder).rglob("*.py"))
#: Test files that are named after what they do, and not after a module.
ABOUT_NO_MODULE = {
    "tests/test_architecture.py",
    "tests/jobs/test_interrupt.py",
    "tests/jobs/test_kill.py",
    "tests/jobs/test_layouts.py",
    "tests/jobs/test_review_kill.py",
    "tests/jobs/test_s3.py",
    "tests/jobs/test_stall.py",
    "tests/jobs/test_store.py",
    "tests/jobs/test_submit.py",
    "tests/ops/detectors/test_contract.py",
    "tests/ops/detectors/test_device.py",
    "tests/ops/archives/test_identity.py",
    "tests/pipelines/cluster/test_silence.py",
    "tests/pipelines/fitting/test_trained.py",
    "tests/pipelines/tables/test_rewritten.py",
}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def folder_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(file)))


@functools.cache
def imports(file: Path) -> frozenset[str]:
    """Dotted names of all imported modules and of what is taken from them, also in functions."""

    def names() -> Iterator[str]:
        for node in nodes(file):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name_of(file)}: relative imports hide the module's name"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return frozenset(names())


def libraries(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Dotted names of all calls of plain names and attributes."""
    for node in nodes(file):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def room_of(module: str) -> str:
    """The package below a folder, or the module that stands alone there."""
    return ".".join(module.split(".")[:2])


def test_the_walk_finds_the_code():
    assert len(CODE) > 100


def test_imports_go_from_jobs_to_pipelines_to_ops():
    wrong = {
        name_of(file): bad
        for file in CODE
        if (bad := (libraries(file) & FOLDERS) - MAY_IMPORT[folder_of(file)])
    }
    assert wrong == {}


def test_each_folder_leaves_alone_what_is_not_its_business():
    wrong = {
        name_of(file): bad for file in CODE if (bad := libraries(file) & NEVER[folder_of(file)])
    }
    assert wrong == {}


def imports_between_rooms() -> dict[tuple[str, str], set[str]]:
    """Pairs of rooms of which the first imports the second, with the files that do."""
    pairs: dict[tuple[str, str], set[str]] = {}
    for file in CODE:
        here = room_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        for there in {room_of(name) for name in imports(file) if name.split(".")[0] in MAY_IMPORT}:
            if here != there and not here.endswith("__init__"):
                pairs.setdefault((here, there), set()).add(name_of(file))
    return pairs


def test_every_room_of_ops_and_pipelines_has_a_floor():
    rooms = {room_of(".".join(file.relative_to(ROOT).with_suffix("").parts)) for file in CODE}
    rooms = {room for room in rooms if room.split(".")[0] in {"ops", "pipelines"}}
    assert rooms - set(FLOOR) == {"ops.__init__", "pipelines.__init__"}


def test_no_room_imports_from_a_floor_above():
    wrong = {
        pair: files
        for pair, files in imports_between_rooms().items()
        if FLOOR.get(pair[0], len(FLOORS)) < FLOOR.get(pair[1], len(FLOORS))
    }
    assert wrong == {}


def test_there_is_no_circle_between_rooms():
    leads_to: dict[str, set[str]] = {}
    for here, there in imports_between_rooms():
        leads_to.setdefault(here, set()).add(there)
    while free := [here for here, there in leads_to.items() if not there & set(leads_to)]:
        for here in free:
            del leads_to[here]
    assert leads_to == {}


def imports_of(names: list[str], library: str) -> str:
    """The first of some modules whose import imports a library; empty if none does."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    if sys.argv[1] in sys.modules:\n"
        "        print(name)\n"
        "        break\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, library, *names],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.strip()


def test_readers_import_no_torch():
    assert imports_of(list(READERS), "torch") == ""


def test_a_process_that_builds_no_network_starts_without_torchvision():
    """Its import takes seconds, and a fit starts several such processes."""
    names = ["jobs.fit", "jobs.score", "pipelines.fitting.worker", "pipelines.scoring.stream"]
    assert imports_of(names, "torchvision") == ""


def test_actors_that_only_coordinate_start_without_torch():
    names = ["pipelines.fitting.coordinator", "pipelines.fitting.whole_shards"]
    assert imports_of(names, "torch") == ""


def test_ops_read_no_environment_and_set_none():
    forbidden = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
    wrong = {}
    for file in CODE:
        if folder_of(file) == "ops" and (imports(file) & (forbidden | {"os"})):
            attributes = {ast.unparse(n) for n in nodes(file) if isinstance(n, ast.Attribute)}
            if bad := (attributes | imports(file)) & forbidden:
                wrong[name_of(file)] = bad
    assert wrong == {}


def test_only_jobs_print():
    wrong = [
        f"{name_of(file)}:{call.lineno}"
        for file in CODE
        if folder_of(file) != "jobs"
        for name, call in calls(file)
        if name == "print"
    ]
    assert wrong == []


def test_nothing_is_ever_unpickled():
    wrong = [
        f"{name_of(file)} imports {bad}" for file in CODE if (bad := libraries(file) & PICKLES)
    ]
    for file in CODE:
        for name, call in calls(file):
            keywords = {one.arg: ast.unparse(one.value) for one in call.keywords}
            if (name == "torch.load" and keywords.get("weights_only") != "True") or (
                name in {"np.load", "numpy.load"} and "allow_pickle" in keywords
            ):
                wrong.append(f"{name_of(file)}:{call.lineno} {name}")
    assert wrong == []


def test_every_file_has_found_its_noun():
    files = (file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*"))
    names = {part.split(".")[0].lower() for file in files for part in file.parts}
    assert not NO_NOUNS & names


def test_every_module_has_a_docstring_and_late_annotations():
    assert [name_of(file) for file in CODE if not ast.get_docstring(tree_of(file))] == []
    tests = [file for file in (ROOT / "tests").rglob("*.py") if file.name != "__init__.py"]
    assert [file for file in tests if not tree_of(file).body] == []
    eager = [
        name_of(file)
        for file in CODE
        if len(tree_of(file).body) > 1 and "__future__.annotations" not in imports(file)
    ]
    assert eager == []


def test_every_folder_of_code_is_a_package_that_re_exports_nothing():
    folders = {file.parent for file in CODE}
    assert [name_of(f) for f in folders if not (f / "__init__.py").exists()] == []
    full = [f for f in CODE if f.name == "__init__.py" and len(tree_of(f).body) != 1]
    assert [name_of(file) for file in full] == []


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_tests_lie_where_the_code_lies_that_they_test(folder):
    homeless = []
    for file in (ROOT / "tests" / folder).rglob("test_*.py"):
        module = file.relative_to(ROOT / "tests").with_name(file.name.removeprefix("test_"))
        if not (ROOT / module).exists() and name_of(file) not in ABOUT_NO_MODULE:
            homeless.append(name_of(file))
    assert homeless == []


def test_the_list_of_tests_about_no_module_is_not_out_of_date():
    assert [name for name in sorted(ABOUT_NO_MODULE) if not (ROOT / name).exists()] == []
