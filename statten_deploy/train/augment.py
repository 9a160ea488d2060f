"""Augmentation of whole batches. Random numbers come from the generator given, so that runs repeat and resume."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def random_shift(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move every sample by its own offset in -pixels..pixels along H and W, filling with zeros.

    x: [B, C, H, W] or [B, T, C, H, W]; all steps of a sample move together. `generator` is a CPU generator.
    """
    if pixels == 0:
        return x
    batch, height, width = x.shape[0], x.shape[-2], x.shape[-1]
    offsets = torch.randint(0, 2 * pixels + 1, (2, batch, 1), generator=generator).to(x.device)
    rows = (torch.arange(height, device=x.device) + offsets[0])[:, :, None]  # [B, H, 1]
    columns = (torch.arange(width, device=x.device) + offsets[1])[:, None, :]  # [B, 1, W]
    padded = F.pad(x.flatten(1, -3), (pixels,) * 4)  # [B, T·C, H + 2p, W + 2p]
    samples = torch.arange(batch, device=x.device)[:, None, None]
    moved = padded.movedim(1, -1)[samples, rows, columns].movedim(-1, 1)  # [B, T·C, H, W]
    return moved.reshape(x.shape)


def random_turn(x: Tensor, degrees: float, scale: float, generator: torch.Generator) -> Tensor:
    """Rotate every sample about its centre by up to ±`degrees` and enlarge it by a factor in 1 - scale .. 1 + scale.

    Bilinear, zeros outside. x: [B, C, H, W] or [B, T, C, H, W]; all steps of a sample turn together. `generator` is a
    CPU generator.
    """
    if degrees == 0 and scale == 0:
        return x
    batch, height, width = x.shape[0], x.shape[-2], x.shape[-1]
    angle, zoom = torch.rand(2, batch, generator=generator) * 2 - 1
    angle, zoom = angle * math.radians(degrees), 1 + zoom * scale
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Output pixel -> input pixel, in affine_grid's coordinates where H and W both run from -1 to 1.
    matrices = torch.zeros(batch, 2, 3)
    matrices[:, 0, 0], matrices[:, 0, 1] = cos, -sin * height / width
    matrices[:, 1, 0], matrices[:, 1, 1] = sin * width / height, cos
    planes = x.flatten(1, -3)  # [B, T·C, H, W]
    grid = F.affine_grid(matrices.to(x), list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, align_corners=False).reshape(x.shape)
