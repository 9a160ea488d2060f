"""A small network that every backend runs, and its data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from statten_deploy.models.statten import STAtten
from tests.compare.few import SAMPLES
from tests.conftest import lively_input, lively_model, small_config


@pytest.fixture(scope="module")
def network() -> STAtten:
    """Every backend runs it: its pools are strided, and with one block its circuits are small. All its layers fire."""
    model = lively_model(small_config("strided", depth=1, embed_dim=16, num_heads=2, window="sliding"), seed=2)
    with torch.no_grad():  # a head without a favourite class
        model.head.bias -= model(torch.from_numpy(images(model))).mean(0)
    return model


def images(model: STAtten) -> np.ndarray:
    return lively_input(model.config, SAMPLES).numpy() / 2


@pytest.fixture(scope="module")
def data(network: STAtten, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, x=images(network), y=np.arange(SAMPLES) % network.config.num_classes)
    return path
