"""Where torch computes."""

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
