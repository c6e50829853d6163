"""SPADE (Cohen and Hoshen, 2020): good images like this one, and positions that none of them has.

Two stages, both exact. A global descriptor finds the K most similar good images; then every
position of the image's feature pyramid is compared with all positions of these K.
The second is what an image costs: with Wide-ResNet-50-2 at 224 pixels and K = 50, its three levels
take (50 * 56^2) * 56^2 * 256 = 126, 16 and 2 billion multiplications and additions. At the 34
billion a second that one core of a Xeon at 2.5 GHz was seen to do, that is 4 s; time goes with K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.detectors.detector import Checkpoint, Detector, FitCounts, Fitted, MapSettings, Scores
from ops.detectors.fit_cost import FitSize, ResourceEstimate
from ops.distributed import Group
from ops.errors import SettingError, UserError
from ops.features.backbone import Backbone
from ops.progress import ProgressCallback
from ops.search.distance import squared
from ops.search.gallery import SCRATCH, Positions, finest_grid

_ROUND = 8  # images of each rank that cross at a time when the gallery is merged
_PROBES = 4  # images of the gallery that say how large maps of good images become


@dataclass(frozen=True)
class SpadeSettings(MapSettings):
    """Settings of SPADE."""

    retrieved: int = 50
    """Number K of similar good images that an image is compared with; fewer if there are fewer."""
    nearest: int = 1
    """Number kappa of nearest positions whose distances are averaged."""
    pyramid: Literal["levels", "concat"] = "levels"
    """levels: a map of each layer, averaged; concat: layers side by side, as the paper has it."""
    float16: bool = False
    """Keep the pyramids in float16: half the memory; distances are to the rounded values."""

    def __post_init__(self) -> None:
        """Refuse what cannot be compared with."""
        for name in ("retrieved", "nearest"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} {getattr(self, name)} must be at least 1")
        if self.pyramid not in {"levels", "concat"}:
            raise SettingError(f"pyramid {self.pyramid!r} must be levels or concat")


class Spade(Detector):
    """A gallery: of each good image the average of the last layer, and the maps of those before.

    With one layer only, it is both. Images whose features are not finite are left out.
    Image scores are mean squared distances, as in the paper; maps are Euclidean ones.
    """

    name = "spade"
    Settings = SpadeSettings
    settings: SpadeSettings

    def __init__(self, settings: SpadeSettings, backbone: Backbone) -> None:
        """Unfitted, with an empty gallery."""
        super().__init__(settings, backbone)
        self.descriptors = torch.empty(0, 0)
        self.levels: list[Tensor] = []
        self._kept: dict[int, list[Tensor]] = {}  # by row: the descriptor, then the levels
        self._images = self._dropped = 0
        self._kind = torch.float16 if settings.float16 else torch.float32

    @classmethod
    def estimate(cls, settings: SpadeSettings, load: FitSize) -> ResourceEstimate:
        """The gallery, which every worker ends with, and its share of it before."""
        pyramid = load.layers[:-1] or load.layers
        width = 2 if settings.float16 else 4
        vectors = sum(height * columns for _, height, columns in pyramid)
        each = 4 * load.layers[-1][0] + sum(width * c * h * w for c, h, w in pyramid)
        gallery = load.images * each
        rounds = (load.workers + 2) * min(_ROUND, load.images) * each
        block = 4 * sum(c for c, _, _ in pyramid) * 2**12
        return ResourceEstimate(
            vectors=load.images * vectors,
            kept=load.images * vectors,
            # Once more for the copy that one of them hands over.
            fit_bytes=load.images_per_worker * each + rounds + 2 * gallery,
            score_bytes=2 * gallery + SCRATCH + block,
            model_bytes=gallery,
            remedy="halve it with --spade.float16 true, or choose fewer images (--select.shots), a "
            "coarser --backbone.layers or a lower --input.size",
        )

    @classmethod
    def timing_probe(cls, settings: SpadeSettings, load: FitSize) -> None:  # noqa: ARG003 - as in the base
        """None: once the images are taken in, they are only put together."""
        return

    @torch.inference_mode()
    def describe(self, images: Tensor) -> list[list[Tensor]]:
        """Of each image its descriptor (D,), then its levels (h, w, C)."""
        maps = self.backbone(images)
        # Of one memory layout in any batch, as a mean's order of summation follows it.
        channels_last = [layer.permute(0, 2, 3, 1).contiguous() for layer in maps]
        levels = channels_last[:-1] or channels_last
        return [
            [channels_last[-1][i].flatten(0, 1).mean(dim=0), *(level[i] for level in levels)]
            for i in range(len(images))
        ]

    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Keep every image's descriptor and pyramid."""
        for (descriptor, *levels), row in zip(self.describe(images), rows.tolist(), strict=True):
            # Copies, so that none keeps its whole batch in memory.
            own = [descriptor.cpu(), *(level.to("cpu", self._kind, copy=True) for level in levels)]
            finite = _finite(own)
            self._images += 1
            self._dropped += not finite
            if finite:
                self._kept[row] = own

    def grow(self, state: Mapping[str, Tensor], counts: FitCounts) -> None:
        """The old gallery stays as it is; new images come after it."""
        old = _tensors(state)
        count = len(old[0])
        for i in range(count):
            self._kept[i - count] = [tensor[i].cpu() for tensor in old]
        self._images += counts.images
        self._dropped += counts.dropped_images or 0

    def fit(self, group: Group, watch: ProgressCallback, checkpoint: Checkpoint) -> Fitted:  # noqa: ARG002 - too short
        """Put the gallery together in the order of rows, a few images of each rank at a time."""
        counts = group.all_reduce(torch.tensor([self._images, self._dropped])).tolist()
        rows = torch.tensor(sorted(self._kept), dtype=torch.int64)
        order = torch.cat(group.all_gather(rows)).sort().values
        if not len(order):
            raise UserError("there is no good image with finite features to fit on")
        shapes = self._shapes(group)
        kinds = [torch.float32] + [self._kind] * (len(shapes) - 1)
        merged = [
            torch.empty(len(order), *shape, dtype=kind)
            for shape, kind in zip(shapes, kinds, strict=True)
        ]
        most = int(group.all_reduce(torch.tensor(len(rows)), "max"))
        for start in range(0, most, _ROUND):
            mine = rows[start : start + _ROUND]
            own = [self._kept.pop(row) for row in mine.tolist()]
            places = [torch.searchsorted(order, theirs) for theirs in group.all_gather(mine)]
            for i, whole in enumerate(merged):
                part = torch.empty(len(own), *whole.shape[1:], dtype=whole.dtype)
                for j, image in enumerate(own):
                    part[j] = image[i]
                for place, theirs in zip(places, group.all_gather(part), strict=True):
                    whole[place] = theirs
            watch("gallery", min(start + _ROUND, most), most)
        self.descriptors, *self.levels = merged
        images, dropped = counts
        return Fitted(FitCounts(images, dropped_images=dropped), {"gallery": len(order)})

    def _shapes(self, group: Group) -> list[tuple[int, ...]]:
        """Of descriptors and levels; a rank may have no image to know them by. Collective."""
        layers = len(self.backbone.layers)
        shapes = torch.zeros(1 + max(1, layers - 1), 3, dtype=torch.int64)
        for image in self._kept.values():
            for known, tensor in zip(shapes, image, strict=True):
                known[-tensor.dim() :] = torch.tensor(tensor.shape)
            break
        agreed = group.all_reduce(shapes, "max").tolist()
        return [tuple(n for n in shape if n) for shape in agreed]

    @torch.inference_mode()
    def score(self, images: Tensor) -> Scores:
        """Mean squared distances to K images; maps of mean distances to positions in these.

        Scores of images whose features are not finite are not finite.
        """
        if not len(self.descriptors):
            raise ValueError("this detector is not fitted")
        scores = [self._one(image) for image in self.describe(images)]
        return Scores(*(torch.stack(part) for part in zip(*scores, strict=True)))

    def _one(self, image: list[Tensor], without: int | None = None) -> tuple[Tensor, Tensor]:
        """Score () and map (h, w) of a described image, as if one of the gallery were not there."""
        descriptor, *levels = image
        grid = finest_grid([level.shape[:2] for level in levels])
        if not _finite(image):
            return descriptor.new_tensor(torch.nan), descriptor.new_full(grid, torch.nan)
        distance = squared(self.descriptors, descriptor)
        if without is not None:
            distance[without] = torch.inf
        count = min(self.settings.retrieved, len(distance) - (without is not None))
        found = distance.sort(stable=True)
        maps = []
        for own, gallery in self._searches(levels):
            x = own.of(0)
            near = gallery.nearest(x, found.indices[:count], self.settings.nearest).sqrt()
            known = torch.isfinite(near)  # a small gallery may have too few positions
            mean = near.where(known, 0).sum(dim=1) / known.sum(dim=1)
            maps.append(mean.view(1, 1, *own.grid))
        fine = [F.interpolate(m, size=grid, mode="bilinear", align_corners=False) for m in maps]
        return found.values[:count].mean(), torch.cat(fine).mean(dim=0)[0]

    def _searches(self, levels: list[Tensor]) -> list[tuple[Positions, Positions]]:
        """The image and the gallery, each level for itself or all as one."""
        pairs = [
            (level[None].float(), whole) for level, whole in zip(levels, self.levels, strict=True)
        ]
        parts = [pairs] if self.settings.pyramid == "concat" else [[pair] for pair in pairs]
        return [
            (Positions([a for a, _ in part]), Positions([b for _, b in part])) for part in parts
        ]

    @torch.inference_mode()
    def map_ceiling(self) -> float:
        """The largest value in maps of a few images of the gallery, compared with the others."""
        count = len(self.descriptors)
        if count < 2:
            return max(float(level.float().norm(dim=-1).max()) for level in self.levels)
        probes = range(0, count, -(-count // _PROBES))
        state = _tensors(self.state())
        return max(float(self._one([t[i] for t in state], without=i)[1].max()) for i in probes)

    def state(self) -> dict[str, Tensor]:
        """Descriptors (N, D) and levels (N, h, w, C), in the order of the fit's list."""
        levels = {f"level{i}": level for i, level in enumerate(self.levels)}
        return {"descriptors": self.descriptors} | levels

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the gallery over."""
        device = self.backbone.device
        self.descriptors, *self.levels = (tensor.to(device) for tensor in _tensors(state))


def _tensors(state: Mapping[str, Tensor]) -> list[Tensor]:
    """Descriptors, then levels, whatever order a file has them in."""
    return [state["descriptors"], *(state[f"level{i}"] for i in range(len(state) - 1))]


def _finite(image: list[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in image)
