"""The spiking transformer with spatial-temporal attention, top to bottom.

Lee et al., "Spiking Transformer with Spatial-Temporal Attention", CVPR 2025 (arXiv 2409.19764). Module names are
those of the released implementation, so its checkpoints load unchanged. T steps, B batch, C = D channels,
H x W token grid, N = H·W tokens, h heads, d = D / h, S chunk size. What travels between blocks is a real current.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statten_deploy.errors import InputError
from statten_deploy.models.config import ModelConfig
from statten_deploy.models.neurons import LIF, PLIF


class Call(Protocol):
    """Runs ``part(module, *arguments)``, a part of the network that takes and returns few tensors."""

    def __call__(self, part: Callable[..., Tensor], module: nn.Module, *arguments: Tensor | int) -> Tensor: ...


def plain_call(part: Callable[..., Tensor], module: nn.Module, *arguments: Tensor | int) -> Tensor:
    """The part as it is."""
    return part(module, *arguments)


def over_steps(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a stateless layer to every step: [T, B, ...] -> [T, B, ...]."""
    y: Tensor = layer(x.flatten(0, 1))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def make_neuron(config: ModelConfig) -> LIF:
    """The neuron of the MLP and the head: PLIF in `plif` mode. Patch embedding and attention are always LIF."""
    return PLIF() if config.neuron == "plif" else LIF()


class PatchEmbed(nn.Module):
    """Spiking patch splitting: four 3x3 conv stages of width D/8, D/4, D/2, D.

    Frames [T, B, in, ., .], or an image [1, B, in, ., .] for all `steps` -> current [T, B, D, H, W].
    """

    proj_lif: LIF
    proj_lif1: LIF
    proj_lif2: LIF
    proj_lif3: LIF

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.embed_dim
        self.pooled = [stage == "1" for stage in config.pooling_stat]
        self.strided = config.pooling == "strided"
        widths = [config.in_channels, D // 8, D // 4, D // 2, D]
        for i in range(4):
            suffix = str(i) if i else ""
            stride = 2 if self.strided and self.pooled[i] else 1
            setattr(self, f"proj_conv{suffix}", nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1, bias=False))
            setattr(self, f"proj_bn{suffix}", nn.BatchNorm2d(widths[i + 1]))
            setattr(self, f"proj_lif{suffix}", LIF())
            if self.pooled[i] and not self.strided:
                setattr(self, f"maxpool{suffix}", nn.MaxPool2d(3, 2, 1))
        self.rpe_conv = nn.Conv2d(D, D, 3, 1, 1, bias=False)
        self.rpe_bn = nn.BatchNorm2d(D)

    def forward(self, x: Tensor, steps: int, call: Call) -> Tensor:
        for i in range(3):
            x = call(PatchEmbed.stage, self, i, x, steps)  # spikes [T, B, D/8 · 2^i, ., .]
        return call(PatchEmbed.last_stage, self, x)  # [T, B, D, H, W]

    def stage(self, i: int, x: Tensor, steps: int) -> Tensor:
        """Conv, BN, LIF, pooling of spikes: [T, B, ...] or an image [1, B, ...] -> spikes [T, B, ...]."""
        suffix = str(i or "")
        x = self._current(i, x)
        # An image is the same at every step, so its first conv and BN are too.
        x = getattr(self, f"proj_lif{suffix}")(x.expand(steps, *x.shape[1:]))
        return self._pool(i, x)

    def last_stage(self, x: Tensor) -> Tensor:
        """Conv, BN, pooling of currents, which are what is added to the conv and BN behind the LIF."""
        x_feat = self._pool(3, self._current(3, x))  # [T, B, D, H, W]: pools currents, not spikes
        x = self.proj_lif3(x_feat)
        return over_steps(nn.Sequential(self.rpe_conv, self.rpe_bn), x) + x_feat

    def _pool(self, i: int, x: Tensor) -> Tensor:
        pool = getattr(self, f"maxpool{i or ''}", None)
        return x if pool is None else over_steps(pool, x)

    def _current(self, i: int, x: Tensor) -> Tensor:
        suffix = str(i or "")
        return over_steps(nn.Sequential(getattr(self, f"proj_conv{suffix}"), getattr(self, f"proj_bn{suffix}")), x)


def statten_counts(q: Tensor, k: Tensor, v: Tensor, heads: int, window: int, *, sliding: bool, groups: int) -> Tensor:
    """Attention in counts, ``A = Q (Kᵀ V)`` per window, head and token group: [T, B, C, H, W] of 0/1 -> integers.

    Exact in float32 below 2^24; runs outside autocast for that reason.
    """
    T, B, C, H, W = q.shape
    d, n = C // heads, H * W // groups
    if sliding:
        q, k, v = (x.reshape(T, B, heads, d, H * W) for x in (q, k, v))
        kv = k @ v.transpose(-1, -2)  # [T, B, h, d, d]: this step's
        kv = F.pad(kv, (0,) * 8 + (window - 1, 0)).unfold(0, T, 1).sum(0).movedim(-1, 0)  # steps t-S+1 .. t
        return (kv.transpose(-1, -2) @ q).reshape(T, B, C, H, W)
    chunks = T // window
    shape = (chunks, window, B, heads, d, groups, n)
    q, k, v = (
        x.reshape(shape).permute(0, 2, 3, 5, 4, 1, 6).reshape(chunks, B, heads, groups, d, window * n)
        for x in (q, k, v)
    )
    kv = k @ v.transpose(-1, -2)  # [T/S, B, h, G, d, d]: all rows of the chunk
    a = kv.transpose(-1, -2) @ q  # [T/S, B, h, G, d, S·n]
    a = a.reshape(chunks, B, heads, groups, d, window, n).permute(0, 5, 1, 2, 4, 3, 6)
    return a.reshape(T, B, C, H, W)


class Attention(nn.Module):
    """Spiking self-attention with a membrane shortcut: current [T, B, D, H, W] -> current [T, B, D, H, W]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, h = config.embed_dim, config.num_heads
        self.config = config
        self.shortcut_lif = LIF()
        for name in ("q", "k", "v"):
            setattr(self, f"{name}_conv", nn.Conv2d(D, D, 1, bias=False))
            setattr(self, f"{name}_bn", nn.BatchNorm2d(D))
            setattr(self, f"{name}_lif", LIF())
        if config.dvs_mode:
            self.q_pool, self.k_pool, self.v_pool, self.s_pool = (nn.MaxPool2d(3, 1, 1) for _ in range(4))
        if config.attention == "STAtten":
            self.attn_lif = LIF(theta=0.5, unit=config.attention_scale)
        else:
            self.talking_heads_lif = LIF(theta=0.5)
        # In every released checkpoint, in no forward pass.
        self.talking_heads = nn.Conv1d(h, h, 1, bias=False).requires_grad_(False)
        self.proj_conv = nn.Conv2d(D, D, 1)
        self.proj_bn = nn.BatchNorm2d(D)

    def _branch(self, name: str, s: Tensor) -> Tensor:
        current = over_steps(nn.Sequential(getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")), s)
        spikes: Tensor = getattr(self, f"{name}_lif")(current)
        return over_steps(getattr(self, f"{name}_pool"), spikes) if self.config.dvs_mode else spikes

    def forward(self, x: Tensor) -> Tensor:
        s = self.shortcut_lif(x)  # [T, B, D, H, W]
        q, k, v = (self._branch(name, s) for name in ("q", "k", "v"))  # [T, B, D, H, W]
        with torch.autocast(x.device.type, enabled=False):  # counts, which 16-bit floats would round
            wide = (z if z.dtype == torch.float64 else z.float() for z in (q, k, v, s))
            y = self._statten(*wide) if self.config.attention == "STAtten" else self._sdt(*wide)
        y = y.to(s.dtype)
        return over_steps(nn.Sequential(self.proj_conv, self.proj_bn), y) + x

    def _statten(self, q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> Tensor:
        config = self.config
        counts = statten_counts(
            q,
            k,
            v,
            config.num_heads,
            config.attention_window,
            sliding=config.window == "sliding",
            groups=config.token_groups,
        )
        y: Tensor = self.attn_lif(counts)
        if config.dvs_mode:
            s_pool = over_steps(self.s_pool, s)
            y = y * s_pool + s_pool  # 0, 1 or 2
        return y

    def _sdt(self, q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        kv = self._token_pool(k * v)
        kv = self.talking_heads_lif(kv.sum((-2, -1), keepdim=True))  # [T, B, D, 1, 1]
        return self._token_pool(q * kv)

    def _token_pool(self, x: Tensor) -> Tensor:
        """As released, the SDT mode on events pools over (token, channel in head)."""
        if not self.config.dvs_mode:
            return x
        T, B, _, H, W = x.shape
        planes = x.reshape(T * B, self.config.num_heads, -1, H * W)  # [T·B, h, d, N]
        return F.max_pool2d(planes, 3, 1, 1).reshape(x.shape)


class MLP(nn.Module):
    """Two 1x1 convolutions behind spikes, with a membrane shortcut: current [T, B, D, H, W] -> the same."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, hidden = config.embed_dim, config.hidden_dim
        self.fc1_lif = make_neuron(config)
        self.fc1_conv = nn.Conv2d(D, hidden, 1)
        self.fc1_bn = nn.BatchNorm2d(hidden)
        self.fc2_lif = make_neuron(config)
        self.fc2_conv = nn.Conv2d(hidden, D, 1)
        self.fc2_bn = nn.BatchNorm2d(D)
        self.inner_shortcut = hidden == D  # as released, mlp_ratio 1 adds the identity after fc1_bn too

    def forward(self, x: Tensor) -> Tensor:
        y = over_steps(nn.Sequential(self.fc1_conv, self.fc1_bn), self.fc1_lif(x))  # [T, B, 4D, H, W]
        if self.inner_shortcut:
            x = y = y + x
        return over_steps(nn.Sequential(self.fc2_conv, self.fc2_bn), self.fc2_lif(y)) + x


class Block(nn.Module):
    """Attention, then MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.attn(x))
        return y


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """The block with its hooks."""
    y: Tensor = block(x)
    return y


class STAtten(nn.Module):
    """The whole network. Input [B, C, H, W] (static) or [B, T, C, H, W] (frames); output logits [B, classes].

    Raises:
        InputError: the input's shape is not what the configuration says.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.block = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_lif = make_neuron(config)
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        mean, std = (torch.tensor(values or (), dtype=torch.float32) for values in (config.mean, config.std))
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_steps(x).mean(0)

    def forward_steps(self, x: Tensor, call: Call | None = None) -> Tensor:
        """Logits of every step, [T, B, classes]: what the TET loss needs.

        `call` runs the parts of the network, for training that compiles or checkpoints them.
        """
        self._check(x)
        call = call or plain_call
        if self.config.mean is not None:
            x = (x - self.mean) / self.std
        x = x.unsqueeze(0) if x.dim() == 4 else x.transpose(0, 1)  # [1 or T, B, C, H, W]
        x = self.patch_embed(x, self.config.time_steps, call)  # [T, B, D, H, W]
        for block in self.block:
            x = call(run_block, block, x)
        spikes = self.head_lif(x.mean((-2, -1)))  # [T, B, D]
        logits: Tensor = self.head(spikes)
        return logits

    def _check(self, x: Tensor) -> None:
        config = self.config
        frame = (config.in_channels, *config.image_size)
        expected = frame if config.input == "image" else (config.time_steps, *frame)
        if tuple(x.shape[1:]) != expected:
            raise InputError(
                f"input of shape {list(x.shape)}: the network takes [batch, {', '.join(map(str, expected))}]"
            )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
