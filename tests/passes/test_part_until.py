import numpy as np
import pytest

from statten_deploy.errors import InputError
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir import infer_shapes
from statten_deploy.passes import part_until
from statten_deploy.quantize import quantize
from statten_deploy.simulate import Simulator
from tests.conftest import lively_input, lively_model, small_config


@pytest.mark.parametrize("layer", ["patch_embed.proj_lif2", "block.0.attn.attn_lif", "head_lif"])
def test_a_part_gives_the_spikes_of_the_whole(layer):
    """Behind several ports and residual sums too; of floats and of integers."""
    config = small_config("dvs", depth=1)
    graph, x = build_graph(lively_model(config)), lively_input(config, batch=2).numpy()
    part = part_until(graph, layer)
    assert "head" not in part.nodes
    assert all(part.nodes[name] is graph.nodes[name] for name in part.nodes if name != "spikes")
    whole = Simulator(graph).run(x, record=[layer]).recorded[layer]
    assert np.array_equal(Simulator(part).run(x).outputs["spikes"], whole.swapaxes(0, 1))
    assert whole.any()
    integers = quantize(graph)
    expected = IntegerRunner(integers).run(x, spikes=True).spikes
    found = IntegerRunner(part_until(integers, layer)).run(x, spikes=True).spikes
    assert layer in found
    assert all(np.array_equal(value, expected[name]) for name, value in found.items())
    assert infer_shapes(part)["spikes"] == infer_shapes(graph)[layer]


def test_what_is_no_layer():
    graph = build_graph(lively_model(small_config("strided", depth=1)))
    for name in ("head", "nowhere"):
        with pytest.raises(
            InputError, match=rf"--until {name}: is not a neuron layer .* these are: patch_embed.proj_lif, "
        ):
            part_until(graph, name)
