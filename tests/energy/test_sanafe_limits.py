"""What SANA-FE 2.2.9 does that the emitter goes around, and what is refused."""

import subprocess
import sys

import nir
import numpy as np
import pytest
import sanafe

from statten_deploy.energy.sanafe import chip as chip_module
from statten_deploy.energy.sanafe import emit, loihi_description, simulate
from statten_deploy.errors import GraphError, InputError, UnsupportedError
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir.integer import IntegerLinear
from statten_deploy.passes import part_until
from statten_deploy.quantize import QuantizeOptions, quantize
from tests.conftest import lively_input, lively_model, small_config
from tests.energy.spiking_networks import by_hand, case, line, neurons, one_layer

# what SANA-FE 2.2.9 does, and why the emitter does what it does


def charge(trains, dendrite="loihi_dendrites", steps=6, **soma):
    """Membranes of one neuron that hears one input with the weight 3, step by step."""
    description = loihi_description()
    architecture = chip_module.load_architecture(sanafe, chip_module.shortened(description, 2, 1))
    chip, net = sanafe.SpikingChip(architecture), sanafe.Network()
    source = net.create_neuron_group("i", 1)
    source[0].set_attributes(soma_hw_name="loihi_inputs[0]", model_attributes={"spikes": trains})
    attributes = {"threshold": 1000, "leak_decay": 1.0, **soma}
    target = net.create_neuron_group(
        "o", 1, attributes, default_dendrite_hw_name=dendrite, soma_hw_name="loihi_lif", log_potential=True
    )
    source[0].connect_to_neuron(target[0], {"weight": 3, "delay": 1} if "delay" in dendrite else {"weight": 3})
    for group, core in ((source, 0), (target, 1)):
        group.map_to_core(architecture.cores()[core])
    chip.load(net)
    return chip, [chip.sim(1, potential_trace=True)["potential_trace"][0][0] for _ in range(steps)]


def test_why_relays():
    """With the description's delays (its buffer stands before the soma) a spike is lost unless another follows."""
    assert charge([1, 0, 0, 0, 0, 0])[1] == [0, 3, 3, 3, 3, 3]
    assert charge([1, 0, 0, 0, 0, 0], "loihi_dendrites_delay")[1] == [0] * 6
    assert charge([1, 0, 1, 0, 0, 0], "loihi_dendrites_delay")[1] == [0, 0, 0, 3, 3, 3]


def test_why_synaptic_memory_is_refused():
    """Its current decays as a float; in ours (and Lava's) it is truncated to the last of 64ths."""
    _, found = charge([1, 0, 0, 0, 0], steps=5, input_decay=1229 / 4096)
    current, membrane, expected = 3 * 64, 3 * 64, [0.0, 3.0]
    for _ in range(3):
        current = current * 1229 // 4096
        membrane += current
        expected.append(membrane / 64)
    assert found[:2] == expected[:2]
    assert found[2] != expected[2]


def test_why_biases_are_set_as_model_attributes():
    """`soma_attributes` of a mapped neuron arrive at the dendrite."""
    chip, _ = charge([0], steps=1)
    (neuron,) = chip.mapped_neuron_groups["o"]
    neuron.set_attributes(soma_attributes={"bias": 5})
    assert chip.sim(1, potential_trace=True)["potential_trace"] == [[0]]
    neuron.set_attributes(model_attributes={"bias": 5})
    assert chip.sim(1, potential_trace=True)["potential_trace"] == [[5]]


# refusals


def test_it_is_imported_when_a_run_starts(monkeypatch):
    code = (
        "import sys, statten_deploy.energy, statten_deploy.energy.sanafe as s; "
        "assert not {'sanafe', 'sanafecpp', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "sanafe", None)
    with pytest.raises(InputError, match=r"not installed \(it is GPL-3.0, so an extra\): pip install 'statten-deploy"):
        simulate(by_hand()[1].network, np.zeros((1, 2, 16, 16)))


def test_what_cannot_be_emitted():
    with pytest.raises(UnsupportedError, match=r"quantize\(\) first"):
        emit(build_graph(lively_model(small_config("strided", depth=1, embed_dim=8, num_heads=2))))
    broken = one_layer([[1]], [0], neurons((1,), -1, du=2000), 3)
    with pytest.raises(UnsupportedError, match=r"lif has a synaptic memory \(du = 2000\).*; lif has a negative thresh"):
        emit(broken)
    with pytest.raises(UnsupportedError, match=r"image\.encoder does not pass spikes on as they are"):
        emit(case("strided").graph, inputs="spikes")
    with pytest.raises(UnsupportedError, match="lif: its currents may reach 203200 and wrap at 131072"):
        emit(one_layer(np.full((1, 25), 127), [6], neurons((1,), 1), 3), inputs="spikes")
    loop = line(("x", nir.Input({"input": np.array([1])})), ("lif", neurons((1,), 1)))
    loop.edges.append(("lif", "lif"))
    with pytest.raises(GraphError, match="cyclic"):
        emit(loop)


def test_inputs_that_do_not_fit():
    network = by_hand()[1].network
    with pytest.raises(InputError, match=r"shape \[1, 4, 2, 16, 16\], expected \[batch, 2, 16, 16\] or \[batch, 5, 2,"):
        simulate(network, np.zeros((1, 4, 2, 16, 16)))
    with pytest.raises(InputError, match="must be 0 or 1; take inputs='currents'"):
        simulate(network, np.full((1, 2, 16, 16), 2))


def test_injected_currents_and_synapses_that_may_wrap_together():
    """Alone the injected sum may wrap, as the reference's does; with synapses SANA-FE would add them afterwards."""
    graph = one_layer([[127]], [3], neurons((1,), 900), 3)
    zero = np.zeros(1)
    graph.nodes["again"] = IntegerLinear([[60]], zero, zero, np.ones(1))
    graph.nodes["second"] = neurons((1,), 90)
    graph.edges[:] = [*graph.edges[:-1], ("lif", "again"), ("again", "second"), ("w", "second"), ("second", "y")]
    network = emit(graph)
    x = np.array([[100.0]])
    reference = IntegerRunner(graph).run(x, spikes=True).spikes
    assert np.array_equal(simulate(network, x).spikes["second"], reference["second"])
    assert reference["second"].all()
    with pytest.raises(UnsupportedError, match="second: its currents may wrap"):
        simulate(network, np.array([[255.0]]))


def test_bits_and_parts():
    """A part of a network of 4 bits up to one layer."""
    config = small_config("strided", depth=1, embed_dim=8, num_heads=2)
    graph = part_until(quantize(build_graph(lively_model(config)), QuantizeOptions(4)), "patch_embed.proj_lif2")
    x = lively_input(config, batch=1).numpy()
    run = simulate(emit(graph), x)
    assert list(run.spikes) == [f"patch_embed.proj_lif{i}" for i in ("", 1, 2)]
    assert all(np.array_equal(run.spikes[n], s) for n, s in IntegerRunner(graph).run(x, spikes=True).spikes.items())
    assert run.outputs == {}
    assert run.seconds > 0
