"""Exact nearest neighbours against faiss."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from ops.distributed import Alone
from ops.search.coreset import greedy
from ops.search.neighbours import Bank
from tests.bench import features
from tests.bench.measure import Row, ratio, timed
from tests.conftest import draw_archive

FITTED = 128  # images whose patches the banks are chosen from
QUERIED = 8


def rows() -> Iterator[Row]:
    """Banks of 5,000 greedy picks and of 20,000 random patches, queried by eight new images.

    Then by eight drawn products, which are unlike the magnetic tiles that the banks are made of.
    """
    faiss.omp_set_num_threads(1)
    chosen = features.images()
    patches = torch.cat(list(features.extracted(chosen[:FITTED])))
    unseen = chosen[FITTED:]
    with tempfile.TemporaryDirectory() as folder:
        archive = draw_archive(Path(folder), train=QUERIED, test=1, size=256)
        drawn = sorted(archive.glob("*/train/good/*.png"))[:QUERIED]
        unlike = torch.stack(list(features.extracted(drawn)))
    alike = torch.stack(list(features.extracted(unseen[:: len(unseen) // QUERIED][:QUERIED])))
    points = features.projected(FITTED * features.PATCHES)
    picks = greedy(points, torch.arange(len(points)), 5_000, Alone()).ids
    random = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:20_000]
    for dim in (640, 1024):
        for name, members in (("5,000 greedy", torch.tensor(picks)), ("20,000 random", random)):
            vectors = patches[members][:, :dim].contiguous()
            for kind, images in (("an image", alike), ("an unlike image", unlike)):
                what = f"neighbours of {kind}'s 784 patches, d = {dim}, bank of {name}"
                yield from _against_faiss(what, vectors, images[:, :, :dim].contiguous())


def _against_faiss(what: str, vectors: Tensor, images: Tensor) -> Iterator[Row]:
    """Both searches of images (B, n, d), one at a time."""
    bank, index = Bank(vectors), faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors.numpy())
    share = 1 / len(images)
    ours = timed(lambda: [bank.nearest(one) for one in images], 5).times(share)
    theirs = timed(lambda: [index.search(one.numpy(), 1) for one in images], 3).times(share)
    x = images.flatten(0, 1)
    distances = bank.nearest(x).value.numpy()
    found = vectors.numpy()[index.search(x.numpy(), 1)[1][:, 0]]
    exact = ((x.numpy() - found) ** 2).sum(1)
    worse = int((distances > exact * (1 + 1e-5)).sum())
    assert np.isfinite(distances).all()
    yield Row(what, "", ours)
    note = f"{worse} of {len(x)} neighbours farther than its"
    yield Row("  against faiss IndexFlatL2", ratio(theirs, ours), theirs, "3 x", note)
