"""Scoring with PatchCore, from the bytes of images to score rows and maps, against anomalib."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import torch
from torch import Tensor

from ops.archives.fetch import FetchSettings
from ops.detectors.detector import Checkpoint
from ops.detectors.image_batches import to_images
from ops.detectors.model_card import ModelCard, ProductCard
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.detectors.score_images import ScoreImages
from ops.distributed import Alone
from ops.features.backbone import Backbone
from ops.images.decode import DecodeSettings
from ops.images.inspection import InspectionMask
from ops.images.read_images import Read
from ops.images.resize import InputSettings
from ops.results.anomaly_map import LEVELS, Scale
from ops.results.calibration import Calibration
from ops.results.write_maps import DrawMaps
from ops.storage.paths import Out
from tests.bench import features
from tests.bench.measure import Row, Time, ratio, timed

INPUT = InputSettings(size=224)
IMAGES = 24
#: As of a fit on all images, and a small one.
BANKS = (5_500, 1_000)
LAYERS = {
    "squeezenet1_1": "features.7,features.10",
    "timm/tf_efficientnet_lite0": "blocks.2,blocks.4",
}
#: With the large bank, against anomalib.
TARGETS = {"squeezenet1_1": "5 x", "timm/tf_efficientnet_lite0": "8 x"}


@dataclass
class Fitted:
    """A fitted model, kept in this process."""

    card: ModelCard
    backbone: Backbone
    detector: PatchCore
    masks: dict[str, InspectionMask] = field(default_factory=dict)

    def of_backbone(self) -> dict[str, Tensor]:
        """The backbone's tensors."""
        return self.backbone.state()

    def of_product(self, _: str) -> dict[str, Tensor]:
        """The detector's tensors."""
        return self.detector.state()


def fitted(network: str, bank: int) -> Fitted:
    """PatchCore, fitted on a hundred images, with a network and a bank of the given size."""
    backbone = features.network(network, LAYERS[network])
    settings = PatchCoreSettings(coreset_ratio=1.0, max_bank_size=bank, embedding="concat")
    detector = PatchCore(settings, backbone)
    read = Read(INPUT, DecodeSettings(), FetchSettings())
    for number, path in enumerate(features.images()[:100]):
        image = to_images(read(features.rows_of([path])), INPUT, "cpu")
        detector.add_images(image, torch.tensor([number]))
    counts = detector.fit(Alone(), lambda *_: None, Checkpoint()).counts
    card = ModelCard(
        method="patchcore",
        settings=asdict(settings),
        backbone=backbone.settings,
        backbone_sha256="",
        input=INPUT,
        decode=DecodeSettings(),
        products={"tile": ProductCard("", "", counts, {}, Calibration(()))},
        map_scale=Scale(0.0, 4 * detector.map_ceiling() / (LEVELS - 1)),
        false_alarm_rate=0.01,
        fit={},
    )
    return Fitted(card, backbone, detector)


def anomalib_model(model: Fitted):
    """anomalib's PatchCore with the same network, layers and bank."""
    import torchvision
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    library, _, name = model.backbone.settings.name.rpartition("/")
    layers = model.backbone.settings.layers.split(",")
    weights = {k.removeprefix("_network."): v for k, v in model.backbone.state().items()}
    if library:  # anomalib makes networks of timm itself, without the stages that it does not use
        theirs = PatchcoreModel(layers, name, pre_trained=False)
        network = theirs.feature_extractor.feature_extractor
    else:
        network = torchvision.models.get_model(name, weights=None)
        theirs = PatchcoreModel(layers, network.eval(), pre_trained=False)
    network.load_state_dict(weights, strict=False)  # ours ends after the last layer that is used
    theirs.memory_bank = model.detector.bank.vectors
    return theirs.eval()


def check_features(model: Fitted, theirs, images: Tensor) -> None:
    """Check that both programs compute the same features of normalised and plain images."""
    mean, std = (torch.tensor(x)[:, None, None] for x in model.backbone.settings.normalisation)
    with torch.inference_mode():
        features_of_both = zip(
            model.backbone(images),
            theirs.feature_extractor((images - mean) / std).values(),
            strict=True,
        )
        for ours, other in features_of_both:
            torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-3)


def rows() -> Iterator[Row]:
    """Each network with a large bank and a small one."""
    for network in LAYERS:
        for bank in BANKS:
            yield from compared(network, bank)


def compared(network: str, bank: int) -> Iterator[Row]:
    """The time of an image, that of anomalib, and the parts."""
    from anomalib.data.utils.image import read_image
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    unseen = features.images()[100:]
    paths = unseen[:: len(unseen) // IMAGES][:IMAGES]
    table = features.rows_of(paths)
    model = fitted(network, bank)
    mean, std = model.backbone.settings.normalisation
    transform = Compose([Resize((224, 224), antialias=True), Normalize(mean, std)])
    with tempfile.TemporaryDirectory() as out:
        card = model.card
        read = Read(INPUT, DecodeSettings(), FetchSettings(), threads=1)
        detect = ScoreImages(model)
        draw = DrawMaps("bench", INPUT, card.map_scale, 4.0, {"tile": None}, Out(out), "all")

        def ours() -> None:
            for start in range(0, IMAGES, 8):
                scored = draw(detect(read(table.slice(start, 8))))
                assert set(scored["status"].to_pylist()) == {"ok"}

        ours()
        chain = per_image(timed(ours, 5))
        parts = steps(model, table, read, detect, draw)
    theirs = anomalib_model(model)

    @torch.inference_mode()
    def plain() -> None:
        for path in paths:
            theirs(transform(read_image(path, as_tensor=True))[None])

    images = to_images(read(table), INPUT, "cpu")
    check_features(model, theirs, images[:1])
    plain()
    slow = per_image(timed(plain, 3))
    alone = per_image(timed(lambda: model.backbone(images), 5))
    name = f"PatchCore, {network}, bytes to row and 16-bit PNG, bank {bank:,}, an image"
    yield Row(name, f"{1 / chain.cpu:.0f} images/s", chain)
    target = TARGETS[network] if bank == BANKS[0] else ""
    note = "which draws its map, and writes none"
    yield Row("  against anomalib", ratio(slow, chain), slow, target, note)
    share = f"{alone.cpu / chain.cpu:.2f}"
    yield Row("  share left to the backbone", share, alone, "" if target else "0.5")
    yield from parts


def steps(
    model: Fitted, table: pa.Table, read: Read, detect: ScoreImages, draw: DrawMaps
) -> list[Row]:
    """The parts of an image's time, beside the backbone's."""
    pixels = read(table)
    images, scored = to_images(pixels, INPUT, "cpu"), detect(pixels)
    embedded, whole = (
        per_image(timed(work, 5))
        for work in (lambda: model.detector.embed(images), lambda: model.detector.score(images))
    )
    search = Time(whole.cpu - embedded.cpu, whole.wall - embedded.wall)
    times = {
        "reading": per_image(timed(lambda: read(table), 5)),
        "network and patch vectors": embedded,
        "nearest neighbours and re-weighting": search,
        "map and PNG": per_image(timed(lambda: draw(scored), 5)),
    }
    return [
        Row(f"  of which {what}", f"{time.cpu * 1e3:.1f} ms", time) for what, time in times.items()
    ]


def per_image(time: Time) -> Time:
    """The time of one image, from that of all."""
    return time.times(1 / IMAGES)
