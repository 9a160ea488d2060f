"""Mixup and cutmix of whole batches, by timm."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from statten_deploy.train.config import TrainConfig
from statten_deploy.train.sample_augment import seeded


class Mixer:
    """Mixes every sample of a batch with another one; all frames of a sample alike."""

    def __init__(self, config: TrainConfig, classes: int) -> None:
        from timm.data import mixup

        self.classes = classes
        self.smoothing = config.label_smoothing
        make: Any = mixup.Mixup
        self.mix = make(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            prob=config.mix_prob,
            switch_prob=config.cutmix_share,
            mode=config.mix_mode,
            label_smoothing=config.label_smoothing,
            num_classes=classes,
        )

    def __call__(self, x: Tensor, target: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """x [B, ...] and classes [B] to x and shares [B, classes], smoothed; a function of `seed`.

        timm mixes sample i with sample B - 1 - i, for even B; the last of an odd number stays as it is.
        """
        even = len(x) - len(x) % 2
        planes = x[:even].flatten(1, -3).clone()  # [B, T·C, H, W]: timm cuts along the last two axes of four
        shares = F.one_hot(target, self.classes).to(x.dtype)
        shares = shares * (1 - self.smoothing) + self.smoothing / self.classes
        if even:
            with seeded(seed):
                planes, mixed = self.mix(planes, target[:even])
            shares = torch.cat([mixed.to(shares), shares[even:]])
        return torch.cat([planes.reshape(x[:even].shape), x[even:]]), shares
