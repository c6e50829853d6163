"""PatchCore (Roth et al., CVPR 2022): distance to the nearest of a coreset of good patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.backbone import Backbone
from ops.coreset import greedy
from ops.distance import squared
from ops.group import Group
from ops.method import Gathered, MapSettings, Scores, Watch, finite_rows
from ops.neighbours import Bank
from ops.patches import Embedding, embed


@dataclass(frozen=True)
class PatchCoreSettings(MapSettings):
    """Settings of PatchCore."""

    ratio: float = 0.01
    """Share of the patches that the bank keeps."""
    cap: int = 20_000
    """The bank never holds more vectors than this: scoring costs more than the backbone beyond."""
    embedding: Embedding = "pooled"
    """pooled: as the authors' code averages neighbourhoods; concat: channels side by side."""
    dim: int = 1024
    """Length of pooled vectors."""
    projection: int = 128
    """The coreset is chosen in a random projection to this many dimensions; 0 = none."""
    seed: int = 0
    """Seed of the projection."""
    reweight: bool = True
    """Weigh image scores by the neighbourhood of the nearest vector (equation 7)."""
    neighbours: int = 9
    """Size b of that neighbourhood."""


class PatchCore(Gathered):
    """A bank of locally averaged patch features, thinned by the exact greedy coreset.

    Scores are Euclidean distances (the authors' code reports squared ones).
    """

    name = "patchcore"
    Settings = PatchCoreSettings
    settings: PatchCoreSettings

    def __init__(self, settings: PatchCoreSettings, backbone: Backbone) -> None:
        """Unfitted, with an empty bank."""
        super().__init__(settings, backbone)
        self.bank = torch.empty(0, 0)
        self.radius = 0.0
        self._search: Bank | None = None
        self._matrix: Tensor | None = None
        self._vectors: list[Tensor] = []
        self._projected: list[Tensor] = []
        self._ids: list[Tensor] = []
        self._images = self._dropped = 0

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Patch vectors (B, h, w, d)."""
        return embed(self.backbone(images), self.settings.embedding, self.settings.dim)

    def gather(self, images: Tensor, rows: Tensor) -> None:
        """Keep every image's patches; their ids are row * patches + patch."""
        for vectors, row in zip(self.embed(images).cpu(), rows.tolist(), strict=True):
            flat = vectors.flatten(0, 1)
            ids = row * len(flat) + torch.arange(len(flat))
            keep = finite_rows(flat)
            self._images += 1
            self._dropped += int((~keep).sum())
            self._vectors.append(flat[keep])
            # One product per image, so that its bits do not depend on the batch.
            self._projected.append(self._project(flat)[keep])
            self._ids.append(ids[keep])

    def _project(self, vectors: Tensor) -> Tensor:
        width, dim = vectors.shape[1], self.settings.projection
        if not 0 < dim < width:
            return vectors
        if self._matrix is None:
            generator = torch.Generator().manual_seed(self.settings.seed)
            self._matrix = torch.randn(width, dim, generator=generator) / dim**0.5
        return vectors @ self._matrix

    def merge(self, group: Group, watch: Watch) -> dict[str, float]:
        """The exact greedy over all ranks; the bank is the unprojected vectors, in pick order."""
        counts = torch.tensor([self._images, sum(map(len, self._ids)), self._dropped])
        images, patches, dropped = group.all_reduce(counts).tolist()
        if not patches:
            raise ValueError("there is no good image with finite features to fit on")
        width = max(int(n) for n in group.all_gather(torch.tensor([self._width()])))
        ids, projected = self._sorted(width)
        k = max(1, min(int(self.settings.ratio * patches), self.settings.cap))
        chosen = greedy(projected, ids, k, group, watch=lambda n, of: watch("coreset", n, of))
        self.bank = self._picked(ids, torch.tensor(chosen.ids), width, group)
        self.radius = chosen.radius
        self._vectors, self._projected, self._ids = [], [], []
        return {
            "images": images,
            "patches": patches,
            "dropped_patches": dropped,
            "bank": len(self.bank),
            "radius": chosen.radius,
            "rounds": chosen.rounds,
        }

    def _width(self) -> int:
        return self._vectors[0].shape[1] if self._vectors else 0

    def _sorted(self, width: int) -> tuple[Tensor, Tensor]:
        """Own ids in ascending order, and their projected vectors; sorts the vectors too."""
        if not self._ids:
            dim = self.settings.projection
            narrow = dim if 0 < dim < width else width
            return torch.empty(0, dtype=torch.int64), torch.empty(0, narrow)
        order = sorted(range(len(self._ids)), key=lambda i: self._ids[i][:1].tolist())
        self._vectors = [self._vectors[i] for i in order]
        ids = torch.cat([self._ids[i] for i in order])
        return ids, torch.cat([self._projected[i] for i in order])

    def _picked(self, ids: Tensor, picks: Tensor, width: int, group: Group) -> Tensor:
        """The full vectors of picked ids, in pick order, from whichever rank holds each."""
        own = torch.nonzero(torch.isin(ids, picks)).flatten()
        ends = torch.tensor([len(v) for v in self._vectors]).cumsum(0)
        images = torch.searchsorted(ends, own, right=True)
        rows = [
            self._vectors[image][position - int(ends[image])]  # counted from the image's end
            for image, position in zip(images.tolist(), own.tolist(), strict=True)
        ]
        mine = torch.stack(rows) if rows else torch.empty(0, width)
        all_ids = torch.cat(group.all_gather(ids[own]))
        vectors = torch.cat(group.all_gather(mine))
        order = torch.argsort(all_ids)
        return vectors[order[torch.searchsorted(all_ids[order], picks)]].contiguous()

    @torch.inference_mode()
    def score(self, images: Tensor) -> Scores:
        """Equations 6 and 7: the largest patch distance, re-weighted; maps are patch distances."""
        if not len(self.bank):
            raise ValueError("this detector is not fitted")
        if self._search is None or self._search.vectors is not self.bank:
            self._search = Bank(self.bank)
        search = self._search
        image_scores, maps = [], []
        for vectors in self.embed(images):
            flat = vectors.flatten(0, 1)
            found = search.nearest(flat)
            distance = found.value.sqrt()
            worst = int(distance.argmax())
            image_scores.append(self._image_score(search, flat[worst], int(found.row[worst])))
            maps.append(distance.view(vectors.shape[:2]))
        return Scores(torch.stack(image_scores), torch.stack(maps))

    def _image_score(self, search: Bank, patch: Tensor, index: int) -> Tensor:
        score = squared(patch, self.bank[index]).sqrt()
        if not self.settings.reweight or index < 0:
            return score
        around = search.closest(index, self.settings.neighbours)
        distances = squared(self.bank[around], patch).sqrt()
        # The softmax weight of the nearest vector, shifted so that exp cannot overflow.
        shift = torch.maximum(distances.max(), score)
        weight = (score - shift).exp() / (distances - shift).exp().sum()
        return (1 - weight) * score

    def map_ceiling(self) -> float:
        """The largest distance of one of the first 512 picks to the nearest other vector."""
        if len(self.bank) < 2:
            return float(self.bank.norm())
        distances = torch.cdist(self.bank[:512], self.bank)
        distances.fill_diagonal_(torch.inf)
        return float(distances.amin(dim=1).max())

    def state(self) -> dict[str, Tensor]:
        """The bank (k, d) in pick order, and the covering radius in the projection."""
        return {"bank": self.bank, "radius": torch.tensor(self.radius)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the bank over."""
        self.bank = state["bank"].to(self.backbone.device)
        self.radius = float(state["radius"])
