"""The optimizers of the released recipes."""

from typing import Any

import torch
from torch import nn

from statten_deploy.train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, LAMB (timm) or SGD with Nesterov momentum; matrices and kernels decay, biases and batch norms do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    told = {"betas": config.betas, "eps": config.eps}
    options: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, **options)
    from timm.optim.lamb import Lamb

    lamb: torch.optim.Optimizer = Lamb(groups, lr=config.lr, **options)
    return lamb
