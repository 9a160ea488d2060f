"""Where torch computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from statten_deploy.errors import InputError


def usable_device(device: str | torch.device) -> torch.device:
    """The device, once memory could be had on it.

    Raises:
        InputError: it does not exist here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}); use 'cpu'") from None
    return found


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """No TF32 on GPUs: it keeps 10 bits of a weight, and counts above 2048 would be rounded."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: where tensors are small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
