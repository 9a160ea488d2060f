"""Many processes: how many there are, and batch norms over the batches of all of them."""

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn

from statten_deploy.errors import ConfigError
from statten_deploy.train.config import TrainConfig


def layout(config: TrainConfig, environment: Mapping[str, str] = os.environ) -> tuple[int | str, int]:
    """(processes per node, nodes): what the configuration says and torchrun or SLURM have started.

    Raises:
        ConfigError: they contradict each other.
    """
    launcher, devices, nodes = _launched(environment)
    if not launcher:
        if (config.nodes or 1) > 1 and "NODE_RANK" not in environment:  # Lightning's own start sets it
            raise ConfigError(
                f"--nodes {config.nodes}: nothing has started this process on other machines; start it there with "
                "torchrun or srun"
            )
        return config.devices or 1, config.nodes or 1
    told = (config.devices, config.nodes)
    for option, asked, found in (("--devices", told[0], devices), ("--nodes", told[1], nodes)):
        if asked not in (None, "auto", found):
            raise ConfigError(
                f"{option} {asked}: {launcher} has started {devices} processes on each of {nodes} nodes; drop the "
                "option, or start as many"
            )
    return devices, nodes


def _launched(environment: Mapping[str, str]) -> tuple[str, int, int]:
    """Who started this process as one of several, processes per node, nodes."""
    if "TORCHELASTIC_RUN_ID" in environment:
        devices = int(environment["LOCAL_WORLD_SIZE"])
        return "torchrun", devices, int(environment["WORLD_SIZE"]) // devices
    if "SLURM_PROCID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(environment.get("SLURM_NNODES", "1"))
        return "srun", int(environment.get("SLURM_NTASKS", "1")) // nodes, nodes
    return "", 1, 1


class _SumOverProcesses(torch.autograd.Function):
    """Sum forward; backward too, since every process's loss depends on what this one adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        gradient = grad_outputs[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gathered(x: Tensor) -> Tensor:
    """[...] of every process -> [processes, ...], differentiable."""
    places = torch.zeros(dist.get_world_size(), *x.shape, dtype=x.dtype, device=x.device)
    row = torch.arange(len(places), device=x.device).reshape(-1, *(1,) * x.dim()) == dist.get_rank()
    rows: Tensor = _SumOverProcesses.apply(torch.where(row, x, places))
    return rows


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with mean and variance over the batches of all processes, on any device.

    Means and variances of the processes are combined as Chan et al. (1983) do, which loses no digits:
    ``var = Σ n_i (var_i + (mean_i - mean)²) / n``. (`torch.nn.SyncBatchNorm` runs on GPUs only.)
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            evaluated: Tensor = super().forward(input)
            return evaluated
        x = input if input.dtype == torch.float64 else input.float()
        own_var, own_mean = torch.var_mean(x, (0, 2, 3), correction=0)
        own_count = torch.full_like(own_mean[:1], x.numel() // x.shape[1])
        means, variances, counts = gathered(torch.cat([own_mean, own_var, own_count])).split(
            [len(own_mean), len(own_var), 1], 1
        )  # [processes, C], [processes, C], [processes, 1]
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        variance = ((variances + (means - mean) ** 2) * counts).sum(0) / count
        self._track(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shift = self.bias - mean * scale
        normed: Tensor = x * scale[:, None, None] + shift[:, None, None]
        return normed.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)


class BatchNormSync(LayerSync):
    """Lets the batch norms of a network in training see the batches of all processes. Names and tensors stay."""

    def apply(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SyncedBatchNorm2d
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if type(module) is SyncedBatchNorm2d:
                module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        return model
