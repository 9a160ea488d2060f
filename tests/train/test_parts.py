"""Parts of a network compiled and checkpointed: the same gradients, the same running statistics."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statten_deploy.models.statten import plain_call
from statten_deploy.train import parts
from statten_deploy.train.parts import Parts, can_compile
from tests.conftest import lively_input, lively_model, small_config


def gradients(
    call: Any, variant: str, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of all parameters, and all buffers, after one training pass."""
    config = small_config(variant, time_steps=2, chunk_size=1)
    model = lively_model(config).to(dtype).train()
    target = torch.arange(3)
    logits = model.forward_steps(lively_input(config).to(dtype), call)
    nn.functional.cross_entropy(logits.mean(0), target).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    return found, dict(model.named_buffers())


@pytest.mark.parametrize("variant", ["static", "dvs", "sdt"])
def test_checkpointed_parts_have_the_same_gradients_and_statistics(variant: str) -> None:
    kept, buffers = gradients(plain_call, variant, torch.float32)
    again, same = gradients(Parts(compiled=False, checkpointed=True), variant, torch.float32)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert all(torch.equal(buffers[name], same[name]) for name in buffers)
    assert all(value == 1 for name, value in same.items() if name.endswith("num_batches_tracked"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecation notices
def test_compiled_parts_have_the_same_gradients_and_share_code() -> None:
    """In float64 no membrane comes so close to a threshold that another order of additions makes it fire or not."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    eager, buffers = gradients(plain_call, "plif")
    for checkpointed in (False, True):
        compiled, same = gradients(Parts(compiled=True, checkpointed=checkpointed), "plif")
        for name, expected in eager.items():
            torch.testing.assert_close(compiled[name], expected, rtol=1e-9, atol=1e-12, msg=name)
        for name, value in buffers.items():
            torch.testing.assert_close(same[name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert counters["stats"]["unique_graphs"] == 5  # three stages, the last stage, one for both blocks


def test_without_a_compiler_training_goes_on_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing that was compiled before
    torch._dynamo.reset()
    with inductor.patch({"cpp.cxx": (str(tmp_path / "no-such-compiler"),), "fx_graph_cache": False}):
        assert not can_compile("cpu")
    torch._dynamo.reset()
    (record,) = [record for record in caplog.records if record.name == parts.__name__]
    assert record.getMessage().startswith("train.compile: torch.compile does not work here, training runs uncompiled (")
    assert "\n" not in record.getMessage()
