"""What benchmarks compare against computes what the released implementation computed."""

import numpy as np
import pytest
import torch

from benchmarks.eager_statten import EagerSTAtten, spikingjelly_lif
from tests.conftest import Golden


@pytest.mark.parametrize("spikingjelly", [False, True])
def test_the_baseline_is_the_released_network(golden: Golden, spikingjelly: bool) -> None:
    if spikingjelly:
        pytest.importorskip("spikingjelly")
    model = EagerSTAtten(golden.config, spikingjelly_lif) if spikingjelly else EagerSTAtten(golden.config)
    model.load_state_dict(golden.state)
    with torch.no_grad():
        logits = model.eval().forward_steps(golden.x)
    logits = logits if golden.config.tet else logits.mean(0)
    np.testing.assert_allclose(logits.numpy(), golden.logits, rtol=0, atol=1e-5)
