"""Losses over the logits of every step, [T, B, classes]. Targets: classes [B], or after mixing shares [B, classes]."""

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_loss(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the logits averaged over time: ``CE(mean_t z[t], y)``."""
    return F.cross_entropy(logits.mean(0), target, label_smoothing=label_smoothing)


def tet_loss(logits: Tensor, target: Tensor, means: float, lam: float, label_smoothing: float = 0.0) -> Tensor:
    """Temporal efficient training: ``(1 - l) · mean_t CE(z[t], y) + l · MSE(z, means)``.

    Source: Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting", ICLR 2022.
    """
    steps = len(logits)
    # The mean over T·B equals the mean over T of the per-step means: all steps have the same B.
    cross_entropy = F.cross_entropy(
        logits.flatten(0, 1), target.expand(steps, *target.shape).flatten(0, 1), label_smoothing=label_smoothing
    )
    pull = F.mse_loss(logits, torch.full_like(logits, means))
    return (1 - lam) * cross_entropy + lam * pull
