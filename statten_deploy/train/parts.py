"""How the parts of a network run in training: compiled, and with or without their activations kept."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statten_deploy.models.neurons import LIF

log = logging.getLogger(__name__)


class Parts:
    """Calls parts of a network as `STAtten.forward_steps` wants them called.

    With `compiled`, a part is compiled once for all modules of its kind (blocks share their code). With
    `checkpointed`, of every part only the input is kept, and the part runs again in the backward pass.
    """

    def __init__(self, *, compiled: bool, checkpointed: bool) -> None:
        self.compiled = compiled
        self.checkpointed = checkpointed
        if compiled:
            # It would split parts into what is sent at once; parts are smaller than that, and it refuses our neurons.
            torch._dynamo.config.optimize_ddp = False
        self._runs: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}

    def __call__(self, part: Callable[..., Tensor], module: nn.Module, *arguments: Tensor | int) -> Tensor:
        if part not in self._runs:
            self._runs[part] = torch.compile(part, dynamic=False) if self.compiled else part
        run = self._runs[part]
        if not (self.checkpointed and torch.is_grad_enabled()):
            return run(module, *arguments)
        again = statistics_kept(module)
        result: Tensor = checkpoint(
            run,
            module,
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in the network is random
            context_fn=lambda: (nullcontext(), again),
        )
        return result


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """While open, `module` runs a second time over a batch whose statistics its batch norms have taken in already.

    They are put back instead of not being taken in, so that the very same (compiled) code runs.
    """
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def can_compile(device: torch.device | str) -> bool:
    """Whether `torch.compile` works for `device` on this machine; one warning says what is missing where it does not.

    Tried on neurons of a few values, since what can be missing is not only a compiler (its headers, OpenMP, Triton).
    """
    current = torch.zeros(2, 8, device=device, requires_grad=True)
    neurons: Any = torch.compile(LIF(), dynamic=False)
    try:
        neurons(current).sum().backward()
    except Exception as error:  # every backend of the compiler has exceptions of its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        log.warning("train.compile: torch.compile does not work here, training runs uncompiled (%s)", reason[:200])
        return False
    return True


def seconds_compiling() -> float:
    """Seconds that `torch.compile` has taken in this process so far."""
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]
