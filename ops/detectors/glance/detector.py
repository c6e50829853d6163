"""Glancing at the Patch (Wang et al., CVPR 2021): patches against what surrounds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.glance.global_net import GlobalNet, Head, Scene, Surroundings
from ops.detectors.glance.local_net import (
    Correlation,
    Distillation,
    Lesson,
    LocalNet,
    channels_taught,
    initialise,
    linear,
    taught,
)
from ops.detectors.glance.score_windows import Grid, inconsistencies, scores, spread
from ops.detectors.glance.training_patches import moments, patch_of, scene_of, snippets_of, stacked
from ops.detectors.trained import Stage, Trained, TrainingSettings, from_sixteen, to_sixteen
from ops.distributed import Alone, Group
from ops.errors import SettingError
from ops.features.backbone import Backbone

#: Of s_IAD on probes, what counts as 1.
_QUANTILE = 0.99
#: What a step keeps of a hidden window for its gradient, for each pixel of the picture: 1,350 were
#: measured with ResNet-18, 1,150 with SqueezeNet.
_BYTES = 1536
#: What scoring holds of a picture, in the same measure: its maps, and those of a few windows.
_MAPS = 4


@dataclass(frozen=True)
class GlanceSettings(TrainingSettings):
    """Settings of Glance.

    Its paper gives the losses and the score, but none of these numbers; where nothing else is
    said, no source decides them.
    """

    epochs: int = 200
    """How often Global-Net goes over all images."""
    local_epochs: int = 200
    """How often Local-Net has gone over them before."""
    batch: int = 64
    lr: float = 1e-4
    patch: int = 64
    """Side of a patch in pixels of the input; results depend on it."""
    stride: int = 16
    """Pixels between windows that are scored; divides `patch` and the input's size."""
    patches: int = 1
    """Patches of an image in each epoch."""
    width: int = 128
    """Channels of Local-Net's first layers."""
    dim: int = 128
    """Length of descriptors."""
    distillation: float = 1.0
    """lambda_k, the weight of Local-Net's distance to its teacher, the backbone."""
    compactness: float = 1.0
    """lambda_c, the weight of correlations among Local-Net's descriptors."""
    correlation: Correlation = "features"
    """features: between dimensions, squared; samples: between descriptors, squared; raw: between
    dimensions as they are, signs included."""
    distortion: float = 1.0
    """lambda_t, the weight of telling stained patches from clean ones."""
    inconsistency: float = 0.5
    """lambda_s, the weight of s_IAD in the score; that of s_DAD is the rest."""
    scale: Literal["quantile", "raw"] = "quantile"
    """quantile: s_IAD is divided by its 99th percentile on good images kept out of training."""
    validation_images: int = 8
    """Good images kept out of training, at most a tenth of them; below ten, some are both."""
    tolerance: float = 0.0
    """Windows are left out where those around them foretell what they would add to the map, as
    well as this; good images' values are mostly below 1. 0: every window is computed."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.patch % self.stride:
            raise SettingError(f"stride {self.stride} must divide patch {self.patch}")

    @property
    def grid(self) -> Grid:
        """The windows of a picture."""
        return Grid(self.patch, self.stride)


class Glance(Trained):
    """Local-Net describes a patch, Global-Net foretells the description from all around it.

    A patch is anomalous if the two disagree (s_IAD), or if a head that has learned to tell stained
    patches from clean ones says so (s_DAD). A pixel's value is the mean over all windows that hold
    it; the image score is the largest of the map. Global-Net begins as a copy of the backbone,
    which also teaches Local-Net; the paper's is a ResNet-18.
    """

    name = "glance"
    Settings = GlanceSettings
    settings: GlanceSettings

    def __init__(self, settings: GlanceSettings, backbone: Backbone) -> None:
        """Untrained."""
        super().__init__(settings, backbone)
        self._aside: set[int] = set()
        self._snippets: dict[int, Tensor] = {}

    @classmethod
    def estimate(cls, settings: GlanceSettings, load: FitSize) -> ResourceEstimate:
        """Weights, gradients, Adam's moments and a copy on its way, images, and a step's maps."""
        assert load.backbone
        windows = settings.grid.count(load.size) ** 2
        copied = sum(4 * t.numel() for t in load.backbone.state().values())
        others = nn.ModuleList(_parts(settings, load.backbone)).parameters()
        weights = copied + sum(4 * weight.numel() for weight in others)
        step = -(-settings.batch // load.workers) * settings.patches * _BYTES * load.size**2
        return ResourceEstimate(
            vectors=load.images * windows,
            kept=0,
            fit_bytes=6 * weights + load.images_per_worker * 2 * 3 * load.size**2 + step,
            score_bytes=2 * weights + _MAPS * _BYTES * load.size**2,
            model_bytes=weights,
            remedy="lower --glance.batch, --glance.patches or --input.size",
        )

    @classmethod
    def timing_probe(cls, settings: GlanceSettings, load: FitSize) -> TimingProbe:
        """A lesson and a scene of one image, forward and backward, as often as the longer stage."""
        assert load.backbone
        detector = cls(settings, load.backbone)
        detector.add_images(
            torch.rand(1, 3, load.size, load.size), torch.zeros(1, dtype=torch.int64)
        )

        def work() -> None:
            for stage in detector.stages():
                detector.network = stage.network
                detector.prepare(stage.network, Alone())
                losses = stage.network(detector.inputs(list(detector._samples.items()), 0))
                losses.mean().backward()

        epochs = max(settings.epochs, settings.local_epochs)
        return TimingProbe(work, epochs * load.images / load.workers)

    def new_network(self) -> Surroundings:
        """All that scores rest on."""
        local, reader, head = _parts(self.settings, self.backbone)
        for part in (local, reader, head):
            initialise(part, self.generator("weights", type(part).__name__))
        around = GlobalNet(self.backbone.copied(), reader)
        return Surroundings(local, around, head, self.settings.distortion)

    def stages(self) -> Iterator[Stage]:
        """First Local-Net, then, with it as it is by then, Global-Net and the head."""
        whole, s = self.new_network(), self.settings
        whole.local.requires_grad_(True)
        weights = (s.distillation, s.compactness)
        lessons = Distillation(
            whole.local, s.dim, whole.around.linear.in_features, weights, s.correlation
        )
        initialise(lessons.decoder, self.generator("weights", "decoder"))
        yield Stage("local", lessons, s.local_epochs)
        whole.local.requires_grad_(False)
        yield Stage("train", whole, s.epochs)

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """Adam, for which gradients that are nothing but rounding stay next to nothing."""
        adam = super().optimiser(network)
        adam.param_groups[0]["eps"] = 1e-6
        return adam

    def sample(self, image: Tensor, row: int) -> Tensor:  # noqa: ARG002 - as in the base
        """The image in 16 bits."""
        for side in image.shape[1:]:
            self.settings.grid.count(side)
        return to_sixteen(image)

    def training_rows(self, rows: Tensor) -> Tensor:
        """All but the probes."""
        order = rows[torch.randperm(len(rows), generator=self.generator("probes"))]
        count = min(self.settings.validation_images, len(rows) // 10)
        self._aside = set(order[: count or self.settings.validation_images].tolist())
        return order[count:].sort().values

    @torch.no_grad()
    def prepare(self, network: nn.Module, group: Group) -> None:
        """What features are standardised by; snippets for stains, the same on every worker."""
        size = self.settings.patch
        patches = [
            patch_of(from_sixteen(sample), size, self.generator("moments", row))[0]
            for row, sample in sorted(self._samples.items())
        ]
        if isinstance(network, Distillation):
            network.group = group
            network.standardise(
                *moments(taught(self.backbone, stacked(patches, 3, size)).cpu(), group)
            )
            return
        assert isinstance(network, Surroundings)
        described = [network.local(self._shown(patch[None])).cpu() for patch in patches]
        found = torch.cat([torch.empty(0, self.settings.dim), *described])
        network.local.standardise(*moments(found, group))
        self._snippets = snippets_of(self._samples, size, self.generator, group)

    def _shown(self, pictures: Tensor) -> Tensor:
        return self.backbone.normalised(pictures.to(self.backbone.device))

    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> Lesson | Scene:
        """This epoch's patches, as many of each image, for the stage that is trained."""
        size, count = self.settings.patch, self.settings.patches
        images = [(row, from_sixteen(sample)) for row, sample in samples]
        if isinstance(self.network, Distillation):
            drawn = [
                patch_of(image, size, generator)[0]
                for row, image in images
                for generator in [self.generator("lesson", epoch, row)]
                for _ in range(count)
            ]
            patches = stacked(drawn, 3, size)
            return Lesson(self._shown(patches), taught(self.backbone, patches))
        scenes = [
            scene_of(image, size, self._snippets_beside(row), generator)
            for row, image in images
            for generator in [self.generator("scene", epoch, row)]
            for _ in range(count)
        ]
        pictures, masks, clean, dirty = zip(*scenes, strict=True) if scenes else [()] * 4
        return Scene(
            self._shown(stacked(pictures, 3, 2 * size)),
            stacked(masks, 1, 2 * size).to(self.backbone.device),
            self._shown(stacked(clean, 3, size)),
            self._shown(stacked(dirty, 3, size)),
        )

    def _snippets_beside(self, row: int) -> list[Tensor]:
        others = [snippet for other, snippet in self._snippets.items() if other != row]
        return others or list(self._snippets.values())

    @torch.inference_mode()
    def finish(self, group: Group) -> None:
        """What s_IAD is divided by, and how large maps of good images get."""
        network, s = self.network, self.settings
        assert isinstance(network, Surroundings)
        mine = sorted(self._aside & set(self._samples))
        probes = [from_sixteen(self._samples[row]).to(self.backbone.device) for row in mine]
        if s.scale == "quantile":
            grid = Grid(s.patch, max(s.stride, s.patch // 4))  # overlap enough
            found = [inconsistencies(network, self._pixels(probe), grid) for probe in probes]
            everyone = torch.cat(group.all_gather(torch.cat([torch.empty(0), *found])))
            network.scale.copy_(everyone.quantile(_QUANTILE).clamp(min=1e-12))
        largest = [torch.zeros(()), *(self._map(probe).max().cpu() for probe in probes)]
        self._ceiling = group.all_reduce(torch.stack(largest).max()[None], "max")[0]
        self._snippets.clear()
        self._probes.clear()

    def _pixels(self, image: Tensor) -> Tensor:
        return self.backbone.normalised(image[None]).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def score_one(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The largest value of the map, and the map."""
        drawn = self._map(image)
        return drawn.max(), drawn

    def _map(self, image: Tensor) -> Tensor:
        s = self.settings
        assert isinstance(self.network, Surroundings)
        scored = scores(self.network, self._pixels(image), s.grid, s.inconsistency, s.tolerance)
        return spread(scored, s.grid)


def _parts(settings: GlanceSettings, backbone: Backbone) -> tuple[LocalNet, nn.Linear, Head]:
    """What does not come from the backbone, without weights yet."""
    patch, dim = settings.patch, settings.dim
    return (
        LocalNet(patch, settings.width, dim),
        linear(channels_taught(backbone, patch), dim),
        Head(dim),
    )
