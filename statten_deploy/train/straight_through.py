"""The integer network of a network under training, with gradients: forward in integers, backward as if nothing rounded.

Forward is `statten_deploy.simulate.integer` on ``quantize(build_graph(model), options)``, so training sees the very
integers that are deployed. Backward, weights and biases stand for the real ones they were rounded from, shifts and
saturation pass gradients on, and a neuron's spike has the derivative of the float neuron's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from statten_deploy.fixed_point.arithmetic import CURRENT_SHIFT
from statten_deploy.frontend import build_graph, folded_weights
from statten_deploy.ir.integer import InputEncoder, IntegerConv2d, TemporalSum
from statten_deploy.models.neurons import LIF, SURROGATE_ALPHA
from statten_deploy.models.statten import STAtten
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.simulate.integer import IntegerNetwork, Observer
from statten_deploy.simulate.integer_neurons import IntegerNeurons


class StraightThroughNetwork(IntegerNetwork):
    """``quantize(build_graph(model), options)`` as it stands now, differentiable in the parameters of `model`.

    Batch norms are folded with their running statistics, which training does not move any more.
    """

    def __init__(self, model: STAtten, options: QuantizeOptions) -> None:
        device = next(model.parameters()).device
        super().__init__(quantize(build_graph(model), options), device)
        for name, (weight, bias) in folded_weights(model).items():
            self._attach(model, name, weight, bias)
        self.lifs = {name: lif for name, lif in model.named_modules() if isinstance(lif, LIF)}
        (self.sum,) = (name for name in self.order if isinstance(self.graph.nodes[name], TemporalSum))
        (self.readout,) = self.into[self.sum]["input"]

    def forward_steps(self, x: Tensor) -> Tensor:
        """Logits of every step in real units, [T, B, classes]."""
        logits = self.run(x, keep=[self.readout])[self.readout]
        unit = float(self.graph.nodes[self.sum].scale) * self.time_steps
        return logits * unit

    def _attach(self, model: STAtten, name: str, weight: Tensor, bias: Tensor) -> None:
        """Tie a branch to its real weights: ``a = scale · x`` says what an integer is worth."""
        node: Any = self.graph.nodes[name]
        integers, integer_bias = self.weights[name]
        scale = torch.from_numpy(node.scale).to(integers)
        (source, *_) = self.into[name]["input"]
        if isinstance(self.graph.nodes[source], InputEncoder):
            weight = weight * self._input_gain(model, source).to(weight)
        real = weight.to(integers) * scale.reshape(-1, *(1,) * (weight.dim() - 1))
        if isinstance(node, IntegerConv2d):
            # The neurons behind have the bias; here it is only a way for its gradient.
            integer_bias = torch.zeros_like(scale)
        assert integer_bias is not None
        self.weights[name] = _as_if(integers, real), _as_if(integer_bias, bias.to(scale) * scale)

    def _input_gain(self, model: STAtten, encoder: str) -> Tensor:
        """What one unit of the encoded input is worth in the first convolution, [C, 1, 1]."""
        scale, _ = self.constants[encoder]
        return scale if model.config.std is None else scale / model.std

    def fire(self, name: str, x: Tensor, observe: Observer | None) -> Tensor:
        lif, layer = self.lifs[name], self.neurons[name]
        see = None if observe is None else partial(observe, name, layer)
        return fire(x, torch.as_tensor(lif.decay(), device=x.device), layer, lif.theta, see)


def fire(
    x: Tensor, decay: Tensor, layer: IntegerNeurons, theta: float, see: Callable[[Tensor], None] | None = None
) -> Tensor:
    """Spikes [T, B, ...] of integer neurons, differentiable in their input and in the decay c = 1 / tau.

    Forward in integers. Backward through time with the surrogate derivative at ``θ (v' / limit - 1)``: in real units v'
    is ``c v' / (64 K)`` and the limit θ, so that this is the overshoot of the float neuron. c learns through what the
    membrane keeps and through the threshold, which is a multiple of 1 / c. `see` is shown the membranes before reset.
    """
    spikes: Tensor = _Neurons.apply(x, decay, layer, theta, see)
    return spikes


def _as_if(value: Tensor, real: Tensor) -> Tensor:
    """`value`, whose gradient goes to `real`."""
    return value + (real - real.detach())


class _Neurons(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, decay: Tensor, layer: IntegerNeurons, theta: float, see: Callable[[Tensor], None] | None
    ) -> Tensor:
        before = layer(x)
        if see is not None:
            see(before)
        ctx.save_for_backward(before, decay)
        ctx.layer, ctx.theta, ctx.held, ctx.shape = layer, theta, x.shape[0] == 1, x.shape
        return (before > layer.limit).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        before, decay = ctx.saved_tensors
        layer, theta = ctx.layer, ctx.theta
        limit = layer.limit.clamp(min=1).to(torch.float32)
        membranes = before.to(torch.float32)
        overshoot = (membranes / limit - 1) * theta
        sigmoid = torch.sigmoid(SURROGATE_ALPHA * overshoot)
        to_overshoot = grad_outputs[0] * (SURROGATE_ALPHA * sigmoid * (1 - sigmoid))
        to_membrane = to_overshoot * (theta / limit)
        silent = (before <= layer.limit).to(torch.float32)  # a reset is a constant
        kept = layer.kept / 2**layer.bits
        for t in range(len(before) - 2, -1, -1):
            to_membrane[t].addcmul_(to_membrane[t + 1], silent[t], value=kept)
        to_input = to_membrane * 2.0 ** (CURRENT_SHIFT + layer.node.input_exponent)
        if ctx.held:
            to_input = to_input.sum(0, keepdim=True)
        to_decay = None
        if ctx.needs_input_grad[1]:
            through_threshold = (to_overshoot * (overshoot + theta)).sum() / decay
            to_decay = through_threshold - (to_membrane[1:] * (membranes * silent)[:-1]).sum()
        return to_input.sum_to_size(ctx.shape), to_decay, None, None, None
