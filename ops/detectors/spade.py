"""SPADE (Cohen and Hoshen, 2020): good images like this one, and positions that none of them has.

Two stages, both exact. A global descriptor finds the K most similar good images. Then every
position of the image's feature pyramid is compared with all positions of these K images.
The second stage takes most of the time. With Wide-ResNet-50-2 at 224 pixels and K = 50, the three
levels need (50 * 56^2) * 56^2 * 256 = 126, 16 and 2 billion multiply-adds: about 4 s an image at
34 billion a second, measured on one core of a Xeon at 2.5 GHz. The time is proportional to K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.detectors.detector import (
    Checkpoint,
    Detector,
    FitCounts,
    Fitted,
    MapSettings,
    Scores,
    nearest_shown,
)
from ops.detectors.fit_cost import FitSize, ResourceEstimate
from ops.distributed import Group
from ops.errors import SettingError, UserError
from ops.features.backbone import Backbone
from ops.progress import ProgressCallback
from ops.search.distance import squared
from ops.search.gallery import SCRATCH, Positions, finest_grid

_ROUND = 8  # images of each worker that are exchanged at a time when the gallery is merged
_PROBES = 4  # images of the gallery that the map ceiling is computed from


@dataclass(frozen=True)
class SpadeSettings(MapSettings):
    """Settings of SPADE."""

    retrieved: int = 50
    """Number K of most similar good images that an image is compared with."""
    nearest: int = 1
    """Number kappa of nearest positions that the distance of a position is averaged over."""
    pyramid: Literal["levels", "concat"] = "levels"
    """levels: one map for each layer, averaged; concat: one map of the layers' concatenated
    features, as in the paper."""
    float16: bool = False
    """Store feature pyramids in float16, which halves the memory; distances are then to rounded
    features."""

    def __post_init__(self) -> None:
        """Raise SettingError for values out of range."""
        for name in ("retrieved", "nearest"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} {getattr(self, name)} must be at least 1")
        if self.pyramid not in {"levels", "concat"}:
            raise SettingError(f"pyramid {self.pyramid!r} must be levels or concat")


class Spade(Detector):
    """A gallery of good images: a descriptor and a feature pyramid of each.

    The descriptor is the mean of the last layer; the pyramid holds the layers before it. With one
    layer only, that layer gives both. Images whose features are not finite are left out.
    Image scores are mean squared distances, as in the paper; maps are Euclidean distances.
    """

    name = "spade"
    Settings = SpadeSettings
    settings: SpadeSettings

    def __init__(self, settings: SpadeSettings, backbone: Backbone) -> None:
        """A detector that is not fitted, with an empty gallery."""
        super().__init__(settings, backbone)
        self.descriptors = torch.empty(0, 0)
        self.levels: list[Tensor] = []
        self._added: dict[int, list[Tensor]] = {}  # by row: the descriptor, then the levels
        self._images = self._dropped = 0
        self._dtype = torch.float16 if settings.float16 else torch.float32

    @classmethod
    def estimate(cls, settings: SpadeSettings, fit_size: FitSize) -> ResourceEstimate:
        """A worker's share of the gallery, then the whole gallery on every worker."""
        pyramid = fit_size.layers[:-1] or fit_size.layers
        width = 2 if settings.float16 else 4
        vectors = sum(height * columns for _, height, columns in pyramid)
        each = 4 * fit_size.layers[-1][0] + sum(width * c * h * w for c, h, w in pyramid)
        gallery = fit_size.images * each
        rounds = (fit_size.workers + 2) * min(_ROUND, fit_size.images) * each
        block = 4 * sum(c for c, _, _ in pyramid) * 2**12
        return ResourceEstimate(
            vectors=fit_size.images * vectors,
            kept=fit_size.images * vectors,
            # Twice, as one worker copies the gallery to return it.
            fit_bytes=fit_size.images_per_worker * each + rounds + 2 * gallery,
            fit_host_bytes=fit_size.images_per_worker * each + rounds + gallery,
            score_bytes=2 * gallery + SCRATCH + block,
            model_bytes=gallery,
            remedy="halve it with --spade.float16 true, or choose fewer images (--select.shots), "
            "coarser --backbone.layers or a lower --input.size",
        )

    @classmethod
    def timing_probe(cls, settings: SpadeSettings, fit_size: FitSize) -> None:  # noqa: ARG003 - as in the base
        """None: `fit` only merges what `add_images` computed."""
        return

    @torch.inference_mode()
    def describe(self, images: Tensor) -> list[list[Tensor]]:
        """The descriptor (D,), then the levels (h, w, C), of each image."""
        maps = self.backbone(images)
        # The order of summation in a mean depends on the memory layout: keep it the same for all.
        channels_last = [layer.permute(0, 2, 3, 1).contiguous() for layer in maps]
        levels = channels_last[:-1] or channels_last
        return [
            [channels_last[-1][i].flatten(0, 1).mean(dim=0), *(level[i] for level in levels)]
            for i in range(len(images))
        ]

    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Keep every image's descriptor and pyramid."""
        self._add(self.describe(images), rows)

    def add_inside(self, images: Tensor, rows: Tensor, inside: Tensor) -> None:
        """As `add_images`; positions that do not count take the features of the nearest that do.

        So the gallery has no position that a defect could resemble without being good.
        """
        described = []
        for i, (descriptor, *levels) in enumerate(self.describe(images)):
            own = inside[i : i + 1]
            near = [
                level.flatten(0, 1)[nearest_shown(own, level.shape[:2])[0].to(level.device)]
                for level in levels
            ]
            described.append(
                [descriptor, *(n.view_as(v) for n, v in zip(near, levels, strict=True))]
            )
        self._add(described, rows)

    def _add(self, described: list[list[Tensor]], rows: Tensor) -> None:
        for (descriptor, *levels), row in zip(described, rows.tolist(), strict=True):
            # Copies; a view would keep its whole batch in memory.
            image = [descriptor.cpu()]
            image += [level.to("cpu", self._dtype, copy=True) for level in levels]
            finite = _finite(image)
            self._images += 1
            self._dropped += not finite
            if finite:
                self._added[row] = image

    def grow(self, state: Mapping[str, Tensor], counts: FitCounts) -> None:
        """Add the images of the earlier gallery, with negative rows, so that new images follow."""
        gallery = _tensors(state)
        count = len(gallery[0])
        for i in range(count):
            self._added[i - count] = [tensor[i].cpu() for tensor in gallery]
        self._images += counts.images
        self._dropped += counts.dropped_images or 0

    def fit(self, group: Group, progress: ProgressCallback, checkpoint: Checkpoint) -> Fitted:  # noqa: ARG002 - too short
        """Merge the gallery in the order of rows, a few images of each worker at a time."""
        images, dropped = group.all_reduce(torch.tensor([self._images, self._dropped])).tolist()
        rows = torch.tensor(sorted(self._added), dtype=torch.int64)
        order = torch.cat(group.all_gather(rows)).sort().values
        if not len(order):
            raise UserError("there is no good image with finite features to fit on")
        shapes = self._shapes(group)
        dtypes = [torch.float32] + [self._dtype] * (len(shapes) - 1)
        merged = [
            torch.empty(len(order), *shape, dtype=dtype)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        most = int(group.all_reduce(torch.tensor(len(rows)), "max"))
        for start in range(0, most, _ROUND):
            mine = rows[start : start + _ROUND]
            own = [self._added.pop(row) for row in mine.tolist()]
            places = [torch.searchsorted(order, theirs) for theirs in group.all_gather(mine)]
            for i, gallery in enumerate(merged):
                part = torch.empty(len(own), *gallery.shape[1:], dtype=gallery.dtype)
                for j, image in enumerate(own):
                    part[j] = image[i]
                for place, theirs in zip(places, group.all_gather(part), strict=True):
                    gallery[place] = theirs
            progress("gallery", min(start + _ROUND, most), most)
        device = self.backbone.device
        self.descriptors, *self.levels = (tensor.to(device) for tensor in merged)
        return Fitted(FitCounts(images, dropped_images=dropped), {"gallery": len(order)})

    def _shapes(self, group: Group) -> list[tuple[int, ...]]:
        """Shapes of descriptors and levels, also on workers without an image. Collective."""
        layers = len(self.backbone.layers)
        shapes = torch.zeros(1 + max(1, layers - 1), 3, dtype=torch.int64)
        for image in self._added.values():
            for shape, tensor in zip(shapes, image, strict=True):
                shape[-tensor.dim() :] = torch.tensor(tensor.shape)
            break
        agreed = group.all_reduce(shapes, "max").tolist()
        return [tuple(n for n in shape if n) for shape in agreed]

    @torch.inference_mode()
    def score(self, images: Tensor) -> Scores:
        """Image scores: mean squared distances of descriptors to the K nearest good images.

        Maps: mean distances to the kappa nearest positions in these images. Scores of images whose
        features are not finite are NaN.
        """
        if not len(self.descriptors):
            raise ValueError("this detector is not fitted")
        scores = [self._score_image(image) for image in self.describe(images)]
        return Scores(*(torch.stack(part) for part in zip(*scores, strict=True)))

    def _score_image(
        self, image: list[Tensor], without: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score () and map (h, w) of a described image; `without` leaves a gallery image out."""
        descriptor, *levels = image
        grid = finest_grid([level.shape[:2] for level in levels])
        if not _finite(image):
            return descriptor.new_tensor(torch.nan), descriptor.new_full(grid, torch.nan)
        distance = squared(self.descriptors, descriptor)
        if without is not None:
            distance[without] = torch.inf
        count = min(self.settings.retrieved, len(distance) - (without is not None))
        ranked = distance.sort(stable=True)
        maps = []
        for own, gallery in self._positions(levels):
            x = own.of(0)
            nearest = gallery.nearest(x, ranked.indices[:count], self.settings.nearest).sqrt()
            exists = torch.isfinite(nearest)  # a small gallery may have too few positions
            mean = nearest.where(exists, 0).sum(dim=1) / exists.sum(dim=1)
            maps.append(mean.view(1, 1, *own.grid))
        fine = [F.interpolate(m, size=grid, mode="bilinear", align_corners=False) for m in maps]
        return ranked.values[:count].mean(), torch.cat(fine).mean(dim=0)[0]

    def _positions(self, levels: list[Tensor]) -> list[tuple[Positions, Positions]]:
        """Positions of the image and of the gallery: of each level, or of all levels together."""
        pairs = [
            (level[None].float(), gallery)
            for level, gallery in zip(levels, self.levels, strict=True)
        ]
        groups = [pairs] if self.settings.pyramid == "concat" else [[pair] for pair in pairs]
        return [(Positions([a for a, _ in g]), Positions([b for _, b in g])) for g in groups]

    @torch.inference_mode()
    def map_ceiling(self) -> float:
        """The largest map value of a few gallery images, each compared with the other images."""
        count = len(self.descriptors)
        if count < 2:
            return max(float(level.float().norm(dim=-1).max()) for level in self.levels)
        probes = range(0, count, -(-count // _PROBES))
        state = _tensors(self.state())
        maps = (self._score_image([t[i] for t in state], without=i)[1] for i in probes)
        return max(float(values.max()) for values in maps)

    def state(self) -> dict[str, Tensor]:
        """Descriptors (N, D) and levels (N, h, w, C), in the order of the fit's list."""
        levels = {f"level{i}": level for i, level in enumerate(self.levels)}
        return {"descriptors": self.descriptors} | levels

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the gallery."""
        device = self.backbone.device
        self.descriptors, *self.levels = (tensor.to(device) for tensor in _tensors(state))


def _tensors(state: Mapping[str, Tensor]) -> list[Tensor]:
    """Descriptors, then levels, in this order."""
    return [state["descriptors"], *(state[f"level{i}"] for i in range(len(state) - 1))]


def _finite(image: list[Tensor]) -> bool:
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in image]).all())
