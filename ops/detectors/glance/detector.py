"""Glancing at the Patch (Wang et al., CVPR 2021): compares a patch with its context."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.glance.global_net import GlanceNetwork, GlobalBatch, GlobalNet, Head
from ops.detectors.glance.local_net import (
    Distillation,
    LocalBatch,
    LocalNet,
    empty_linear,
    initialise,
    teacher_channels,
    teacher_features,
)
from ops.detectors.glance.score_windows import Grid, average_map, inconsistencies, window_scores
from ops.detectors.glance.settings import GlanceSettings
from ops.detectors.glance.training_patches import (
    gather_stain_sources,
    hidden_patch_example,
    mean_and_std,
    random_patch,
    stack_images,
)
from ops.detectors.trained import Stage, Trained
from ops.detectors.uint16_images import from_uint16, to_uint16
from ops.distributed import Alone, Group
from ops.errors import UserError
from ops.features.backbone import Backbone

#: Quantile of s_IAD on validation images that `scale` sets to 1.
_QUANTILE = 0.99
#: Memory of a training step for each pixel of a hidden-patch example, in bytes. Measured: 1,350
#: with ResNet-18, 1,150 with SqueezeNet.
_BYTES_PER_PIXEL = 1536
#: Memory of scoring an image, in the same unit: its feature maps, and those of a few windows.
_SCORE_FACTOR = 4


class Glance(Trained):
    """Local-Net describes a patch; Global-Net predicts the descriptor from the patch's context.

    A patch is anomalous if the two descriptors differ (s_IAD), or if a head trained on synthetic
    stains classifies it as distorted (s_DAD). A pixel of the map is the mean over all windows that
    cover it; the image score is the map's maximum. The backbone is the teacher of Local-Net and the
    initialisation of Global-Net; the paper's is a ResNet-18.
    """

    name = "glance"
    Settings = GlanceSettings
    score_is_peak = True
    settings: GlanceSettings

    def __init__(self, settings: GlanceSettings, backbone: Backbone) -> None:
        """A detector without networks, until `fit` or `load_state`."""
        super().__init__(settings, backbone)
        self._grids: tuple[Sequence[int], Sequence[int]] = ((0, 0), (0, 0))
        self._validation_rows: set[int] = set()
        self._stain_sources: dict[int, Tensor] = {}

    @classmethod
    def estimate(cls, settings: GlanceSettings, fit_size: FitSize) -> ResourceEstimate:
        """Weights, gradients, Adam's moments and a checkpoint; images; feature maps of a step."""
        assert fit_size.backbone
        grids = settings.grid.windows_and_cells(fit_size.sides)
        windows, cells = (math.prod(grid) for grid in grids)
        copied = sum(4 * t.numel() for t in fit_size.backbone.state().values())
        others = nn.ModuleList(_empty_modules(settings, fit_size.backbone)).parameters()
        weights = copied + sum(4 * weight.numel() for weight in others) + 8 * (windows + cells)
        examples = -(-settings.batch // fit_size.workers) * settings.patches
        step = examples * _BYTES_PER_PIXEL * fit_size.pixels
        return ResourceEstimate(
            vectors=fit_size.images * windows,
            kept=0,
            fit_bytes=6 * weights + fit_size.pixel_bytes + step,
            fit_host_bytes=fit_size.pixel_bytes,
            score_bytes=2 * weights + _SCORE_FACTOR * _BYTES_PER_PIXEL * fit_size.pixels,
            model_bytes=weights,
            remedy="lower --glance.batch, --glance.patches or --input.size",
        )

    @classmethod
    def timing_probe(cls, settings: GlanceSettings, fit_size: FitSize) -> TimingProbe:
        """A step of both stages on one image, repeated for all epochs of the longer stage."""
        assert fit_size.backbone
        detector = cls(settings, fit_size.backbone)
        detector.add_images(
            torch.rand(1, 3, *fit_size.sides[::-1]), torch.zeros(1, dtype=torch.int64)
        )

        def work() -> None:
            for stage in detector.stages():
                detector.network = stage.network
                detector.prepare(stage.network, Alone())
                losses = stage.network(detector.inputs(list(detector._samples.items()), 0))
                losses.mean().backward()

        epochs = max(settings.epochs, settings.local_epochs)
        return TimingProbe(work, epochs * fit_size.images / fit_size.workers)

    def new_network(self) -> GlanceNetwork:
        """All networks that scores depend on, with initial weights."""
        s = self.settings
        if any(self._size):  # that of this fit's images; else that of the loaded state
            self._grids = s.grid.windows_and_cells(self._size)
        local, linear, head = _empty_modules(self.settings, self.backbone)
        for module in (local, linear, head):
            # The names of these classes are part of the key: they determine the weights.
            initialise(module, self.generator("weights", type(module).__name__))
        global_net = GlobalNet(self.backbone.trainable_copy(), linear)
        return GlanceNetwork(local, global_net, head, self._grids, s.distortion)

    def stages(self) -> Iterator[Stage]:
        """First Local-Net; then, with Local-Net frozen, Global-Net and the distortion head."""
        network, s = self.new_network(), self.settings
        network.local.requires_grad_(True)
        weights = (s.distillation, s.compactness)
        channels = network.around.linear.in_features
        distillation = Distillation(network.local, s.dim, channels, weights)
        initialise(distillation.decoder, self.generator("weights", "decoder"))
        yield Stage("local", distillation, s.local_epochs)
        network.local.requires_grad_(False)
        yield Stage("train", network, s.epochs)

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """Adam with a larger epsilon, so that gradients of rounding size cause no full updates."""
        adam = super().optimiser(network)
        adam.param_groups[0]["eps"] = 1e-6
        return adam

    def sample(self, image: Tensor, row: int) -> Tensor:  # noqa: ARG002 - as in the base
        """The image in 16 bits. Raises SettingError if windows do not cover it."""
        for side in image.shape[1:]:
            self.settings.grid.count(side)
        return to_uint16(image)

    def training_rows(self, rows: Tensor) -> Tensor:
        """All rows but those of validation images."""
        order = rows[torch.randperm(len(rows), generator=self.generator("probes"))]
        count = min(self.settings.validation_images, len(rows) // 10)
        self._validation_rows = set(order[: count or self.settings.validation_images].tolist())
        return order[count:].sort().values

    @torch.no_grad()
    def prepare(self, network: nn.Module, group: Group) -> None:
        """Standardise the teacher's features or Local-Net's descriptors; gather stain sources."""
        size = self.settings.patch
        patches = [
            random_patch(from_uint16(sample), size, self.generator("moments", row))[0]
            for row, sample in sorted(self._samples.items())
        ]
        if isinstance(network, Distillation):
            network.group = group
            features = teacher_features(self.backbone, stack_images(patches, 3, size)).cpu()
            network.standardise(*mean_and_std(features, group))
            return
        assert isinstance(network, GlanceNetwork)
        descriptors = [network.local(self._normalise(patch[None])).cpu() for patch in patches]
        everyone = torch.cat([torch.empty(0, self.settings.dim), *descriptors])
        network.local.standardise(*mean_and_std(everyone, group))
        self._stain_sources = gather_stain_sources(self._samples, size, self.generator, group)

    def _normalise(self, images: Tensor) -> Tensor:
        return self.backbone.normalised(images.to(self.backbone.device))

    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> LocalBatch | GlobalBatch:
        """The epoch's patches of some images, for the stage that is being trained."""
        images = [(row, from_uint16(sample)) for row, sample in samples]
        if isinstance(self.network, Distillation):
            return self._local_batch(images, epoch)
        return self._global_batch(images, epoch)

    def _local_batch(self, images: list[tuple[int, Tensor]], epoch: int) -> LocalBatch:
        size = self.settings.patch
        patches = stack_images(
            (
                random_patch(image, size, generator)[0]
                for row, image in images
                for generator in [self.generator("lesson", epoch, row)]
                for _ in range(self.settings.patches)
            ),
            3,
            size,
        )
        return LocalBatch(self._normalise(patches), teacher_features(self.backbone, patches))

    def _global_batch(self, images: list[tuple[int, Tensor]], epoch: int) -> GlobalBatch:
        size = self.settings.patch
        examples = [
            hidden_patch_example(image, size, self._stain_sources_for(row), generator)
            for row, image in images
            for generator in [self.generator("scene", epoch, row)]
            for _ in range(self.settings.patches)
        ]
        whole, masks, clean, stained = zip(*examples, strict=True) if examples else [()] * 4
        return GlobalBatch(
            self._normalise(stack_images(whole, 3, 2 * size)),
            stack_images(masks, 1, 2 * size).to(self.backbone.device),
            self._normalise(stack_images(clean, 3, size)),
            self._normalise(stack_images(stained, 3, size)),
        )

    def _stain_sources_for(self, row: int) -> list[Tensor]:
        """The patches of other images; those of all if there is no other image."""
        others = [patch for other, patch in self._stain_sources.items() if other != row]
        return others or list(self._stain_sources.values())

    @torch.inference_mode()
    def finish(self, group: Group) -> None:
        """Set what scores are compared with, and the map ceiling, from validation images."""
        network, s = self.network, self.settings
        assert isinstance(network, GlanceNetwork)
        mine = sorted(self._validation_rows & set(self._samples))
        images = [from_uint16(self._samples[row]).to(self.backbone.device) for row in mine]
        if s.scale == "quantile":
            grid = Grid(s.patch, max(s.stride, s.patch // 4))  # windows overlap enough
            values = [inconsistencies(network, self._pixels(image), grid) for image in images]
            everyone = torch.cat(group.all_gather(torch.cat([torch.empty(0), *values])))
            network.scale.copy_(everyone.quantile(_QUANTILE).clamp(min=1e-12))
        if s.places == "compared":
            network.usual_windows.learn([self._scores(image) for image in images], group)
            network.usual_cells.learn([self._map(image) for image in images], group)
        largest = [torch.zeros(()), *(self._map(image).max().cpu() for image in images)]
        self._ceiling = group.all_reduce(torch.stack(largest).max()[None], "max")[0]
        self._stain_sources.clear()
        self._ceiling_images.clear()

    def _pixels(self, image: Tensor) -> Tensor:
        """An image (3, H, W) in [0, 1] -> normalised (1, 3, H, W)."""
        return self.backbone.normalised(image[None]).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def score_block(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The map's maximum, and the map of cells of `stride` pixels, of one image."""
        anomaly_map = self._map(images[0])
        return anomaly_map.max()[None], anomaly_map[None]

    def _scores(self, image: Tensor) -> Tensor:
        """Scores (h, w) of all windows of an image (3, H, W)."""
        s = self.settings
        assert isinstance(self.network, GlanceNetwork)
        return window_scores(
            self.network, self._pixels(image), s.grid, s.inconsistency, s.tolerance
        )

    def _map(self, image: Tensor) -> Tensor:
        """The map of an image (3, H, W)."""
        assert isinstance(self.network, GlanceNetwork)
        means = average_map(self._scores(image), self.settings.grid)
        return torch.as_tensor(self.network.usual_cells(means))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore networks, what scores are compared with, and the map ceiling.

        Raises UserError if the state holds no usual scores.
        """
        usual = ("usual_windows.mean", "usual_cells.mean")
        if any(name not in state for name in usual):
            raise UserError(
                "this glance model does not hold what good images get at each place; fit it again"
            )
        self._size, self._grids = (0, 0), (state[usual[0]].shape, state[usual[1]].shape)
        super().load_state(state)


def _empty_modules(
    settings: GlanceSettings, backbone: Backbone
) -> tuple[LocalNet, nn.Linear, Head]:
    """Local-Net, the last layer of Global-Net and the distortion head, without weights."""
    patch, dim = settings.patch, settings.dim
    return (
        LocalNet(patch, settings.width, dim),
        empty_linear(teacher_channels(backbone, patch), dim),
        Head(dim),
    )
