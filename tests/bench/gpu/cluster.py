"""The check as a task of a Ray cluster, on whichever node has a free GPU."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from tests.bench.gpu import runner


def run_on_cluster(address: str, bundle: Path, out: Path, budget: float, parts: list[str]) -> None:
    """Send this tree and the bundle to a worker with one GPU; write the results to `out`."""
    import ray

    tree = Path(__file__).parents[3]
    ray.init(address, runtime_env={"working_dir": str(tree), "excludes": [".git", ".venv*", "out"]})
    task = ray.remote(num_gpus=1, max_retries=0)(on_worker)
    results = ray.get(task.remote(packed(bundle), budget, parts))
    out.mkdir(parents=True, exist_ok=True)
    for name, data in results.items():
        (out / name).write_bytes(data)
    ray.shutdown()


def packed(folder: Path) -> bytes:
    """The bytes of a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(folder, arcname=".")
    return file.getvalue()


def on_worker(bundle: bytes, budget: float, parts: list[str]) -> dict[str, bytes]:
    """Run the parts in the working directory of the task; the results by file name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
            tar.extractall(folder / "bundle", filter="data")
        runner.run_all(folder / "bundle", folder / "out", "cuda", budget, parts)
        files = (folder / "out").iterdir()
        return {file.name: file.read_bytes() for file in files if file.is_file()}
