"""The tree is the architecture: what may import what, read from the syntax trees."""

from __future__ import annotations

import ast
import functools
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
#: A folder -> libraries that it never imports, with the reason.
NEVER = {
    "ops": {"ray", "mlflow", "argparse", "jsonargparse", "optparse", "time", "datetime"},
    "pipelines": {"mlflow", "argparse", "jsonargparse", "optparse"},
    "jobs": set(),
}
NO_NOUNS = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
CODE = sorted(file for folder in MAY_IMPORT for file in (ROOT / folder).rglob("*.py"))


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def folder_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


@functools.cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    return list(ast.walk(tree))


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all imported modules, wherever the import stands."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Dotted names of all calls of plain names and attributes."""
    for node in nodes(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def every(file_kind: str) -> pytest.MarkDecorator:
    files = [file for file in CODE if file_kind in {"all", folder_of(file)}]
    names = [str(file.relative_to(ROOT)) for file in files]
    return pytest.mark.parametrize("file", files, ids=names)


def test_the_walk_finds_the_code():
    assert len(CODE) > 100


@every("all")
def test_imports_go_from_jobs_to_pipelines_to_ops(file):
    project = {name.split(".")[0] for name in imports(tree_of(file))} & FOLDERS
    assert project <= MAY_IMPORT[folder_of(file)]


@every("all")
def test_each_folder_leaves_alone_what_is_not_its_business(file):
    roots = {name.split(".")[0] for name in imports(tree_of(file))}
    assert not roots & NEVER[folder_of(file)]


@every("ops")
def test_ops_read_no_environment_and_set_none(file):
    tree = tree_of(file)
    attributes = {ast.unparse(n) for n in nodes(tree) if isinstance(n, ast.Attribute)}
    forbidden = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
    assert not attributes & forbidden
    assert not set(imports(tree)) & forbidden


@every("all")
def test_only_jobs_print(file):
    if folder_of(file) != "jobs":
        assert not [call for name, call in calls(tree_of(file)) if name == "print"]


@every("all")
def test_nothing_is_ever_unpickled(file):
    tree = tree_of(file)
    roots = {name.split(".")[0] for name in imports(tree)}
    assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for name, call in calls(tree):
        if name == "torch.load":
            safe = {k.arg: ast.unparse(k.value) for k in call.keywords}.get("weights_only")
            assert safe == "True", f"line {call.lineno}: torch.load needs weights_only=True"
        if name in {"np.load", "numpy.load"}:
            assert not [k for k in call.keywords if k.arg == "allow_pickle"]


def test_every_file_has_found_its_noun():
    files = (file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*"))
    names = {part.split(".")[0].lower() for file in files for part in file.parts}
    assert not NO_NOUNS & names


@every("all")
def test_every_module_says_what_it_is_and_has_its_annotations_late(file):
    tree = tree_of(file)
    assert ast.get_docstring(tree)
    if len(tree.body) > 1:
        assert "__future__.annotations" in set(imports(tree))
