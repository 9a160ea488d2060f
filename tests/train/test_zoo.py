"""The shipped checkpoints: accuracy on all test images, live neurons, small files, made by the shipped recipes."""

import hashlib
import re
from pathlib import Path

import pytest
import torch

from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.models.checkpoint import load_checkpoint, load_model
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.train import Accuracy, evaluate, load_arrays, read_recipe
from statten_deploy.train.config import TrainConfig
from statten_deploy.train.scoring import evaluate_integers

MODELS = Path(__file__).resolve().parents[2] / "models"
FLOATS = ["digits", "digits-stream", "digits-events"]
FOUR_BITS = ["digits-4bit", "digits-stream-4bit"]
LIVE = ["q_lif", "k_lif", "v_lif", "attn_lif"]
CORRECT = {"digits": 355, "digits-stream": 355, "digits-events": 353}
"""Of 360 at least; with 4-bit weights at most four images fewer than the 355 of both float networks."""


@pytest.fixture(scope="module", params=FLOATS + FOUR_BITS)
def shipped(request: pytest.FixtureRequest) -> tuple[str, Accuracy]:
    """Name and score: in integers where the checkpoint is made for them."""
    path = MODELS / f"zoo/{request.param}.ckpt"
    model, told = load_model(path), load_checkpoint(path).quantisation
    x, y = load_arrays(model.config.dataset, "test", model.config)
    assert y is not None
    batches = [(torch.from_numpy(x[i : i + 180]), torch.from_numpy(y[i : i + 180])) for i in (0, 180)]
    assert (told is None) is (request.param in FLOATS)
    if told is None:
        return request.param, evaluate(model, batches)
    return request.param, evaluate_integers(quantize(build_graph(model), QuantizeOptions(**told)), batches)


def test_accuracy_on_every_test_image(shipped: tuple[str, Accuracy]) -> None:
    name, score = shipped
    assert score.samples == 360
    assert score.correct >= CORRECT.get(name, 351)


def test_model_card_tells_the_truth(shipped: tuple[str, Accuracy]) -> None:
    name, score = shipped
    card = (MODELS / f"zoo/{name}.md").read_text(encoding="utf-8")
    path = MODELS / f"zoo/{name}.ckpt"
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert f"statten-train --config models/configs/{name}.yaml" in card
    told = re.search(r"(\d+) of 360", card)
    assert told is not None
    rates = {layer: float(rate) for layer, rate in re.findall(r"^\| ([\w.]+) \| (0\.\d{3}) \|", card, re.MULTILINE)}
    # Another processor sums floats in another order and may flip a spike, and with it an image; integers do not.
    images, slack = (1, 0.003) if name in FLOATS else (0, 0.000501)
    assert abs(int(told[1]) - score.correct) <= images
    assert rates == pytest.approx(score.firing_rates, abs=slack)


def test_attention_is_alive(shipped: tuple[str, Accuracy]) -> None:
    name, score = shipped
    rates = score.firing_rates
    least = 0.03 if name == "digits-events" else 0.04  # on events, values are spread by a 3x3 OR before they are used
    assert all(rates[f"block.0.attn.{layer}"] > least for layer in LIVE)
    assert all(0.02 < rate < 0.6 for rate in rates.values())


@pytest.mark.parametrize("name", FLOATS + FOUR_BITS)
def test_file_is_small_and_comes_from_its_recipe(name: str) -> None:
    path = MODELS / f"zoo/{name}.ckpt"
    assert path.stat().st_size < 2_000_000
    recipe = read_recipe(MODELS / f"configs/{name}.yaml")
    raw = torch.load(path, weights_only=True)
    assert load_checkpoint(path).config == recipe.model
    assert TrainConfig.model_validate(raw["statten_train"]) == recipe.train  # options added since are at their defaults
    assert not {"optimizer_states", "callbacks", "hyper_parameters"} & raw.keys()
    for tensor in raw["state_dict"].values():
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("name", FOUR_BITS)
def test_four_bit_checkpoint_says_so_and_keeps_batch_norms(name: str) -> None:
    written = load_checkpoint(MODELS / f"zoo/{name}.ckpt")
    assert written.quantisation == {"bits": 4, "granularity": "channel"}
    start = load_checkpoint(MODELS / f"zoo/{name.removesuffix('-4bit')}.ckpt")
    assert written.config == start.config.model_copy(update={"name": name})
    for key, tensor in start.state_dict.items():
        moved = not torch.equal(tensor, written.state_dict[key])
        frozen = "running" in key or "num_batches" in key or "talking_heads" in key
        assert moved is not frozen, key


@pytest.mark.parametrize("name", FOUR_BITS)
def test_reported_accuracy_is_that_of_the_numpy_runner(name: str) -> None:
    """One batch of the test images through the reference: the same integers that were counted above."""
    model = load_model(MODELS / f"zoo/{name}.ckpt")
    x, y = load_arrays("digits", "test", model.config)
    graph = quantize(build_graph(model), QuantizeOptions(4))
    logits = IntegerRunner(graph).run(x[:64]).outputs["logits"]
    score = evaluate_integers(graph, [(torch.from_numpy(x[:64]), torch.from_numpy(y[:64]))])
    assert score.correct == int((logits.argmax(1) == y[:64]).sum())
