"""Exact nearest neighbours against faiss."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import torch

from ops.distributed import Alone
from ops.search.coreset import greedy
from ops.search.neighbours import Bank
from tests.bench import features
from tests.bench.measure import Row, ratio, timed

FITTED = 128  # images whose patches the banks are chosen from


def rows() -> Iterator[Row]:
    """Banks of 5,000 greedy picks and of 20,000 random patches, queried by eight new images."""
    faiss.omp_set_num_threads(1)
    chosen = features.images()
    patches = torch.cat(list(features.extracted(chosen[:FITTED])))
    unseen = chosen[FITTED:]
    queries = torch.cat(list(features.extracted(unseen[:: len(unseen) // 8][:8])))
    points = features.projected(FITTED * features.PATCHES)
    picks = greedy(points, torch.arange(len(points)), 5_000, Alone()).ids
    random = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:20_000]
    for dim in (640, 1024):
        for name, members in (("5,000 greedy", torch.tensor(picks)), ("20,000 random", random)):
            vectors = patches[members][:, :dim].contiguous()
            x = queries[:, :dim].contiguous()
            bank, index = Bank(vectors), faiss.IndexFlatL2(dim)
            index.add(vectors.numpy())
            each = x.view(8, features.PATCHES, dim).contiguous()
            ours = timed(lambda: [bank.nearest(one) for one in each], 5).times(1 / 8)  # noqa: B023
            theirs = timed(lambda: [index.search(one.numpy(), 1) for one in each], 3).times(1 / 8)  # noqa: B023
            distances = bank.nearest(x).value.numpy()
            exact = ((x.numpy() - vectors.numpy()[index.search(x.numpy(), 1)[1][:, 0]]) ** 2).sum(1)
            worse = int((distances > exact * (1 + 1e-5)).sum())
            yield Row(f"neighbours of an image's 784 patches, d = {dim}, bank of {name}", "", ours)
            note = f"{worse} of {len(x)} neighbours farther than its"
            yield Row("  against faiss IndexFlatL2", ratio(theirs, ours), theirs, "2.5 x", note)
            assert np.isfinite(distances).all()
