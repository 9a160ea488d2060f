"""Neurons with an explicit backward pass, against plain automatic differentiation and SpikingJelly."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.eager_statten import ALPHA, Heaviside, spikingjelly_lif
from statten_deploy.models.neurons import LIF, PLIF

NEURONS: dict[str, Callable[[], LIF]] = {
    "lif": LIF,
    "low-threshold": lambda: LIF(theta=0.5),
    "tau-3": lambda: LIF(tau=3.0),
    "counts": lambda: LIF(theta=0.5, unit=0.25),
    "plif": PLIF,
    "plif-tau-5": lambda: PLIF(theta=0.4, tau=5.0),
}


def plain(neuron: LIF, current: Tensor) -> Tensor:
    """Every operation recorded by autograd; only the step function has a derivative of its own."""
    decay = torch.sigmoid(neuron.w) if isinstance(neuron, PLIF) else 1 / neuron.tau
    v = torch.zeros_like(current[0])
    spikes = []
    for x in current:
        v = v + (x - v) * decay
        spike = Heaviside.apply((v - neuron.theta / neuron.unit) * neuron.unit)
        v = v * (1 - spike.detach())
        spikes.append(spike)
    return torch.stack(spikes)


def spikes_and_gradients(
    run: Callable[[LIF, Tensor], Tensor], neuron: LIF, dtype: torch.dtype, steps: int = 6
) -> tuple[Tensor, ...]:
    neuron = neuron.to(dtype)
    generator = torch.Generator().manual_seed(5)
    current = torch.randn(steps, 3, 4, 5, generator=generator, dtype=torch.float64) * 1.5 + 0.7
    current = (current / neuron.unit).to(dtype).requires_grad_()
    upstream = torch.randn(current.shape, generator=generator, dtype=torch.float64).to(dtype)
    spikes = run(neuron, current)
    gradients = torch.autograd.grad(spikes, [current, *neuron.parameters()], upstream)
    assert 0.1 < spikes.mean() < 0.8
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    return spikes.detach(), *gradients


def call(neuron: LIF, current: Tensor) -> Tensor:
    spikes: Tensor = neuron(current)
    return spikes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("kind", NEURONS)
def test_explicit_backward_is_that_of_autograd(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    spikes, *found = spikes_and_gradients(call, NEURONS[kind](), dtype)
    same, *expected = spikes_and_gradients(plain, NEURONS[kind](), dtype)
    assert torch.equal(spikes, same)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        # a sum over 360 places for w: relative to its size, like the others
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_against_spikingjelly(theta: float) -> None:
    pytest.importorskip("spikingjelly")
    theirs = spikingjelly_lif(theta)
    spikes, gradient = spikes_and_gradients(call, LIF(theta), torch.float32)
    same, expected = spikes_and_gradients(lambda _, x: theirs(x), LIF(theta), torch.float32)
    assert torch.equal(spikes, same)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_surrogate_by_hand() -> None:
    """One step: ``ds/dx = alpha σ(1 - σ) / tau`` at ``σ(alpha (x/2 - 1))``."""
    x = torch.tensor([[1.0], [2.5]], dtype=torch.float64).T.contiguous().requires_grad_()
    LIF()(x).sum().backward()
    sigmoid = torch.sigmoid(ALPHA * (x.detach() / 2 - 1))
    torch.testing.assert_close(x.grad, ALPHA * sigmoid * (1 - sigmoid) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_membranes_are_float32_whatever_the_current(dtype: torch.dtype) -> None:
    """The membrane of ten steps of 0.001 apart from the threshold needs more digits than bfloat16 has."""
    current = (torch.randn(10, 4000, generator=torch.Generator().manual_seed(0)) + 1).to(dtype)
    spikes = LIF()(current)
    assert spikes.dtype == dtype
    assert torch.equal(spikes.float(), LIF()(current.float()))


def test_only_the_input_is_kept_for_backward() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    current = torch.randn(16, 10, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        LIF()(current)
    assert [tensor.shape for tensor in kept] == [current.shape]
    assert kept[0].data_ptr() == current.data_ptr()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecation notices
@pytest.mark.parametrize("kind", ["counts", "plif-tau-5"])
def test_compiled_is_eager(kind: str) -> None:
    compiled = torch.compile(call, fullgraph=True)
    spikes, *found = spikes_and_gradients(compiled, NEURONS[kind](), torch.float32)
    same, *expected = spikes_and_gradients(call, NEURONS[kind](), torch.float32)
    assert torch.equal(spikes, same)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["counts", "plif-tau-5"])
def test_compiled_on_cuda_is_eager_on_the_cpu(kind: str) -> None:
    def on_cuda(neuron: LIF, current: Tensor) -> Tensor:
        moved = neuron.cuda()
        return torch.compile(call, fullgraph=True)(moved, current.cuda()).cpu()

    spikes, found, *_ = spikes_and_gradients(on_cuda, NEURONS[kind](), torch.float32)
    same, expected, *_ = spikes_and_gradients(call, NEURONS[kind](), torch.float32)
    assert torch.equal(spikes, same)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
