"""Training in integers: forward equals the integer runner bit for bit, backward is the float network's gradient."""

from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from statten_deploy.fixed_point.ranges import Interval
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph, folded_weights
from statten_deploy.ir.integer import IntegerConv2d, IntegerLIF
from statten_deploy.models.neurons import LIF, PLIF
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.simulate.integer_neurons import IntegerNeurons
from statten_deploy.train.straight_through import StraightThroughNetwork, fire
from tests.conftest import lively_input, lively_model, small_config


def reference(model: Any, options: QuantizeOptions) -> nir.NIRGraph:
    return quantize(build_graph(model), options)


@pytest.mark.parametrize(("bits", "granularity"), [(2, "channel"), (3, "tensor"), (8, "channel")])
def test_forward_equals_the_runner(variant: str, bits: int, granularity: Any) -> None:
    model = lively_model(small_config(variant))
    x = lively_input(model.config)
    options = QuantizeOptions(bits, granularity)
    expected = IntegerRunner(reference(model, options)).run(x.numpy(), spikes=True, membranes=True)
    network = StraightThroughNetwork(model, options)
    seen: dict[str, Any] = {}
    outputs = network.run(x, observe=lambda name, layer, before: seen.__setitem__(name, (layer, before)))
    assert outputs["logits"].requires_grad
    np.testing.assert_array_equal(outputs["logits"].detach().numpy(), expected.outputs["logits"])
    assert seen.keys() == expected.spikes.keys()
    for name, (layer, before) in seen.items():
        np.testing.assert_array_equal((before > layer.limit).numpy(), expected.spikes[name], err_msg=name)
        np.testing.assert_array_equal(layer.reset(before).numpy(), expected.membranes[name], err_msg=name)
    logits = network.forward_steps(x).detach().sum(0).numpy() / network.time_steps
    scale = network.graph.nodes["head_mean"].scale
    np.testing.assert_allclose(logits, expected.outputs["logits"] * scale, rtol=1e-5, atol=1e-6)


def test_every_trained_parameter_gets_a_gradient(variant: str) -> None:
    model = lively_model(small_config(variant))
    logits = StraightThroughNetwork(model, QuantizeOptions(4)).forward_steps(lively_input(model.config))
    F.cross_entropy(logits.mean(0), torch.arange(3)).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_gradient_points_where_the_float_networks_does(variant: str) -> None:
    """8-bit weights round little: where the same spikes fire, the gradients of the readout are those of the floats."""
    model = lively_model(small_config(variant))
    x, target = lively_input(model.config), torch.arange(3)
    gradients = []
    for network in (model, StraightThroughNetwork(model, QuantizeOptions(8))):
        model.zero_grad()
        F.cross_entropy(network.forward_steps(x).mean(0), target).backward()
        gradients.append({name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None})
    floats, integers = gradients
    likeness = {name: float(F.cosine_similarity(floats[name], integers[name], dim=0)) for name in floats}
    assert float(np.median(list(likeness.values()))) > 0.4
    assert likeness["head.bias"] > 0.9


def test_integers_stand_for_the_folded_weights(variant: str) -> None:
    """What gradients flow through is what was rounded: closer than half a step, except where weights are clipped."""
    model = lively_model(small_config(variant))
    network = StraightThroughNetwork(model, QuantizeOptions(6))
    top = 2**5 - 1
    for name in folded_weights(model):
        node = network.graph.nodes[name]
        weight, _ = network.weights[name]
        unit = (2.0**node.exponent).reshape(-1, *(1,) * (node.weight.ndim - 1))
        np.testing.assert_array_equal(weight.detach().numpy(), node.weight * unit)
        trained = model.get_submodule(name).weight
        (gradient,) = torch.autograd.grad(weight.sum(), trained)
        currents = _real_weights(model, network, name)
        # linear in the weights: the sum of gradient times weight is the sum itself, row by row
        rows = (gradient * trained).detach().flatten(1).sum(1).numpy()
        np.testing.assert_allclose(rows, currents.reshape(len(rows), -1).sum(1), rtol=1e-3, atol=1e-2, err_msg=name)
        real = currents / unit
        inside = np.abs(node.weight) < top
        assert np.abs(real - node.weight)[inside].max() <= 0.5 + 1e-4, name
        assert (np.abs(real)[~inside] >= top - 0.5 - 1e-4).all(), name


def _real_weights(model: Any, network: StraightThroughNetwork, name: str) -> np.ndarray:
    """The real weights in units of integer currents, from the graph alone."""
    graph = build_graph(model)
    node = network.graph.nodes[name]
    weight = graph.nodes[name].weight.astype(np.float64)
    if name == "patch_embed.proj_conv":
        gain = np.full(model.config.in_channels, 1 / 255 if model.config.input == "image" else 1.0)
        if model.config.std is not None:
            gain = gain / model.config.std
        weight = weight * gain.reshape(-1, 1, 1)
    return weight * node.scale.reshape(-1, *(1,) * (weight.ndim - 1))


def test_clipped_weights_still_learn() -> None:
    """A weight beyond the range keeps its gradient: it may have to come back."""
    model = lively_model(small_config("static"))
    network = StraightThroughNetwork(model, QuantizeOptions(4))
    node = network.graph.nodes["block.0.mlp.fc1_conv"]
    assert isinstance(node, IntegerConv2d)
    real = _real_weights(model, network, "block.0.mlp.fc1_conv") / 2.0 ** node.exponent.reshape(-1, 1, 1, 1)
    clipped = np.abs(real) > 7.6
    assert clipped.any()
    assert (np.abs(node.weight[clipped]) == 7).all()
    F.cross_entropy(network.forward_steps(lively_input(model.config)).mean(0), torch.arange(3)).backward()
    gradient = model.block[0].mlp.fc1_conv.weight.grad
    assert (gradient[torch.from_numpy(clipped)] != 0).float().mean() > 0.8  # some inputs never fire


# neurons: inputs for which the integer and the float neuron compute the same numbers


def neurons(neuron: LIF, K: int, steps: int, exponent: int = 0) -> IntegerNeurons:
    """A layer of 5 with a = K x, exact for dyadic currents."""
    decay = float(torch.as_tensor(neuron.decay()).detach())
    limit = int(neuron.threshold * K / decay)
    node = IntegerLIF(
        threshold=np.full(5, limit - 1 if exponent else limit),
        dv=round(4096 * decay),
        bias_mantissa=np.zeros(5),
        bias_exponent=np.zeros(5),
        shape=(5,),
        input_exponent=exponent,
    )
    wide = Interval(np.full(5, -1000), np.full(5, 1000))
    return IntegerNeurons(node, wide, wide, steps, torch.device("cpu"))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("neuron", [LIF(), LIF(theta=0.5), PLIF(), PLIF(tau=4.0)])
def test_neurons_learn_as_float_neurons_do(neuron: LIF, held: bool) -> None:
    """Spikes, gradients of the current and of a PLIF's decay, against autograd through the float neuron."""
    steps, K = 4, 64
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-150, 400, (1 if held else steps, 3, 5), generator=generator).float()
    whole += whole % 2 == 0  # odd: never exactly at the threshold
    upstream = torch.rand(steps, 3, 5, generator=generator)
    current = (whole / K).requires_grad_()
    spikes = neuron(current.expand(steps, 3, 5))
    assert 0.1 < spikes.mean() < 0.9
    trained = list(neuron.parameters())
    expected = torch.autograd.grad((spikes * upstream).sum(), [current, *trained])

    whole.requires_grad_()
    decay = torch.as_tensor(neuron.decay())
    found_spikes = fire(whole, decay, neurons(neuron, K, steps), neuron.theta)
    found = torch.autograd.grad((found_spikes * upstream).sum(), [whole, *trained])
    assert torch.equal(found_spikes, spikes)
    torch.testing.assert_close(found[0] * K, expected[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_neurons_of_counts_learn_in_real_units() -> None:
    """Attention's neurons: integers in, a unit that makes them a current, a shift on the way in."""
    neuron, steps = LIF(theta=0.5, unit=0.25), 4
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 6, (steps, 3, 5), generator=generator).float().requires_grad_()
    upstream = torch.rand(steps, 3, 5, generator=generator)
    spikes = neuron(counts)
    (expected,) = torch.autograd.grad((spikes * upstream).sum(), counts)
    layer = neurons(neuron, 16, steps, exponent=4)
    found_spikes = fire(counts, torch.tensor(0.5), layer, neuron.theta)
    (found,) = torch.autograd.grad((found_spikes * upstream).sum(), counts)
    assert torch.equal(found_spikes, spikes)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_two_bit_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = lively_model(small_config("strided", depth=1, embed_dim=16, image_size=(8, 8)))
    x, target = lively_input(model.config, batch=10), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(StraightThroughNetwork(model, QuantizeOptions(2)).forward_steps(x).mean(0), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.85 * losses[0]
