"""STAtten network -> graph: batch norms folded, one node per module under the module's own name.

Residual currents are not nodes: whoever consumes the stream has one edge per contribution, oldest first. Summed from
left to right, that is the order in which the network adds them, and all consumers share the same partial sums.
"""

from collections.abc import Iterator

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from statten_deploy.frontend.neurons import DT, lif_node
from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool, verify
from statten_deploy.models.config import ModelConfig
from statten_deploy.models.neurons import LIF
from statten_deploy.models.statten import MLP, Attention, PatchEmbed, STAtten

Array = NDArray[np.float32]
Sources = list[str]
Grid = tuple[int, int]


def build_graph(model: STAtten) -> nir.NIRGraph:
    """The graph of a network in evaluation mode.

    Input node ``image`` [C, H, W] (the same frame every step) or ``frames`` [C, H, W] (a new one every step);
    output node ``logits`` [classes], the mean over the steps. Names in between are torch module paths.
    ``metadata["statten"]`` holds time_steps, dt in seconds, the input kind and the network's name.
    """
    builder = _Builder(model)
    builder.network(model)
    graph = nir.NIRGraph(builder.nodes, builder.edges, metadata=_metadata(model.config), type_check=False)
    verify(graph)
    return graph


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight [out, in, kh, kw] and bias [out] of ``norm(conv(x))`` in evaluation mode, computed in float64.

    ``W' = W g``, ``b' = (b - mean) g + beta`` with ``g = gamma / sqrt(var + eps)``. Differentiable.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = 0.0 if conv.bias is None else conv.bias.double()
    shifted = (bias - norm.running_mean.double()) * gain + norm.bias.double()
    return (conv.weight.double() * gain[:, None, None, None]).float(), shifted.float()


def folded_weights(model: STAtten) -> dict[str, tuple[Tensor, Tensor]]:
    """(weight, bias) of every weighted node of the graph, by its name; batch norms folded, differentiable."""
    return dict(_fold(model))


def _fold(model: STAtten) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """The same, one after the other."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            parent, _, own = name.rpartition(".")
            norm = model.get_submodule(f"{parent}.{own.replace('conv', 'bn')}")
            yield name, fold_batch_norm(module, norm)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            yield name, (module.weight, module.bias)


def _metadata(config: ModelConfig) -> dict[str, object]:
    return {
        "statten": {
            "format": 1,
            "name": config.name,
            "dataset": config.dataset,
            "time_steps": config.time_steps,
            "window_steps": config.attention_window,
            "dt": DT,
            "input": config.input,
            "classes": config.num_classes,
        }
    }


class _Builder:
    """Collects nodes and edges; every method adds one part of the network and returns what its current comes from."""

    def __init__(self, model: STAtten) -> None:
        self.config = model.config
        with torch.no_grad():
            self.weights = {name: tuple(map(_array, pair)) for name, pair in _fold(model)}
        self.nodes: dict[str, nir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []

    def add(self, name: str, node: nir.NIRNode, *inputs: Sources, ports: tuple[str, ...] = ("",)) -> Sources:
        self.nodes[name] = node
        for port, sources in zip(ports, inputs, strict=True):
            self.edges += [(source, f"{name}.{port}" if port else name) for source in sources]
        return [name]

    def conv(self, name: str, conv: nn.Conv2d, x: Sources, grid: Grid) -> Sources:
        weight, bias = self.weights[name]
        stride, padding = (_int_pair(value) for value in (conv.stride, conv.padding))
        return self.add(name, nir.Conv2d(grid, weight, stride, padding, (1, 1), 1, bias), x)

    def lif(self, name: str, neuron: LIF, x: Sources, shape: tuple[int, ...]) -> Sources:
        return self.add(name, lif_node(neuron, shape), x)

    def network(self, model: STAtten) -> None:
        config = self.config
        frame = (config.in_channels, *config.image_size)
        x = self.add(config.input, nir.Input({"input": np.array(frame)}), ports=())
        if config.mean is not None and config.std is not None:
            x = self.normalise(config.mean, config.std, x)
        x = self.patch_embed(model.patch_embed, x)
        for i, block in enumerate(model.block):
            x = self.attention(f"block.{i}.attn", block.attn, x)  # type: ignore[arg-type]
            x = self.mlp(f"block.{i}.mlp", block.mlp, x)  # type: ignore[arg-type]
        grid, D = config.token_grid, config.embed_dim
        zero = np.zeros(2, dtype=np.int64)
        x = self.add("head_pool", nir.AvgPool2d(np.array(grid), np.array(grid), zero), x)
        x = self.add("head_flatten", nir.Flatten({"input": np.array((D, 1, 1))}, 0, -1), x)
        x = self.lif("head_lif", model.head_lif, x, (D,))
        x = self.add("head", nir.Affine(*self.weights["head"]), x)
        x = self.add("head_mean", TemporalMean(), x)
        self.add("logits", nir.Output({"output": np.array([config.num_classes])}), x)

    def normalise(self, mean: tuple[float, ...], std: tuple[float, ...], x: Sources) -> Sources:
        """(x - mean) / std as a 1x1 convolution, so that callers of the graph feed plain images."""
        gain = 1 / np.asarray(std, dtype=np.float64)
        weight = np.diag(gain).astype(np.float32)[:, :, None, None]
        bias = (-np.asarray(mean) * gain).astype(np.float32)
        return self.add("normalize", nir.Conv2d(self.config.image_size, weight, (1, 1), (0, 0), (1, 1), 1, bias), x)

    def patch_embed(self, module: PatchEmbed, x: Sources) -> Sources:
        grid = self.config.image_size
        for i in range(4):
            suffix = str(i) if i else ""
            conv, lif = (getattr(module, f"proj_{part}{suffix}") for part in ("conv", "lif"))
            x = self.conv(f"patch_embed.proj_conv{suffix}", conv, x, grid)
            pooled = module.pooled[i]
            halved = ((grid[0] + 1) // 2, (grid[1] + 1) // 2) if pooled else grid
            if i == 3:  # the last stage pools currents, and keeps them as the residual
                if pooled and not module.strided:
                    x = self.add("patch_embed.maxpool3", MaxPool2d((3, 3), (2, 2), (1, 1)), x)
                residual = x
            shape = halved if module.strided or i == 3 else grid
            x = self.lif(f"patch_embed.proj_lif{suffix}", lif, x, (conv.out_channels, *shape))
            if i < 3 and pooled and not module.strided:
                x = self.add(f"patch_embed.maxpool{suffix}", SpikeMaxPool2d((3, 3), (2, 2), (1, 1)), x)
            grid = halved
        return self.conv("patch_embed.rpe_conv", module.rpe_conv, x, grid) + residual

    def attention(self, name: str, module: Attention, x: Sources) -> Sources:
        config, grid = self.config, self.config.token_grid
        shape = (config.embed_dim, *grid)
        s = self.lif(f"{name}.shortcut_lif", module.shortcut_lif, x, shape)
        branches = []
        for part in ("q", "k", "v"):
            conv, lif = (getattr(module, f"{part}_{kind}") for kind in ("conv", "lif"))
            branch = self.conv(f"{name}.{part}_conv", conv, s, grid)
            branch = self.lif(f"{name}.{part}_lif", lif, branch, shape)
            branches.append(self.dvs_pool(f"{name}.{part}_pool", branch))
        if config.attention == "STAtten":
            y = self.statten(name, module, s, *branches)
        else:
            y = self.sdt(name, module, *branches)
        return x + self.conv(f"{name}.proj_conv", module.proj_conv, y, grid)

    def statten(self, name: str, module: Attention, s: Sources, q: Sources, k: Sources, v: Sources) -> Sources:
        config = self.config
        shape = (config.embed_dim, *config.token_grid)
        node = STAttenAttention(config.num_heads, config.attention_window, config.window, config.token_groups)
        counts = self.add(f"{name}.statten", node, q, k, v, ports=("q", "k", "v"))
        y = self.lif(f"{name}.attn_lif", module.attn_lif, counts, shape)
        if not config.dvs_mode:
            return y
        pooled = self.dvs_pool(f"{name}.s_pool", s)  # y · s + s, the sum being two edges
        return self.add(f"{name}.gate", SpikeAnd(), y, pooled, ports=("a", "b")) + pooled

    def sdt(self, name: str, module: Attention, q: Sources, k: Sources, v: Sources) -> Sources:
        grid = np.array(self.config.token_grid)
        kv = self.token_pool(f"{name}.kv_pool", self.add(f"{name}.kv", SpikeAnd(), k, v, ports=("a", "b")))
        total = self.add(f"{name}.kv_sum", nir.SumPool2d(grid, grid, np.zeros(2, dtype=np.int64)), kv)
        lif = self.lif(f"{name}.talking_heads_lif", module.talking_heads_lif, total, (self.config.embed_dim, 1, 1))
        gated = self.add(f"{name}.qkv", SpikeAnd(), q, lif, ports=("a", "b"))
        return self.token_pool(f"{name}.qkv_pool", gated)

    def dvs_pool(self, name: str, x: Sources) -> Sources:
        return self.add(name, SpikeMaxPool2d((3, 3), (1, 1), (1, 1)), x) if self.config.dvs_mode else x

    def token_pool(self, name: str, x: Sources) -> Sources:
        return self.add(name, TokenMaxPool(self.config.num_heads), x) if self.config.dvs_mode else x

    def mlp(self, name: str, module: MLP, x: Sources) -> Sources:
        D, hidden, grid = self.config.embed_dim, self.config.hidden_dim, self.config.token_grid
        y = self.lif(f"{name}.fc1_lif", module.fc1_lif, x, (D, *grid))
        y = self.conv(f"{name}.fc1_conv", module.fc1_conv, y, grid)
        if module.inner_shortcut:
            x = y = x + y
        y = self.lif(f"{name}.fc2_lif", module.fc2_lif, y, (hidden, *grid))
        return x + self.conv(f"{name}.fc2_conv", module.fc2_conv, y, grid)


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.cpu().numpy(), dtype=np.float32)


def _int_pair(value: object) -> tuple[int, int]:
    height, width = (int(part) for part in np.asarray(value))
    return height, width
