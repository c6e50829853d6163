"""What tests share: one cluster and one S3 server for all of them, and small drawn archives."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Real images and weights to try things on; tests that need them skip without.
DATA = ROOT.parent / "shared" / "data"
#: Ray listens on every interface, unless it thinks that clusters are not for this system. It looks
#: once, when it is imported.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
os.environ.update(LOOPBACK_ONLY)
TINY = {
    "--backbone.name": "squeezenet1_1",
    "--backbone.layers": "features.3,features.6",
    "--backbone.weights": "random",
    "--input.size": "64",
    "--patchcore.embedding": "concat",
    "--patchcore.coreset_ratio": "0.1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start clusters or servers have 15 minutes each, wherever they are run."""
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(900))


def tiny_fit() -> list[str]:
    """Settings of jobs.fit for a detector that is fitted in a second."""
    return [word for pair in TINY.items() for word in pair]


@pytest.fixture(scope="session")
def cluster(s3_server):
    """One Ray cluster of four half-real CPUs for the whole session; its workers can reach S3.

    They inherit the environment in which the cluster was started.
    """
    import ray

    from pipelines.cluster.connection import silence_ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=400 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=f"/tmp/nl-{os.getpid()}",  # sockets need short paths
    )
    silence_ray()
    yield
    ray.shutdown()
    shutil.rmtree(f"/tmp/nl-{os.getpid()}", ignore_errors=True)


@pytest.fixture(scope="session")
def free_port():
    """A function that finds a port nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


SECRET = {"AWS_ACCESS_KEY_ID": "AKIDNIGHTLOUPETEST", "AWS_SECRET_ACCESS_KEY": "s3cr3t-Nightloupe"}


@pytest.fixture(scope="session")
def s3_server(free_port):
    """A server process that speaks S3 on loopback, with the usual AWS environment for it."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {**SECRET, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(address, timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail("the S3 server did not start")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            forget_s3()
            yield address
        forget_s3()
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def s3(s3_server):
    """The URI of an empty bucket."""
    return new_bucket()


def new_bucket() -> str:
    """Make a bucket on the server that the environment names; its URI."""
    from ops.storage.s3 import file_system

    bucket = f"bucket-{time.monotonic_ns()}"
    file_system().call_s3("create_bucket", Bucket=bucket)
    return f"s3://{bucket}"


def forget_s3() -> None:
    """Make the next access to S3 read the environment anew."""
    from s3fs import S3FileSystem

    from ops.storage import s3

    s3._file_system.cache_clear()
    S3FileSystem.clear_instance_cache()


def draw_archive(folder: Path, train: int = 9, test: int = 4, size: int = 64) -> Path:
    """Two drawn products in the layout of MVTec AD."""
    from PIL import Image

    from ops.images import synthetic_parts

    def save(pixels, *parts):
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for product in synthetic_parts.PRODUCTS:
        for i in range(train + test):
            split = "train" if i < train else "test"
            save(
                synthetic_parts.draw(product, i, size).picture,
                product,
                split,
                "good",
                f"{i:03d}.png",
            )
        for i in range(test):
            part = synthetic_parts.draw(product, 500 + i, size, "blob")
            save(part.picture, product, "test", "blob", f"{i:03d}.png")
            save(part.mask, product, "ground_truth", "blob", f"{i:03d}_mask.png")
    return folder


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """A small drawn archive; read-only."""
    return draw_archive(tmp_path_factory.mktemp("archive"))


@functools.cache
def tiny_model(product: str, seed: int = 0):
    """A model of one product, fitted on noise in this process, without a cluster; read-only."""
    import torch

    from ops.detectors.detector import Checkpoint
    from ops.detectors.model_card import ModelCard, ProductCard
    from ops.detectors.model_folder import Model
    from ops.detectors.patchcore import PatchCore, PatchCoreSettings
    from ops.distributed import Alone
    from ops.features.backbone import Backbone, BackboneSettings
    from ops.features.weights import fingerprint
    from ops.images.decode import DecodeSettings
    from ops.images.resize import InputSettings
    from ops.results.anomaly_map import Scale
    from ops.results.calibration import Calibration
    from ops.storage.paths import product_file

    backbone = Backbone(BackboneSettings("squeezenet1_1", "features.3", "random"))
    detector = PatchCore(PatchCoreSettings(coreset_ratio=0.05, embedding="concat"), backbone)
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    detector.add_images(noise, torch.arange(2))
    counts = detector.fit(Alone(), lambda *_: None, Checkpoint()).counts
    state, of_backbone = detector.state(), backbone.state()
    calibration = Calibration((1.0, 2.0))
    card = ModelCard(
        method="patchcore",
        settings=asdict(detector.settings),
        backbone=backbone.settings,
        backbone_sha256=fingerprint(of_backbone),
        input=InputSettings(size=64),
        decode=DecodeSettings(),
        products={
            product: ProductCard(product_file(product), fingerprint(state), counts, {}, calibration)
        },
        map_scale=Scale(0.0, 0.001),
        false_alarm_rate=0.1,
        fit={},
    )
    return Model(card, of_backbone, {product: state})
