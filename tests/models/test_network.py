"""Every variant of the network against a slow second implementation, written from the equations in float64 loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import InputError
from statten_deploy.models.neurons import LIF, PLIF
from statten_deploy.models.statten import STAtten, statten_counts
from tests.conftest import lively_input, lively_model, small_config


def brute_force_counts(q, k, v, heads, window, sliding, groups):
    """A[t, b, c=(h, j), n] = Σ_i q[t, i, n] Σ_{s, m} k[s, i, m] v[s, j, m], over visible steps s and tokens m."""
    T, B, C, H, W = q.shape
    d = C // heads
    q, k, v = (x.reshape(T, B, heads, d, H * W) for x in (q, k, v))
    out = np.zeros_like(q)
    tokens = np.arange(H * W)
    group_of = tokens // (H * W // groups)
    for t in range(T):
        steps = (
            range(max(0, t - window + 1), t + 1) if sliding else range(t // window * window, (t // window + 1) * window)
        )
        for n in tokens:
            seen = group_of == group_of[n]
            kv = sum(np.einsum("bhim,bhjm->bhij", k[s][..., seen], v[s][..., seen]) for s in steps)
            out[t, ..., n] = np.einsum("bhi,bhij->bhj", q[t][..., n], kv)
    return out.reshape(T, B, C, H, W)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    heads=st.sampled_from([1, 2, 4]),
    d=st.integers(1, 4),
    batch=st.integers(1, 2),
    width=st.integers(1, 3),
)
def test_attention_counts(data, heads, d, batch, width) -> None:
    sliding = data.draw(st.booleans())
    groups = 1 if sliding else data.draw(st.integers(1, 3))
    window = data.draw(st.integers(1, 3))
    T = data.draw(st.integers(1, 5)) if sliding else window * data.draw(st.integers(1, 3))
    shape = (T, batch, heads * d, groups * data.draw(st.integers(1, 2)), width)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    q, k, v = (rng.integers(0, 2, shape).astype(np.float32) for _ in range(3))
    counts = statten_counts(*map(torch.from_numpy, (q, k, v)), heads, window, sliding=sliding, groups=groups)
    np.testing.assert_array_equal(counts.numpy(), brute_force_counts(q, k, v, heads, window, sliding, groups))


def test_lif_fires_at_its_threshold_and_resets() -> None:
    """v: 1.0 (fires, reset to 0), 0.5, 0.75; by hand from v += (x - v) / 2."""
    spikes = LIF()(torch.tensor([2.0, 1.0, 1.0])[:, None])
    assert spikes.flatten().tolist() == [1.0, 0.0, 0.0]


def test_lif_in_counts_decides_ties_exactly() -> None:
    """A = 14 of scale 1/14 is exactly the threshold 0.5 after halving; floats of A · (1/14) may fall either side."""
    counts = torch.arange(60.0)[None]
    expected = (counts / 2 >= 7.0).float()
    assert torch.equal(LIF(theta=0.5, unit=1 / 14)(counts), expected)


def test_plif_learns_its_time_constant() -> None:
    neuron = PLIF()
    assert neuron.decay().item() == pytest.approx(0.5)
    neuron(torch.rand(4, 8) * 2).sum().backward()
    assert neuron.w.grad is not None
    assert neuron.w.grad.abs() > 0


def test_surrogate_gradient_is_the_sigmoid_s() -> None:
    """One step: ds/dx = 1/2 · 4 σ(4 (x/2 - 1)) (1 - σ(...))."""
    x = torch.tensor([[0.3, 1.9, 2.0, 3.7]], requires_grad=True)
    LIF()(x).sum().backward()
    sigmoid = torch.sigmoid(4 * (x.detach() / 2 - 1))
    torch.testing.assert_close(x.grad, 0.5 * 4 * sigmoid * (1 - sigmoid))


def test_reset_passes_no_gradient() -> None:
    """With detach_reset, a spike at step 0 leaves no path from x[0] to step 1."""
    x = torch.tensor([[5.0], [0.5]], requires_grad=True)
    LIF()(x)[1].sum().backward()
    assert x.grad is not None
    assert x.grad[0].item() == 0.0
    assert x.grad[1].item() != 0.0


class Reference:
    """The network again, in float64 numpy, one operation after the other from docs/model.md."""

    def __init__(self, model: STAtten) -> None:
        self.c = model.config
        self.w = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def lif(self, x, theta=1.0, name=""):
        decay = 1 / (1 + np.exp(-self.w[f"{name}.w"])) if f"{name}.w" in self.w else 0.5
        v, out = np.zeros_like(x[0]), []
        for step in x:
            v = v + (step - v) * decay
            s = v >= theta
            v = np.where(s, 0, v)
            out.append(s.astype(np.float64))
        return np.stack(out)

    def conv_bn(self, x, conv, bn, stride=1):
        weight, bias = self.w[f"{conv}.weight"], self.w.get(f"{conv}.bias", 0)
        pad = weight.shape[-1] // 2
        x = np.pad(x, ((0, 0),) * 3 + ((pad, pad),) * 2)
        k = weight.shape[-1]
        patches = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(3, 4))[:, :, :, ::stride, ::stride]
        y = np.einsum("tbchwij,ocij->tbohw", patches, weight) + np.reshape(bias, (-1, 1, 1))
        mean, var, gamma, beta = (
            self.w[f"{bn}.{p}"].reshape(-1, 1, 1) for p in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / np.sqrt(var + 1e-5) * gamma + beta

    def pool(self, x, stride, fill=-np.inf):
        x = np.pad(x, ((0, 0),) * 3 + ((1, 1),) * 2, constant_values=fill)
        return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(3, 4))[:, :, :, ::stride, ::stride].max(
            (-1, -2)
        )

    def __call__(self, x):
        c = self.c
        x = x.double().numpy()
        if c.mean:
            x = (x - np.reshape(c.mean, (-1, 1, 1))) / np.reshape(c.std, (-1, 1, 1))
        x = np.stack([x] * c.time_steps) if c.input == "image" else x.swapaxes(0, 1)
        for i in range(4):
            n = str(i) if i else ""
            halve, strided = c.pooling_stat[i] == "1", c.pooling == "strided"
            x = self.conv_bn(x, f"patch_embed.proj_conv{n}", f"patch_embed.proj_bn{n}", 2 if halve and strided else 1)
            if i == 3:
                x = self.pool(x, 2) if halve and not strided else x
                residual = x
            x = self.lif(x)
            if i < 3 and halve and not strided:
                x = self.pool(x, 2)
        x = self.conv_bn(x, "patch_embed.rpe_conv", "patch_embed.rpe_bn") + residual
        for i in range(c.depth):
            x = self.attention(f"block.{i}.attn", x)
            x = self.mlp(f"block.{i}.mlp", x)
        s = self.lif(x.mean((-1, -2)), name="head_lif")
        return (s @ self.w["head.weight"].T + self.w["head.bias"]).mean(0)

    def attention(self, name, x):
        c = self.c
        s = self.lif(x)
        q, k, v = (self.lif(self.conv_bn(s, f"{name}.{p}_conv", f"{name}.{p}_bn")) for p in "qkv")
        if c.dvs_mode:
            q, k, v, s = (self.pool(y, 1) for y in (q, k, v, s))
        if c.attention == "STAtten":
            window = c.time_steps if c.divide == "token" else c.chunk_size
            a = brute_force_counts(q, k, v, c.num_heads, window, c.window == "sliding", c.token_groups)
            H, W = c.token_grid
            if c.divide == "token":
                scale = 2.0 ** -round(np.log2(c.time_steps * H * W / c.token_groups) / 2)
            else:
                scale = 1 / (H * H * c.chunk_size) if c.dvs_mode else 1 / H
            y = self.lif(a, theta=0.5 / scale)
            y = y * s + s if c.dvs_mode else y
        else:
            kv = self.token_pool(k * v)
            kv = self.lif(kv.sum((-1, -2), keepdims=True), theta=0.5)
            y = self.token_pool(q * kv)
        return self.conv_bn(y, f"{name}.proj_conv", f"{name}.proj_bn") + x

    def token_pool(self, x):
        if not self.c.dvs_mode:
            return x
        T, B, C, H, W = x.shape
        h = self.c.num_heads
        planes = x.reshape(T, B, h, C // h, H * W).swapaxes(-1, -2)  # [T, B, h, N, d], as released
        return self.pool(planes, 1).swapaxes(-1, -2).reshape(x.shape)

    def mlp(self, name, x):
        y = self.conv_bn(self.lif(x, name=f"{name}.fc1_lif"), f"{name}.fc1_conv", f"{name}.fc1_bn")
        if self.c.hidden_dim == self.c.embed_dim:
            x = y = y + x
        return self.conv_bn(self.lif(y, name=f"{name}.fc2_lif"), f"{name}.fc2_conv", f"{name}.fc2_bn") + x


def test_every_variant_equals_the_slow_network(variant: str) -> None:
    """In float64 on both sides, so that no spike flips and the logits agree to rounding."""
    config = small_config(variant)
    model = lively_model(config)
    x = lively_input(config)
    state = {name: value.double() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    buffers = {name: value.double() for name, value in model.named_buffers() if value.is_floating_point()}
    with torch.no_grad():
        logits = torch.func.functional_call(model, {**state, **buffers}, (x.double(),)).numpy()
    expected = Reference(model)(x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0, "the logits do not depend on the input: this test would prove nothing"


def test_attention_matters(variant: str) -> None:
    """Dropping the attention's output changes the logits of every variant: none of them is silent."""
    model = lively_model(small_config(variant))
    x = lively_input(model.config)
    before = model(x)
    for block in model.block:
        block.attn.proj_conv.weight.data.zero_()
    assert not torch.allclose(before, model(x))


@pytest.mark.parametrize("shape", [(2, 3, 16, 15), (2, 4, 3, 16, 16), (2, 1, 16, 16)])
def test_wrong_input_shape_is_one_clear_line(shape) -> None:
    with pytest.raises(InputError, match=r"takes \[batch, 3, 16, 16\]"):
        lively_model(small_config("static"))(torch.zeros(shape))


def test_training_reaches_every_weight(variant: str) -> None:
    model = lively_model(small_config(variant)).train()
    model(lively_input(model.config)).square().sum().backward()
    missing = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert missing == []
