"""The shipped checkpoints: accuracy on all test images, live neurons, small files, made by the shipped recipes."""

import hashlib
import re
from pathlib import Path

import pytest
import torch

from statten_deploy.models.checkpoint import load_checkpoint, load_model
from statten_deploy.train import Accuracy, evaluate, load_arrays, read_recipe

MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = ["digits", "digits-stream"]
LIVE = ["q_lif", "k_lif", "v_lif", "attn_lif"]


@pytest.fixture(scope="module", params=NAMES)
def shipped(request: pytest.FixtureRequest) -> tuple[str, Accuracy]:
    model = load_model(MODELS / f"zoo/{request.param}.ckpt")
    x, y = load_arrays("digits", "test", model.config)
    assert y is not None
    return request.param, evaluate(model, [(torch.from_numpy(x), torch.from_numpy(y))])


def test_accuracy_on_every_test_image(shipped: tuple[str, Accuracy]) -> None:
    assert shipped[1].samples == 360
    assert shipped[1].accuracy >= 0.985


def test_model_card_tells_the_truth(shipped: tuple[str, Accuracy]) -> None:
    name, score = shipped
    card = (MODELS / f"zoo/{name}.md").read_text(encoding="utf-8")
    path = MODELS / f"zoo/{name}.ckpt"
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert f"statten-train --config models/configs/{name}.yaml" in card
    # Another processor sums in another order and may flip a spike, and with it an image.
    told = re.search(r"(\d+) of 360", card)
    assert told is not None
    assert abs(int(told[1]) - score.correct) <= 1
    rates = {layer: float(rate) for layer, rate in re.findall(r"^\| ([\w.]+) \| (0\.\d{3}) \|", card, re.MULTILINE)}
    assert rates == pytest.approx(score.firing_rates, abs=0.003)


def test_attention_is_alive(shipped: tuple[str, Accuracy]) -> None:
    rates = shipped[1].firing_rates
    assert all(rates[f"block.0.attn.{layer}"] > 0.04 for layer in LIVE)
    assert all(0.02 < rate < 0.6 for rate in rates.values())


@pytest.mark.parametrize("name", NAMES)
def test_file_is_small_and_comes_from_its_recipe(name: str) -> None:
    path = MODELS / f"zoo/{name}.ckpt"
    assert path.stat().st_size < 2_000_000
    recipe = read_recipe(MODELS / f"configs/{name}.yaml")
    raw = torch.load(path, weights_only=True)
    assert load_checkpoint(path).config == recipe.model
    assert raw["statten_train"] == recipe.train.model_dump(mode="json")
    assert not {"optimizer_states", "callbacks", "hyper_parameters"} & raw.keys()
    for tensor in raw["state_dict"].values():
        assert torch.isfinite(tensor).all()
