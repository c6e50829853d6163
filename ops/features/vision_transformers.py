"""Vision transformers as feature extractors: tokens of patches become maps, at any input size.

Class and register tokens take part in the network and are left out of the maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.errors import SettingError


def transformer_layers(
    layers: Sequence[str], prefix: str, count: int, norm: str
) -> dict[str, int] | None:
    """The block (0 to count - 1) behind which each layer lies, by name; None if one is unknown.

    Layers are `prefix` and a block's number, or `norm`: the last block, normalised.
    """
    known = {f"{prefix}{block}": block for block in range(count)} | {norm: count - 1}
    return {layer: known[layer] for layer in layers} if set(layers) <= set(known) else None


def check_sides(name: str, images: Tensor, patch: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of patches of images (B, 3, H, W). Raises SettingError for fractions."""
    sides = images.shape[2:]
    for side, step in zip(sides, patch, strict=True):
        if side % step or not side:
            below = side // step * step
            near = f"{below} or {below + step}" if below else f"{step}"
            raise SettingError(
                f"an input of {side} pixels is no multiple of {step}, the side of the patches of "
                f"{name}; choose --input.size {near}"
            )
    return sides[0] // patch[0], sides[1] // patch[1]


class TorchvisionTransformer(nn.Module):
    """A transformer of torchvision up to the last block used."""

    def __init__(self, network: Any, name: str, blocks: Mapping[str, int]) -> None:
        """`network` is a VisionTransformer, which is cut in place."""
        super().__init__()
        self.name, self.blocks = name, dict(blocks)
        network.heads = nn.Identity()
        network.encoder.layers = network.encoder.layers[: max(blocks.values()) + 1]
        if "encoder.ln" not in blocks:
            network.encoder.ln = nn.Identity()
        self.network = network
        #: The side of patches in pixels.
        self.patch = int(network.patch_size)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> maps (B, C, h, w) of the layers' patch tokens, by layer.

        Raises SettingError if patches do not divide the input.
        """
        grid = check_sides(self.name, images, [self.network.patch_size] * 2)
        tokens = self.network.conv_proj(images).flatten(2).transpose(1, 2)
        first = self.network.class_token.expand(len(images), -1, -1)
        tokens = torch.cat([first, tokens], dim=1) + self._positions(grid)
        out: dict[str, Tensor] = {}
        for number, block in enumerate(self.network.encoder.layers):
            tokens = block(tokens)
            for layer in (name for name, last in self.blocks.items() if last == number):
                chosen = self.network.encoder.ln(tokens) if layer == "encoder.ln" else tokens
                out[layer] = _maps(chosen[:, 1:], grid)
        return out

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of the class token and of a grid, as `interpolate_embeddings` of torchvision.

        That function takes square inputs only.
        """
        positions: Tensor = self.network.encoder.pos_embedding
        side = self.network.image_size // self.network.patch_size
        if grid == (side, side):
            return positions
        square = positions[:, 1:].transpose(1, 2).reshape(1, -1, side, side).float()
        resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=True)
        of_grid = resized.flatten(2).transpose(1, 2).to(positions.dtype)
        return torch.cat([positions[:, :1], of_grid], dim=1)


class TimmTransformer(nn.Module):
    """A transformer of timm up to the last block used; timm interpolates its positions."""

    def __init__(self, network: Any, name: str, blocks: Mapping[str, int]) -> None:
        """`network` has `blocks`, `norm` and `forward_intermediates`; it is cut in place."""
        super().__init__()
        self.name, self.blocks = name, dict(blocks)
        self.numbers = sorted(set(blocks.values()))
        network.prune_intermediate_layers(
            self.numbers, prune_norm="norm" not in blocks, prune_head=True
        )
        self.network = network
        embed = network.patch_embed
        #: The side of patches in pixels.
        self.patch = math.lcm(*embed.patch_size)
        self.takes_one_size = bool(embed.strict_img_size and embed.img_size)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> maps (B, C, h, w) of the layers' patch tokens, by layer.

        Raises SettingError if patches do not divide the input, or the network takes one size only.
        """
        embed = self.network.patch_embed
        check_sides(self.name, images, embed.patch_size)
        fixed = tuple(embed.img_size) if self.takes_one_size else ()
        if fixed and tuple(images.shape[2:]) != fixed:
            raise SettingError(
                f"{self.name} takes inputs of {fixed[0]} x {fixed[1]} pixels only, not "
                f"{images.shape[2]} x {images.shape[3]}; choose --input.size {fixed[0]}"
            )
        maps = self.network.forward_intermediates(
            images, indices=self.numbers, output_fmt="NCHW", intermediates_only=True
        )
        by_block = dict(zip(self.numbers, maps, strict=True))
        return {
            layer: self._normalised(by_block[block]) if layer == "norm" else by_block[block]
            for layer, block in self.blocks.items()
        }

    def _normalised(self, features: Tensor) -> Tensor:
        """The last norm of the network, which treats each token alone, of maps (B, C, h, w)."""
        tokens = self.network.norm(features.flatten(2).transpose(1, 2))
        return _maps(tokens, (features.shape[2], features.shape[3]))


def _maps(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, h * w, C) -> contiguous maps (B, C, h, w)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid).contiguous()
