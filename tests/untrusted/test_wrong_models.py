"""Models that are well formed and wrong: each has its message; layers that say nothing are named."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

from statten_deploy.compare.executors import TorchExecutor
from statten_deploy.compare.verify import activity_warnings, verify_against
from statten_deploy.errors import CheckpointError, ConfigError, GraphError
from statten_deploy.export.nir import read_nir, write_nir
from statten_deploy.frontend import build_graph
from statten_deploy.models.checkpoint import CONFIG_KEY, load_model
from statten_deploy.models.config import ModelConfig
from statten_deploy.quantize import QuantizeOptions, quantisation_report, quantize
from statten_deploy.untrusted import hdf5
from tests.conftest import lively_input, lively_model, small_config
from tests.simulate.builders import chain, inp, lif, out

CONFIG = small_config("static", depth=1)


def checkpoint(path: Path, **weights: torch.Tensor) -> Path:
    state = {**lively_model(CONFIG).state_dict(), **weights}
    torch.save({"state_dict": state, CONFIG_KEY: CONFIG.model_dump(mode="json")}, path)
    return path


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.bias", float("nan"), "'head.bias' holds NaN or infinite values; the training diverged"),
        ("head.bias", float("-inf"), "'head.bias' holds NaN or infinite values"),
        ("patch_embed.rpe_bn.running_var", -1e-12, "'patch_embed.rpe_bn.running_var' holds negative variances"),
    ],
)
def test_numbers_that_no_network_has(tmp_path: Path, name: str, value: float, message: str) -> None:
    weights = torch.full_like(lively_model(CONFIG).state_dict()[name], value)
    with pytest.raises(CheckpointError, match=message):
        load_model(checkpoint(tmp_path / "a.ckpt", **{name: weights}))


def test_a_variance_of_zero_is_one_of_epsilon(tmp_path: Path) -> None:
    name = "patch_embed.rpe_bn.running_var"
    model = load_model(checkpoint(tmp_path / "a.ckpt", **{name: torch.zeros(CONFIG.embed_dim)}))
    graph = build_graph(model)
    assert all(np.isfinite(node.weight).all() for node in graph.nodes.values() if isinstance(node, nir.Conv2d))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_steps": 5}, "time_steps 5 is not a multiple of chunk_size 2"),
        ({"num_heads": 5}, "num_heads 5 does not divide embed_dim 32"),
        ({"mean": [float("nan")] * 3, "std": [1.0] * 3}, "mean.0: Input should be a finite number"),
        ({"depth": [[[[[1]]]]]}, r"depth: .* \(found \[\[\[\S+\]\]\]\)"),
    ],
)
def test_configurations(changes: dict[str, Any], message: str) -> None:
    values = {**CONFIG.model_dump(mode="json"), **changes}
    with pytest.raises(ConfigError, match=message):
        ModelConfig.create(values, "a.yaml")


def test_a_configuration_of_another_network(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match="time_steps: --config says 8, the checkpoint was trained with 4"):
        load_model(path, {"time_steps": 8})
    with pytest.raises(ConfigError, match="embed_dim: --config says 64, the weights say 32"):
        load_model(path, {"embed_dim": 64})


@pytest.mark.parametrize(("threshold", "reset"), [(0.0, 0.0), (-1.0, 0.0), (0.5, 0.5), (0.2, 0.7)])
def test_thresholds_that_are_not_above_the_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float, reset: float
) -> None:
    monkeypatch.setattr(hdf5, "read_in_child", lambda *arguments: "")
    ones = np.ones(3, np.float32)
    bad = nir.LIF(ones * 2e-4, ones, ones * 0, np.array([1, threshold, 1], np.float32), np.float32(reset) * ones)
    path = tmp_path / "a.nir"
    nir.write(path, chain(("x", inp(3)), ("l", bad), ("y", out(3))))
    with pytest.raises(GraphError, match=r"'l' \(LIF\): v_threshold must be above v_reset, found \S+ and"):
        read_nir(path)
    write_nir(chain(("x", inp(3)), ("l", lif(3)), ("y", out(3))), path)
    read_nir(path)


def test_rest_below_zero_is_biology(tmp_path: Path) -> None:
    """Thresholds below zero are right where neurons rest and are reset below them."""
    ones = np.ones(3, np.float32)
    neuron = nir.LIF(ones * 2e-4, ones, ones * -65, ones * -50, ones * -65)
    write_nir(chain(("x", inp(3)), ("l", neuron), ("y", out(3))), tmp_path / "a.nir")


@pytest.mark.parametrize(
    ("bias", "message"),
    [(-1e6, "no neuron of block.0.mlp.fc1_lif fired on"), (1e6, "every neuron of block.0.mlp.fc1_lif fired at every")],
)
def test_layers_that_say_nothing(bias: float, message: str) -> None:
    model = lively_model(CONFIG)
    block = model.get_submodule("block.0.mlp")
    layer = "block.0.mlp.fc2_lif"
    with torch.no_grad():
        block.fc1_bn.bias.fill_(bias)
    x = lively_input(CONFIG, 2).numpy()
    found = verify_against(TorchExecutor(model), TorchExecutor(model), x)
    assert any(message.replace("block.0.mlp.fc1_lif", layer) in note for note in found.notes), found.notes


def test_layers_are_counted() -> None:
    counts = {"a": (0, 10), "b": (10, 10), "c": (3, 10), "empty": (0, 0), **{f"s{i}": (0, 5) for i in range(5)}}
    silent, saturated = activity_warnings(counts, "verified")
    assert silent == "no neuron of a, s0, s1, s2 and 2 more fired on these samples: nothing behind them is verified"
    assert saturated == "every neuron of b fired at every step on these samples: nothing behind them is verified"


def test_weights_that_two_bits_cannot_hold() -> None:
    model = lively_model(CONFIG)
    graph, x = build_graph(model), lively_input(CONFIG, 2).numpy()
    for bits, warned in ((2, True), (4, False)):
        report = quantisation_report(graph, quantize(graph, QuantizeOptions(bits)), x)
        said = [line for line in report.warnings() if f"overflow {bits} bits and are clipped; use more bits" in line]
        assert bool(said) == warned
        assert not warned or "patch_embed.proj_conv" in said[0]
