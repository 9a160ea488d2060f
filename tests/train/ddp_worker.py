"""One of several processes that torchrun starts: trains, then computes the gradients of its share of a batch.

torchrun --nproc-per-node 2 ddp_worker.py RECIPE DATA OUT
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from statten_deploy.train import read_recipe, train
from statten_deploy.train.distributed import BatchNormSync
from statten_deploy.train.losses import mean_loss
from tests.conftest import lively_input, lively_model, small_config

BATCH = 6


def gradients(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Of the mean loss over `BATCH` samples, in float64; of all processes in every one of them."""
    config = small_config("plif")
    model = lively_model(config).double().train()
    if ranks > 1:
        BatchNormSync().apply(model)
    network = DistributedDataParallel(model, broadcast_buffers=False) if ranks > 1 else model
    x, target = lively_input(config, BATCH).double(), torch.arange(BATCH) % config.num_classes
    forward = network(x[rank::ranks])
    mean_loss(forward[None], target[rank::ranks]).backward()
    state = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**state, **{name: buffer for name, buffer in model.named_buffers() if "running" in name}}


if __name__ == "__main__":
    recipe, data, out = (Path(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    result = train(read_recipe(recipe), data, out, device="cpu")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    assert (result is None) == (rank > 0)
    torch.save(gradients(rank, ranks), out / f"gradients-{rank}.pt")
    dist.barrier()
