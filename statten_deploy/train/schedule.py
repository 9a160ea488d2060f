"""The learning rate of every optimizer step."""

import math

from statten_deploy.train.config import TrainConfig


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up from `warmup_lr` to `lr`, then a cosine to `min_lr`, reached at the last step.

    step < w:   warmup_lr + (lr - warmup_lr) · step / w               w = warm-up steps
    otherwise:  min_lr + (lr - min_lr) · (1 + cos(π · p)) / 2         p = (step - w) / (total - 1 - w), at most 1
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup
    last = config.epochs * steps_per_epoch - 1
    progress = min((step - warmup) / max(last - warmup, 1), 1.0)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress)) / 2
