"""Shared fixtures: the recorded networks, and small networks of every variant."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statten_deploy.models.config import ModelConfig
from statten_deploy.models.statten import STAtten

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: what tests start would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).parent / "data"


@dataclass
class Golden:
    """A recording of the released implementation: input, weights, every spike, logits (tests/data/README.md)."""

    config: ModelConfig
    state: dict[str, torch.Tensor]
    x: torch.Tensor
    spikes: dict[str, np.ndarray]
    logits: np.ndarray

    def model(self) -> STAtten:
        model = STAtten(self.config)
        model.load_state_dict(self.state)
        return model.eval()


def load_golden(name: str) -> Golden:
    with np.load(DATA / f"statten_{name}.npz", allow_pickle=False) as file:
        told: dict[str, Any] = json.loads(str(file["config_json"]))
        config = ModelConfig(
            image_size=(told["img_size_h"], told["img_size_w"]),
            in_channels=told["in_channels"],
            num_classes=told["num_classes"],
            embed_dim=told["embed_dims"],
            depth=told["depths"],
            num_heads=told["num_heads"],
            mlp_ratio=told["mlp_ratios"],
            time_steps=told["T"],
            chunk_size=told["chunk_size"],
            dvs_mode=told["dvs_mode"],
            input="frames" if told["dvs_mode"] else "image",
            tet=told["TET"],
            pooling_stat=told["pooling_stat"],
        )
        state = {key.removeprefix("state/"): torch.from_numpy(file[key]) for key in file.files if "state/" in key}
        spikes = {key.removeprefix("spikes/"): file[key] for key in file.files if "spikes/" in key}
        return Golden(config, state, torch.from_numpy(file["x"]), spikes, file["logits"])


@pytest.fixture(params=["static", "dvs"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


VARIANTS: dict[str, dict[str, Any]] = {
    "static": {},
    "strided": {"pooling": "strided"},
    "sliding": {"window": "sliding"},
    "token": {"divide": "token", "token_groups": 2},
    "plif": {"neuron": "plif"},
    "mlp-ratio-1": {"mlp_ratio": 1},
    "normalised": {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)},
    "sdt": {"attention": "SDT"},
    "dvs": {"dvs_mode": True, "input": "frames", "in_channels": 2},
    "dvs-strided-sliding": {
        "dvs_mode": True,
        "input": "frames",
        "in_channels": 2,
        "pooling": "strided",
        "window": "sliding",
    },
    "dvs-sdt": {"dvs_mode": True, "input": "frames", "in_channels": 2, "attention": "SDT"},
    "frames": {"input": "frames"},
    "deep-pooling": {"pooling_stat": "1111", "image_size": (32, 32)},
    "oblong": {"image_size": (16, 24), "pooling_stat": "0110"},
}
"""One small configuration per feature of the network."""


def small_config(variant: str, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "name": variant,
        "image_size": (16, 16),
        "in_channels": 3,
        "num_classes": 5,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 2,
        "time_steps": 4,
        "chunk_size": 2,
        "pooling_stat": "0011",
    }
    return ModelConfig(**{**values, **VARIANTS[variant], **changes})


def lively_model(config: ModelConfig, seed: int = 0) -> STAtten:
    """A network with random weights, non-zero biases and batch norms, whose every layer fires."""
    generator = torch.Generator().manual_seed(seed)
    model = STAtten(config)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("_lif.w"):
            tensor.uniform_(-0.5, 0.5, generator=generator)
        elif tensor.dim() == 1 and name.endswith("weight"):
            tensor.uniform_(0.8, 1.6, generator=generator)
        elif tensor.dim() == 1 and name.endswith("bias"):
            tensor.normal_(0.2, 0.4, generator=generator)
        elif tensor.dim() > 1:
            fan_in = tensor[0].numel()
            tensor.normal_(0.1 / fan_in**0.5, 1.8 / fan_in**0.5, generator=generator)
    return model.eval()


def lively_input(config: ModelConfig, batch: int = 3, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    frame = (config.in_channels, *config.image_size)
    if config.input == "image":  # samples of different contrast, or their averages would all be alike
        contrast = torch.linspace(0.5, 2.0, batch).reshape(-1, 1, 1, 1)
        return torch.rand(batch, *frame, generator=generator) * contrast
    return torch.poisson(torch.full((batch, config.time_steps, *frame), 0.5), generator=generator)


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)
