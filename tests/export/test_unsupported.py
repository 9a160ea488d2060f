"""Whatever a target cannot express is listed at once: every node by name, with what is wrong and what to do."""

from itertools import pairwise
from pathlib import Path

import h5py
import nir
import numpy as np
import pytest

from statten_deploy.api import export
from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.export.lava import write_bundle
from statten_deploy.export.nir import read_nir
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.simulate.integer import TorchIntegerRunner
from tests.simulate.builders import affine, graph, inp, lif, out

RNG = np.random.default_rng(0)
ONES = np.ones(4, dtype=np.float32)


def stranger() -> nir.NIRGraph:
    """A valid graph that the float simulator and NIR take, with something for every other target."""
    nodes = {
        "in": inp(4),
        "scale": nir.Scale(ONES * 2),
        "dense": affine(RNG, 4, 4),
        "slow": nir.LIF(ONES * np.float32(2e-4), ONES, ONES / 4, ONES, ONES * 0),
        "late": nir.Delay(ONES * np.float32(1e-4)),
        "hard": nir.Threshold(ONES / 2),
        "head": affine(RNG, 4, 4),
        "mixed": nir.LI(np.float32([2, 2, 2, 3]) * np.float32(1e-4), ONES, ONES * 0),
        "y": out(4),
    }
    return graph(nodes, list(pairwise(nodes)), time_steps=3)


@pytest.mark.parametrize("target", ["onnx-int8", "lava"])
def test_integer_targets(target: str, tmp_path: Path) -> None:
    suffix = {"onnx-int8": ".onnx", "lava": ".lava"}[target]
    with pytest.raises(UnsupportedError) as caught:
        export(stranger(), target, tmp_path / f"n{suffix}")
    for part in (
        "scale (Scale: fold its factors into the weights next to it)",
        "slow (v_leak and v_reset must be 0)",
        "late (Delay: train without delays; --target onnx takes them)",
        "hard (Threshold: use IF neurons, or --target onnx)",
        "mixed (one tau per layer)",
    ):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_netx(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        export(stranger(), "netx", tmp_path / "n.net")
    for part in ("Delay (late)", "LI (mixed)", "Scale (scale)", "Threshold (hard)", "use --target lava"):
        assert part in str(caught.value)


@pytest.mark.parametrize("target", ["onnx", "nir"])
def test_float_targets_take_all_of_it(target: str, tmp_path: Path) -> None:
    result = export(stranger(), target, tmp_path / f"n.{target}")
    assert result.agreement is not None
    assert result.agreement.passed


def test_engines_name_what_is_not_quantised(tmp_path: Path) -> None:
    """Graphs that did not come from the quantiser."""
    nodes = {"in": inp(4), "dense": affine(RNG, 4, 4), "late": nir.Delay(ONES), "n": lif(4), "y": out(4)}
    subject = graph(nodes, [("in", "dense"), ("dense", "late"), ("late", "n"), ("n", "y")], time_steps=3)
    for use in (IntegerRunner, TorchIntegerRunner, lambda g: write_bundle(g, tmp_path / "b")):
        with pytest.raises(UnsupportedError, match=r"dense \(Affine\), late \(Delay\), n \(LIF\)"):
            use(subject)
    with pytest.raises(UnsupportedError, match=r"'dense' \(Affine\), 'late' \(Delay\), 'n' \(LIF\)"):
        build_integer_onnx(subject)


def test_files_with_nodes_that_nir_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "n.nir"
    nir.write(path, stranger())
    with h5py.File(path, "r+") as file:
        nodes = file["node/nodes"]
        for name, kind in (("scale", "Softmax"), ("hard", "LSTM")):
            del nodes[name]["type"]
            nodes[name]["type"] = kind
        del nodes["slow"]["tau"]
    with pytest.raises(InputError) as caught:
        read_nir(path)
    message = str(caught.value)
    assert "node 'hard' has the unknown type 'LSTM', node 'scale' has the unknown type 'Softmax'; known are" in message
    assert "node 'slow' (LIF) lacks the field 'tau'" in message
    assert message.count("known are") == 1
