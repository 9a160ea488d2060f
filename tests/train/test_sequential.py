"""Images as time series: which pixel is seen at which step, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from statten_deploy import compare_backends
from statten_deploy.errors import InputError
from statten_deploy.models.config import ModelConfig
from statten_deploy.train.config import read_recipe
from statten_deploy.train.data import ArraySamples, InputSpec, Source, load_arrays, select
from statten_deploy.train.data.sequential import sequential
from statten_deploy.train.datamodule import StattenData
from tests.conftest import lively_model
from tests.train import disk_sets

OWN = InputSpec((8, 1, 8, 1), 10)
CONFIGS = Path(__file__).resolve().parents[2] / "models/configs"


def test_step_t_shows_column_t_of_the_original() -> None:
    found = {
        x.tobytes(): int(y) for part in ("train", "test") for x, y in zip(*load_arrays(*part_of(part)), strict=True)
    }
    bunch = load_digits()
    wanted = {}
    for image, label in zip(bunch.images, bunch.target, strict=True):
        steps = [image[:, column].reshape(1, 8, 1) / 16 for column in range(8)]  # [T][C, H, 1]
        wanted[np.array(steps, dtype=np.float32).tobytes()] = int(label)
    assert found == wanted


def part_of(split: str) -> tuple[str, str, InputSpec]:
    return "sequential-digits", split, OWN


def test_split_is_that_of_the_images() -> None:
    columns, labels = load_arrays("sequential-digits", "test", InputSpec((16, 1, 16, 1), 10))
    images, expected = load_arrays("digits", "test", InputSpec((1, 16, 16), 10))
    assert np.array_equal(labels, expected)  # type: ignore[arg-type]
    assert np.array_equal(np.concatenate(list(columns.transpose(1, 0, 2, 3, 4)), axis=-1), images)


def test_frames_of_several_columns_and_channels() -> None:
    """As sequential CIFAR will have it, with any source of images."""
    x = np.random.default_rng(0).random((6, 3, 8, 12), dtype=np.float32)
    y = np.array([0, 1, 2, 0, 1, 2])

    def open_images(spec: InputSpec) -> Source:
        assert spec == InputSpec((3, 8, 12), 3)
        return Source("images", train=ArraySamples(x[:4], y[:4]), test=ArraySamples(x[4:], y[4:]))

    source = sequential("columns", open_images, [(3, 8, 12)])(InputSpec((4, 3, 8, 3), 3))
    assert source.name == "columns"
    part = select(source, "test").subset(np.array([1]))
    assert part.labels is not None
    assert part.labels.tolist() == [2]
    for step in range(4):
        assert np.array_equal(part.sample(0)[step], x[5, :, :, 3 * step : 3 * step + 3])


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 1, 8, 1), (8, 2, 8, 1), (8, 1, 1, 8)])
def test_another_network_is_refused_in_one_line(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"1x8x8 or 1x16x16.*image_size: \[8, 1\] and time_steps: 8") as error:
        load_arrays("sequential-digits", "test", InputSpec(shape, 10))
    assert "\n" not in str(error.value)
    assert str(list(shape)) in str(error.value)


def test_the_past_reaches_a_step_through_time_alone() -> None:
    """Frames of one column: the first steps of the network do not depend on later columns, the last do on earlier."""
    torch.manual_seed(0)
    config = read_recipe(CONFIGS / "sequential-digits.yaml").model
    model = lively_model(config.model_copy(update={"window": "sliding"})).double()
    x = torch.rand(4, 8, 1, 8, 1, dtype=torch.float64)
    late, early = x.clone(), x.clone()
    late[:, 5:] = 0
    early[:, :3] = 0
    logits, changed_late, changed_early = (model.forward_steps(each) for each in (x, late, early))
    assert torch.equal(logits[:5], changed_late[:5])
    assert not torch.equal(logits[5:], changed_late[5:])
    assert not torch.equal(logits[3:], changed_early[3:])


@pytest.mark.parametrize(
    "changes",
    [{"attention": "SDT"}, {"window": "sliding"}, {"divide": "token", "token_groups": 2}],
    ids=["sdt", "sliding", "token"],
)
def test_networks_of_one_pixel_wide_frames_export(tmp_path: Path, changes: dict[str, object]) -> None:
    values = read_recipe(CONFIGS / "sequential-digits.yaml").model.model_dump() | changes | {"embed_dim": 16}
    torch.manual_seed(1)
    model = lively_model(ModelConfig.create(values))
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": model.state_dict(), "statten_config": model.config.model_dump(mode="json")}, path)
    found = compare_backends(path, ["torch", "nir", "onnx"], samples=16, latency_seconds=0)
    assert not found.problems
    assert [row.unavailable for row in found.backends] == [""] * 3
    assert len({row.spikes for row in found.backends}) == 1
    spikes = {layer.name: layer.spikes for layer in found.backends[0].layers if layer.role == "neurons"}
    assert min(spikes[name] for name in ("patch_embed.proj_lif", "block.0.attn.v_lif", "head_lif")) > 0


def test_sequential_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_sets.write_cifar10(tmp_path, monkeypatch)
    x, y = load_arrays(f"sequential-cifar10:{tmp_path}", "evaluation", InputSpec((32, 3, 32, 1), 10))
    plain, told = load_arrays(f"cifar10:{tmp_path}", "evaluation", InputSpec((3, 32, 32), 10))
    assert np.array_equal(np.concatenate(list(x.transpose(1, 0, 2, 3, 4)), axis=-1), plain)
    assert y is not None
    assert told is not None
    assert np.array_equal(y, told)
    with pytest.raises(InputError, match=r"sequential-cifar10: the data are columns of images of 3x32x32"):
        load_arrays(f"sequential-cifar10:{tmp_path}", "test", InputSpec((16, 3, 16, 1), 10))


@pytest.mark.parametrize(
    "used", ["random_shift=1", "random_rotation=5", "random_scale=0.1", "hflip=0.5", "event_augment=nda", "cutout=2"]
)
def test_what_would_move_single_columns_is_refused(used: str) -> None:
    recipe = read_recipe(Path("models/configs/sequential-digits.yaml"), [f"train.{used}"])
    with pytest.raises(InputError, match=f"{used.split('=')[0]} would move the pixels of every column by itself"):
        StattenData("sequential-digits", recipe.model, recipe.train)
