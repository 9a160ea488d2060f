"""The released implementation's way of computing the network, as the baseline of speed.py: PyTorch, eager, float32.

What docs/model.md describes, operation by operation: all steps of a batch go through a layer at once, batch norms are
layers, and the neuron is a plain loop over the steps, v <- v + (x - v) / tau, spike = v >= theta, v <- 0 where spike.
Weights are those of a `STAtten` network; its results are compared before anything is timed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statten_deploy.models.statten import STAtten


class LIF(nn.Module):
    """One step after the other, as the released code without its CUDA kernels."""

    def __init__(self, theta: float = 1.0) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:  # [T, B, ...]
        v, spikes = torch.zeros_like(x[0]), []
        for current in x:
            v = v + (current - v) / 2.0
            spike = (v >= self.theta).to(v)
            v = (1.0 - spike) * v
            spikes.append(spike)
        return torch.stack(spikes)


class Released(nn.Module):
    """``forward(x)``: [B, C, H, W] or [B, T, C, H, W] -> logits [B, classes]."""

    def __init__(self, network: STAtten) -> None:
        super().__init__()
        self.network, self.config = network, network.config
        self.lif, self.attn_lif = LIF(), LIF(0.5)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        config, patch = self.config, self.network.patch_embed
        if config.mean is not None:
            x = (x - self.network.mean) / self.network.std
        image = x.dim() == 4
        x = x.repeat(config.time_steps, 1, 1, 1, 1) if image else x.transpose(0, 1).contiguous()  # [T, B, C, H, W]
        for stage in range(4):
            end = str(stage) if stage else ""
            x = conv_norm(getattr(patch, f"proj_conv{end}"), getattr(patch, f"proj_bn{end}"), x)
            if stage < 3:
                x = self.lif(x)
            if config.pooling_stat[stage] == "1":
                x = pool(x, stride=2)
        x = conv_norm(patch.rpe_conv, patch.rpe_bn, self.lif(x)) + x
        for block in self.network.block:
            x = self.attention(block.attn, x)
            hidden = conv_norm(block.mlp.fc1_conv, block.mlp.fc1_bn, self.lif(x))
            x = conv_norm(block.mlp.fc2_conv, block.mlp.fc2_bn, self.lif(hidden)) + x
        logits: Tensor = self.network.head(self.lif(x.flatten(3).mean(3))).mean(0)
        return logits

    def attention(self, attn: nn.Module, x: Tensor) -> Tensor:
        config = self.config
        steps, batch, channels, height, width = x.shape
        heads, window, tokens = config.num_heads, config.chunk_size, height * width
        spikes, dvs = self.lif(x), config.dvs_mode

        def branch(port: str) -> Tensor:  # [chunks, B, heads, window · tokens, d]
            y = self.lif(conv_norm(getattr(attn, f"{port}_conv"), getattr(attn, f"{port}_bn"), spikes))
            y = pool(y) if dvs else y
            y = y.reshape(steps // window, window, batch, heads, channels // heads, tokens)
            return y.permute(0, 2, 3, 1, 5, 4).reshape(steps // window, batch, heads, window * tokens, -1)

        q, k, v = (branch(port) for port in "qkv")
        # Powers of two: the released attention, in which such a scale comes last, and the same in counts agree.
        scale = 1 / (heads * heads * window) if dvs else 1 / heads
        y = q @ (k.transpose(-2, -1) @ v) * scale
        y = y.reshape(steps // window, batch, heads, window, tokens, -1).permute(0, 3, 1, 2, 5, 4)
        y = self.attn_lif(y.reshape(x.shape))
        if dvs:
            gate = pool(spikes)
            y = y * gate + gate
        return conv_norm(attn.proj_conv, attn.proj_bn, y) + x


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Both on all steps at once."""
    y: Tensor = norm(conv(x.flatten(0, 1)))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def pool(x: Tensor, stride: int = 1) -> Tensor:
    """3x3 maximum of every step."""
    y = F.max_pool2d(x.flatten(0, 1), 3, stride, 1)
    return y.reshape(*x.shape[:2], *y.shape[1:])
