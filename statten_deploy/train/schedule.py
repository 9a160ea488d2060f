"""The learning rate of every optimizer step."""

import math

from statten_deploy.train.config import TrainConfig


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up from `warmup_lr` to `lr`, then a cosine to `min_lr`, then `min_lr` for the cool-down.

    schedule "step", where the cosine ends with the last step before the cool-down:
        step < w:   warmup_lr + (lr - warmup_lr) · step / w            w = warm-up steps
        otherwise:  min_lr + (lr - min_lr) · (1 + cos(π · p)) / 2      p = (step - w) / (end - 1 - w), at most 1
    schedule "epoch", as timm's: the same with the number of the epoch for `step`, and p = epoch / end
    """
    by_step = config.schedule == "step"
    unit = steps_per_epoch if by_step else 1
    now = step if by_step else step // steps_per_epoch
    warmup = config.warmup_epochs * unit
    if now < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * now / warmup
    end = max(config.epochs - config.cooldown_epochs, 1) * unit
    progress = (now - warmup) / max(end - 1 - warmup, 1) if by_step else now / end
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
