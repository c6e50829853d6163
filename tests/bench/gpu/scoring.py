"""The chain of PatchCore from decoded pixels to scores, against its network and a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ops.detectors.detector import FitCounts
from ops.detectors.model_card import ModelCard, ProductCard
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.detectors.score_images import ScoreImages
from ops.features.backbone import Backbone, BackboneSettings
from ops.images import packed_pixels
from ops.images.decode import DecodeSettings
from ops.images.resize import InputSettings, pack
from ops.results.anomaly_map import Scale
from ops.results.calibration import Calibration
from tests.bench.gpu.bundle import SIZE
from tests.bench.gpu.launches import launches
from tests.bench.gpu.network import plain_network
from tests.bench.gpu.part import Check, Figure


@dataclass
class Fitted:
    """A model in this process, as `ScoreImages` wants it."""

    card: ModelCard
    backbone: dict[str, Tensor]
    product: dict[str, Tensor]

    def of_backbone(self) -> dict[str, Tensor]:
        """The backbone's tensors."""
        return self.backbone

    def of_product(self, _: str) -> dict[str, Tensor]:
        """The detector's tensors."""
        return self.product


def rows_of(check: Check, count: int) -> pa.Table:
    """Rows with decoded pixels, as the reading stage sends them."""
    pixels = [check.bundle.pixels[i % len(check.bundle.pixels)] for i in range(count)]
    return pa.table(
        {
            "product": ["tile"] * count,
            "status": ["ok"] * count,
            "reason": pa.array([None] * count, pa.string()),
            "bit_depth": pa.array([8] * count, pa.int8()),
            "channels": pa.array([1 if p.ndim == 2 else 3 for p in pixels], pa.int8()),
            "pixels": packed_pixels.column([pack(p) for p in pixels]),
        }
    )


def fitted(check: Check, settings: BackboneSettings, bank: int) -> Fitted:
    """PatchCore with a bank of random patches of the images, embedded on the device."""
    backbone = Backbone(settings, device=check.device)
    options = PatchCoreSettings(embedding="concat")
    detector = PatchCore(options, backbone)
    images = check.bundle.images()[: check.size(48, 4)].to(check.device)
    patches = detector.embed(images).flatten(0, 2).cpu()
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
    card = ModelCard(
        method="patchcore",
        settings=asdict(options),
        backbone=settings,
        backbone_sha256="",
        input=InputSettings(SIZE),
        decode=DecodeSettings(),
        products={"tile": ProductCard("", "", FitCounts(1), {}, Calibration(()))},
        map_scale=Scale(0.0, 1.0),
        false_alarm_rate=0.01,
        fit={},
    )
    state = {name: tensor.cpu() for name, tensor in backbone.state().items()}
    product = {"bank": patches[order[:bank]].contiguous(), "radius": torch.tensor(0.0)}
    return Fitted(card, state, product)


class PlainLoop:
    """What one would write at first: network, averages, distances to all vectors, the smallest."""

    def __init__(self, check: Check, settings: BackboneSettings, bank: Tensor) -> None:
        layers = settings.layers.split(",")
        self.network = plain_network(settings.name, layers).to(check.device)
        self.bank = bank.to(check.device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and maps of images."""
        maps = [F.avg_pool2d(m, 3, 1, 1) for m in self.network(images).values()]
        size = maps[0].shape[-2:]
        stacked = torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], 1)
        scores, grids = [], []
        for image in stacked:  # the distances of a batch would take gigabytes
            distance, nearest = torch.cdist(image.flatten(1).T, self.bank).topk(1, largest=False)
            worst = distance.argmax()
            near = torch.cdist(self.bank[nearest[worst]], self.bank).topk(9, largest=False).indices
            away = torch.cdist(image.flatten(1).T[worst][None], self.bank[near[0]])[0]
            scores.append((1 - away.softmax(0)[0]) * distance.max())
            grids.append(distance.view(size))
        return torch.stack(scores).cpu(), torch.stack(grids).cpu()


def run(check: Check) -> Iterator[Figure]:
    """Two banks, several batches."""
    wide = BackboneSettings("wide_resnet50_2", "layer2,layer3", "random")
    narrow = BackboneSettings("squeezenet1_1", "features.7,features.10", check.bundle.weights)
    settings = check.size(wide, narrow)
    for size in check.size((20_000, 5_000), (500,)):
        model = fitted(check, settings, size)
        detect = ScoreImages(model, check.device)
        backbone = Backbone(settings, model.of_backbone(), check.device)
        detector = model.card.new_detector(model.of_product("tile"), backbone)
        plain = PlainLoop(check, settings, model.product["bank"])
        for batch in check.size((64, 16, 32, 128), (2,)):
            name = f"bank {size}, batch {batch}"
            if not check.left(12):
                yield Figure(name, note="no time left")
                continue
            yield from _of_batch(check, name, batch, detect, detector, plain)


def _of_batch(
    check: Check,
    name: str,
    batch: int,
    detect: ScoreImages,
    detector: PatchCore,
    plain: PlainLoop,
) -> Iterator[Figure]:
    rows = rows_of(check, batch)
    images = check.bundle.images()[torch.arange(batch) % len(check.bundle.pixels)]
    images = images.to(check.device)
    network = batch / check.seconds(lambda: _without_gradients(detector.backbone, images), 3)
    yield Figure(f"{name}: the backbone alone", network, "images/s")
    scored = batch / check.seconds(lambda: detector.score(images), 3)
    yield Figure(f"{name}: pixels on the device to scores", scored, "images/s")
    chain = batch / check.seconds(lambda: detect(rows), 3)
    yield Figure(f"{name}: decoded pixels to rows", chain, "images/s")
    yield Figure(f"{name}: rows, as a share of the backbone's rate", chain / network)
    slow = batch / check.seconds(lambda: plain(images), 3)
    yield Figure(f"{name}: a plain loop", slow, "images/s")
    yield Figure(f"{name}: rows against the plain loop", chain / slow, "x")
    started, waits = launches(check, lambda: detector.score(images))
    yield Figure(f"{name}: launches", started, "", f"{waits} waits for the device")


@torch.inference_mode()
def _without_gradients(backbone: Backbone, images: Tensor) -> object:
    return backbone(images)
