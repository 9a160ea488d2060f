"""NeuroBench counts the torch network, ours the graph: equal where both count the same, every difference named."""

import numpy as np
import pytest
import torch
from neurobench.metrics.static import Footprint
from neurobench.metrics.utils.layers import single_layer_MACs
from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
from neurobench.models import TorchModel
from torch import nn

from statten_deploy.compare.executors import TorchExecutor
from statten_deploy.energy import EnergyCounter
from statten_deploy.energy.fanout import fan_out
from statten_deploy.frontend import build_graph
from statten_deploy.ir import infer_shapes
from statten_deploy.models.neurons import LIF
from tests.conftest import lively_input, lively_model, small_config


class Case:
    """One variant, counted by both."""

    def __init__(self, variant, change=lambda x: x):
        self.config = small_config(variant)
        self.model = lively_model(self.config)
        self.x = change(lively_input(self.config, batch=2))
        self.graph = build_graph(self.model)
        counter = EnergyCounter(self.graph)
        counter.update(TorchExecutor(self.model).run(self.x.numpy()).spikes, self.x.numpy())
        self.counts = counter.counts()
        self.bench = TorchModel(self.model)
        self.bench.add_activation_module(LIF)
        self.bench.register_hooks()
        with torch.no_grad():
            logits = self.bench(self.x)
            found = SynapticOperations()(self.bench, logits, (self.x, None))
        self.acs, self.macs, self.dense = (
            round(found[key] * 2) for key in ("Effective_ACs", "Effective_MACs", "Dense")
        )
        self.sparsity = ActivationSparsity()(self.bench, logits, (self.x, None))

    def weighted(self):
        return sum(layer.synops for layer in self.counts.layers if layer.role == "synapses")

    def fan_out(self, name):
        shapes = infer_shapes(self.graph)
        (source,) = [a for a, b in self.graph.edges if b == name]
        return fan_out(self.graph.nodes[name], shapes[source], shapes[name])


@pytest.mark.parametrize("variant", ["static", "strided", "sliding", "token", "plif", "sdt", "mlp-ratio-1"])
def test_images_equal(variant):
    """All connections behind spikes are ACs, the first convolution is MACs, counted once for all steps."""
    case = Case(variant, lambda x: x + 0.01)  # no pixel is exactly 0
    assert case.acs == case.weighted() > 0
    assert case.macs == case.counts.macs > 0
    assert case.sparsity == pytest.approx(case.counts.activation_sparsity, abs=1e-12)


def test_dense_counts_every_step_but_no_padding():
    """Its `Dense` is every product inside the borders, where the paper convention counts padding too."""
    case = Case("static")
    inside = sum(
        int(case.fan_out(layer.name).sum()) * (1 if layer.macs else 4) * 2
        for layer in case.counts.layers
        if layer.role == "synapses"
    )
    with_padding = sum(layer.dense_macs * (1 if layer.macs else 4) * 2 for layer in case.counts.layers)
    assert case.dense == inside < with_padding


def test_difference_zero_pixels():
    """It leaves out products with a pixel of exactly 0; an analog layer computes them."""
    case = Case("static", lambda x: x * (x > 0.3))
    zeros = (case.x.numpy() == 0).sum(0)
    skipped = int((zeros * case.fan_out("patch_embed.proj_conv")).sum())
    assert case.macs + skipped == case.counts.macs
    assert skipped > 0
    assert case.acs == case.weighted()


def test_difference_matrix_products_pools_and_gates():
    """It sees Conv and Linear modules; attention, pools and gates are functions."""
    case = Case("sdt")
    roles = case.counts.synops_by_role
    assert case.acs == roles["synapses"]
    assert roles["gates"] > 0 < roles["pool"]
    attention = Case("static").counts.synops_by_role
    assert attention["attention"] > 0 < attention["gates"]


def test_difference_graded_values():
    """Any input beyond -1, 0 and 1 makes a layer MACs: event counts, and the sum of two spike trains in dvs mode.

    The number is the same for event counts. Of two trains it sees the sum, where a site that fires in both counts once.
    """
    case = Case("dvs")
    assert case.x.max() > 1
    first = case.counts["patch_embed.proj_conv"].synops
    signals = {}
    hooks = [
        block.attn.proj_conv.register_forward_pre_hook(
            lambda _m, inputs, n=f"block.{i}": signals.update({n: inputs[0]})
        )
        for i, block in enumerate(case.model.block)
    ]
    with torch.no_grad():
        case.model(case.x)
    for hook in hooks:
        hook.remove()
    twice = {name: int((signal == 2).sum()) * 32 for name, signal in signals.items()}
    merged = {name: int((signal != 0).sum()) * 32 for name, signal in signals.items()}
    assert all(twice.values())
    assert case.macs == first + sum(merged.values())
    assert case.acs + case.macs == case.weighted() - sum(twice.values())
    for name in signals:
        assert case.counts[f"{name}.attn.proj_conv"].synops == merged[name] + twice[name]


def test_difference_float32_sums():
    """It adds up in float32: above 2^24 the last digits are not counted. Ours are integers."""
    layer = nn.Linear(1, 2**24 + 1, bias=False)
    layer.weight.data.fill_(1)
    spikes = torch.ones(3, 1)
    found, spiking = single_layer_MACs(spikes, layer)
    assert spiking
    assert found != 3 * (2**24 + 1)
    assert found == pytest.approx(3 * (2**24 + 1), rel=1e-6)


def test_sparsity_counts_neurons_only():
    """Pools and gates are units for us (a chip has neurons there), not for the sparsity."""
    case = Case("dvs")
    assert case.sparsity == pytest.approx(case.counts.activation_sparsity, abs=1e-12)
    assert sum(layer.updates for layer in case.counts.layers) > case.counts.updates


def test_footprint():
    """Its bytes are ours at 32 bits, plus biases, batch norms and `talking_heads`, which the folded graph has not."""
    case = Case("static")
    named = dict(case.model.named_modules())
    norms = [module for module in named.values() if isinstance(module, nn.BatchNorm2d)]
    biases = [module.bias for module in named.values() if isinstance(module, nn.Conv2d | nn.Linear)]
    unused = [module.weight for name, module in named.items() if name.endswith("talking_heads")]
    beside = sum(4 * 4 * norm.num_features + 8 for norm in norms)  # scale, shift, mean, variance; one 64-bit counter
    beside += sum(4 * tensor.numel() for tensor in [*biases, *unused] if tensor is not None)
    assert Footprint()(case.bench) == 4 * case.counts.weights + beside
    assert case.counts.weights == sum(np.count_nonzero(getattr(n, "weight", 0)) for n in case.graph.nodes.values())
