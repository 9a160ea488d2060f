"""The released architecture in plain eager PyTorch, one LIF step at a time: what benchmarks compare against.

Written from the description of the network alone; nothing of statten_deploy's network is used. Keys are the released
ones, so ``load_state_dict`` takes the weights of a `statten_deploy` network and of a released checkpoint. As released,
a static image is repeated for every time step before the first convolution.

    net = EagerSTAtten(config)                        # config: statten_deploy.models.config.ModelConfig
    net = EagerSTAtten(config, neuron=spikingjelly_lif)   # the same network around SpikingJelly's multi-step neurons
    logits = net(x)                                   # [B, C, H, W] or [B, T, C, H, W] -> [B, classes]
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ALPHA = 4.0


class Heaviside(torch.autograd.Function):
    """Step forward, derivative of a sigmoid (alpha 4) backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        sigmoid = torch.sigmoid(ALPHA * x)
        return grad * (ALPHA * sigmoid * (1 - sigmoid))


class StepLIF(nn.Module):
    """``v <- v + (x - v) / 2``, a spike at ``v >= theta``, hard reset to 0 (detached): [T, ...] -> [T, ...]."""

    def __init__(self, theta: float = 1.0) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        spikes = []
        for t in range(x.shape[0]):
            v = v + (x[t] - v) / 2.0
            spike = Heaviside.apply(v - self.theta)
            v = (1.0 - spike.detach()) * v
            spikes.append(spike)
        return torch.stack(spikes)


def spikingjelly_lif(theta: float = 1.0) -> nn.Module:
    """SpikingJelly's multi-step neuron as the released code sets it up, torch backend; state is reset at every call."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(
        tau=2.0,
        decay_input=True,
        v_threshold=theta,
        v_reset=0.0,
        surrogate_function=surrogate.Sigmoid(alpha=ALPHA),
        detach_reset=True,
        step_mode="m",
    )
    node.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
    return node


Neuron = Callable[[float], nn.Module]


def folded(layer: nn.Module, x: Tensor) -> Tensor:
    """A stateless layer over [T, B, ...]."""
    y = layer(x.flatten(0, 1))
    return y.reshape(*x.shape[:2], *y.shape[1:])


class PatchEmbed(nn.Module):
    def __init__(self, config: Any, neuron: Neuron) -> None:
        super().__init__()
        width = config.embed_dim
        self.stat = config.pooling_stat
        widths = [config.in_channels, width // 8, width // 4, width // 2, width]
        for i in range(4):
            suffix = str(i or "")
            setattr(self, f"proj_conv{suffix}", nn.Conv2d(widths[i], widths[i + 1], 3, 1, 1, bias=False))
            setattr(self, f"proj_bn{suffix}", nn.BatchNorm2d(widths[i + 1]))
            setattr(self, f"proj_lif{suffix}", neuron(1.0))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.rpe_conv = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.rpe_bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(3):
            suffix = str(i or "")
            x = folded(getattr(self, f"proj_bn{suffix}"), folded(getattr(self, f"proj_conv{suffix}"), x))
            x = getattr(self, f"proj_lif{suffix}")(x)
            if self.stat[i] == "1":
                x = folded(self.pool, x)
        x = folded(self.proj_bn3, folded(self.proj_conv3, x))
        if self.stat[3] == "1":
            x = folded(self.pool, x)
        feature = x
        x = folded(self.rpe_bn, folded(self.rpe_conv, self.proj_lif3(x)))
        return x + feature


class Attention(nn.Module):
    def __init__(self, config: Any, neuron: Neuron) -> None:
        super().__init__()
        width = config.embed_dim
        self.heads, self.chunk, self.dvs = config.num_heads, config.chunk_size, config.dvs_mode
        self.shortcut_lif = neuron(1.0)
        for name in "qkv":
            setattr(self, f"{name}_conv", nn.Conv2d(width, width, 1, bias=False))
            setattr(self, f"{name}_bn", nn.BatchNorm2d(width))
            setattr(self, f"{name}_lif", neuron(1.0))
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.attn_lif = neuron(0.5)
        self.talking_heads = nn.Conv1d(self.heads, self.heads, 1, bias=False).requires_grad_(False)
        self.proj_conv = nn.Conv2d(width, width, 1)
        self.proj_bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        T, B, C, H, W = x.shape
        s = self.shortcut_lif(x)
        rows = []
        for name in "qkv":
            y = folded(getattr(self, f"{name}_bn"), folded(getattr(self, f"{name}_conv"), s))
            y = getattr(self, f"{name}_lif")(y)
            if self.dvs:
                y = folded(self.pool, y)
            y = y.reshape(T // self.chunk, self.chunk, B, self.heads, C // self.heads, H * W)
            rows.append(y.permute(0, 2, 3, 1, 5, 4).flatten(3, 4))  # [T/S, B, h, S·N, d]
        q, k, v = rows
        scale = 1 / (H * H * self.chunk) if self.dvs else 1 / H
        y = q @ (k.transpose(-2, -1) @ v) * scale
        y = y.reshape(T // self.chunk, B, self.heads, self.chunk, H * W, C // self.heads)
        y = self.attn_lif(y.permute(0, 3, 1, 2, 5, 4).reshape(T, B, C, H, W))
        if self.dvs:
            pooled = folded(self.pool, s)
            y = y * pooled + pooled
        return folded(self.proj_bn, folded(self.proj_conv, y)) + x


class MLP(nn.Module):
    def __init__(self, config: Any, neuron: Neuron) -> None:
        super().__init__()
        width, hidden = config.embed_dim, config.hidden_dim
        self.fc1_lif, self.fc2_lif = neuron(1.0), neuron(1.0)
        self.fc1_conv, self.fc1_bn = nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden)
        self.fc2_conv, self.fc2_bn = nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = folded(self.fc1_bn, folded(self.fc1_conv, self.fc1_lif(x)))
        return folded(self.fc2_bn, folded(self.fc2_conv, self.fc2_lif(y))) + x


class Block(nn.Module):
    def __init__(self, config: Any, neuron: Neuron) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(config, neuron), MLP(config, neuron)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attn(x))


class EagerSTAtten(nn.Module):
    """[B, C, H, W] or [B, T, C, H, W] -> [B, classes]. Released networks with STAtten attention and LIF neurons."""

    def __init__(self, config: Any, neuron: Neuron = StepLIF) -> None:
        super().__init__()
        released = (config.attention, config.neuron, config.pooling, config.window, config.divide)
        if released != ("STAtten", "lif", "maxpool", "block", "temporal"):
            raise ValueError(f"not a released STAtten network: {released}")
        self.steps = config.time_steps
        self.patch_embed = PatchEmbed(config, neuron)
        self.block = nn.ModuleList(Block(config, neuron) for _ in range(config.depth))
        self.head_lif = neuron(1.0)
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        mean, std = (torch.tensor(values or (), dtype=torch.float32) for values in (config.mean, config.std))
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_steps(x).mean(0)

    def forward_steps(self, x: Tensor) -> Tensor:
        """Logits of every step, [T, B, classes]."""
        if self.mean.numel():
            x = (x - self.mean) / self.std
        x = x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1) if x.dim() == 4 else x.transpose(0, 1)
        x = self.patch_embed(x)
        for block in self.block:
            x = block(x)
        return self.head(self.head_lif(x.flatten(3).mean(3)))
