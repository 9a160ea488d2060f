"""The network against recordings of the released implementation: every spike, and the logits to 1e-5."""

import re
import shutil

import numpy as np
import pytest
import torch

from tests.conftest import Golden


def recorded_name(module: str, dvs: bool) -> str | None:
    """The name the recording gives to what this module puts out."""
    if module == "head_lif":
        return module
    if match := re.fullmatch(r"patch_embed\.proj_(lif\d?)", module):
        return f"MS_SPS_{match[1]}"
    match = re.fullmatch(r"block\.(\d)\.(attn|mlp)\.(\w+)", module)
    if match is None:
        return None
    block, part, layer = match.groups()
    if part == "mlp":
        return f"MS_MLP_Conv{block}_{layer}" if layer.endswith("lif") else None
    pooled = {"q_pool": "q_lif", "k_pool": "k_lif", "v_pool": "v_lif"} if dvs else {}
    plain = {} if dvs else {"q_lif": "q_lif", "k_lif": "k_lif", "v_lif": "v_lif"}
    name = {"shortcut_lif": "first_lif", **pooled, **plain}.get(layer)
    return f"MS_SSA_Conv{block}_{name}" if name else None


def run_recorded(golden: Golden, compiled: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    model = golden.model()
    seen: dict[str, np.ndarray] = {}

    def keep(name: str):
        def hook(_module, _inputs, output):
            seen[name] = output

        return hook

    def keep_attention(name: str):
        def hook(_module, inputs):
            seen[name] = inputs[0]

        return hook

    for module_name, module in model.named_modules():
        name = recorded_name(module_name, golden.config.dvs_mode)
        if name:
            module.register_forward_hook(keep(name))
    for i, block in enumerate(model.block):
        block.attn.proj_conv.register_forward_pre_hook(keep_attention(f"MS_SSA_Conv{i}_after_qkv"))
    forward = torch.compile(model.forward_steps) if compiled else model.forward_steps
    with torch.no_grad():
        logits = forward(golden.x)
    logits = logits if golden.config.tet else logits.mean(0)
    return {name: value.numpy() for name, value in seen.items()}, logits.numpy()


def check(golden: Golden, compiled: bool) -> None:
    seen, logits = run_recorded(golden, compiled)
    assert seen.keys() == golden.spikes.keys()
    for name, expected in golden.spikes.items():
        np.testing.assert_array_equal(seen[name].reshape(expected.shape), expected, err_msg=name)
    np.testing.assert_allclose(logits, golden.logits, rtol=0, atol=1e-5)


def test_eager_reproduces_every_recorded_spike(golden: Golden) -> None:
    check(golden, compiled=False)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecation notices
def test_compiled_reproduces_every_recorded_spike(golden: Golden) -> None:
    check(golden, compiled=True)


def test_recordings_are_alive(golden: Golden) -> None:
    """A recording whose attention is silent would prove nothing."""
    for name, spikes in golden.spikes.items():
        assert 0.005 < (spikes > 0).mean() < 0.95, name
