"""The exact network: against arithmetic in Python's own integers, and against hostile arrays."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sunzip.errors import DamagedError, InputError
from sunzip.nn.integer import (
    ACTIVATION_BITS,
    ACTIVATION_LIMIT,
    WEIGHT_BITS,
    IntegerLayer,
    IntegerNet,
    quantise_layer,
)


def reference(layers: list[IntegerLayer], symbols: np.ndarray) -> np.ndarray:
    """Run the network as docs/reference/format-v1.md states it, in Python integers of any size."""

    def clamp(value: int, low: int = -ACTIVATION_LIMIT) -> int:
        return max(low, min(ACTIVATION_LIMIT, value))

    x = [[[clamp(int(v) << ACTIVATION_BITS) for v in row] for row in plane] for plane in symbols]
    for layer in layers:
        c_out, c_in, k, _ = layer.weight.shape
        h, w, s, r = len(x[0]), len(x[0][0]), layer.shuffle, k // 2
        weight = layer.weight.tolist()
        out = [[[0] * (w * s) for _ in range(h * s)] for _ in range(c_out // s**2)]
        for o in range(c_out):
            for i in range(h):
                for j in range(w):
                    total = int(layer.bias[o])
                    for c in range(c_in):
                        for p in range(max(0, r - i), min(k, h + r - i)):
                            for q in range(max(0, r - j), min(k, w + r - j)):
                                total += weight[o][c][p][q] * x[c][i + p - r][j + q - r]
                    rounded = (total + (1 << WEIGHT_BITS - 1)) >> WEIGHT_BITS
                    value = clamp(rounded, 0 if layer.relu else -ACTIVATION_LIMIT)
                    channel, place = divmod(o, s * s)
                    out[channel][i * s + place // s][j * s + place % s] = value
        x = out
    return np.array(x, np.int64)


@st.composite
def networks(draw: st.DrawFn) -> list[IntegerLayer]:
    layers = []
    channels = draw(st.integers(1, 3))
    for _ in range(draw(st.integers(1, 3))):
        shuffle = draw(st.sampled_from([1, 1, 2]))
        out = draw(st.integers(1, 3)) * shuffle**2
        k = draw(st.sampled_from([1, 3]))
        # The sums of |w| stay far enough below 2^33 that the bound of 2^53 holds.
        big = draw(st.sampled_from([5_000, 2**24]))
        weight = draw(hnp.arrays(np.int32, (out, channels, k, k), elements=st.integers(-big, big)))
        bias = draw(hnp.arrays(np.int64, (out,), elements=st.integers(-(2**50), 2**50)))
        layers.append(IntegerLayer(weight, bias, shuffle, draw(st.booleans())))
        channels = out // shuffle**2
    return layers


@settings(max_examples=60, deadline=None)
@given(networks(), st.data())
def test_it_computes_what_python_integers_do(layers: list[IntegerLayer], data: st.DataObject) -> None:
    shape = (layers[0].weight.shape[1], data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    extreme = st.sampled_from([-(2**31), 2**31 - 1, 4095, 4096, 4097, -4096, -4097, 0])
    symbols = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-50, 50) | extreme))
    np.testing.assert_array_equal(IntegerNet(layers)(symbols), reference(layers, symbols))


def at_the_bound(relu: bool = False) -> IntegerLayer:
    """Weights as large as they may be: every sum can come within 2^40 of 2^53."""
    total = (2**53 - 2**40) // ACTIVATION_LIMIT
    c_in, k = 8, 3
    weight = np.full((4, c_in, k, k), total // (c_in * k * k), np.int64)
    weight[1::2] *= -1
    weight[2:, ::2] *= -1
    return IntegerLayer(weight.astype(np.int32), np.array([7, -7, 2**39, -(2**39)]), 1, relu)


def test_sums_next_to_the_bound_are_exact() -> None:
    layer = at_the_bound()
    rng = np.random.default_rng(0)
    symbols = rng.choice(np.int32([-5000, -4096, -4095, -1, 0, 1, 4095, 4096, 5000]), (8, 6, 7))
    np.testing.assert_array_equal(IntegerNet([layer])(symbols), reference([layer], symbols))


def test_wide_kernels_take_little_memory() -> None:
    """All windows together would be 81 times the image: a gigabyte here."""
    rng = np.random.default_rng(0)
    layer = IntegerLayer(rng.integers(-9, 9, (1, 128, 9, 9), np.int32), np.zeros(1, np.int64), 1, False)
    symbols = rng.integers(-9, 9, (128, 112, 112), np.int32)
    net = IntegerNet([layer])
    tracemalloc.start()
    try:
        found = net(symbols)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    part = slice(40, 60)
    np.testing.assert_array_equal(found[:, 44:56], net(symbols[:, part])[:, 4:16])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_torch_in_float64_agrees_in_every_order_of_summing(threads: int, channels_last: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    layer = at_the_bound()
    symbols = np.random.default_rng(1).integers(-6000, 6000, (8, 33, 17), np.int32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.from_numpy(symbols).double() * 2**ACTIVATION_BITS
        x = x.clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)[None]
        weight = torch.from_numpy(layer.weight).double()
        if channels_last:
            x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        y = F.conv2d(x, weight, torch.from_numpy(layer.bias).double(), padding=1)[0]
    finally:
        torch.set_num_threads(before)
    y = torch.floor((y + 2 ** (WEIGHT_BITS - 1)) / 2**WEIGHT_BITS).clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)
    np.testing.assert_array_equal(IntegerNet([layer])(symbols), y.numpy().astype(np.int64))


def layer(c_out: int = 4, c_in: int = 2, k: int = 3, shuffle: int = 1, relu: bool = False) -> IntegerLayer:
    rng = np.random.default_rng(c_out * 100 + c_in)
    weight = rng.integers(-3000, 3000, (c_out, c_in, k, k)).astype(np.int32)
    return IntegerLayer(weight, rng.integers(-(2**20), 2**20, c_out), shuffle, relu)


def test_what_could_reach_2_to_the_53_is_refused() -> None:
    weight = np.zeros((1, 8, 1, 1), np.int32)
    weight[:] = 2**30  # 8 · 2^30 · 2^20 = 2^53
    zero = np.zeros(1, np.int64)
    with pytest.raises(DamagedError, match="layer 0 could exceed 2\\^53"):
        IntegerNet([IntegerLayer(weight, zero, 1, False)])
    weight[0, 0] -= 1  # leaves 2^20, of which the rounding needs 2^12
    IntegerNet([IntegerLayer(weight, zero, 1, False)])
    for bias in (2**20 - 2**12, -(2**20) + 2**12, 2**53, np.iinfo(np.int64).min):
        with pytest.raises(DamagedError, match="2\\^53"):
            IntegerNet([IntegerLayer(weight, np.array([bias]), 1, False)])
    IntegerNet([IntegerLayer(weight, np.array([2**20 - 2**12 - 1]), 1, False)])


def test_the_bound_counts_every_weight_of_int32() -> None:
    weight = np.full((1, 4, 1, 1), np.iinfo(np.int32).min, np.int32)  # |−2^31| must not wrap
    with pytest.raises(DamagedError, match="2\\^53"):
        IntegerNet([IntegerLayer(weight, np.zeros(1, np.int64), 1, False)])


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [layer(c_out=4), layer(c_in=3)],
        [layer(c_out=6, shuffle=2)],
        [layer(k=2)],
        [IntegerLayer(np.ones((2, 2, 3, 1), np.int32), np.zeros(2, np.int64), 1, False)],
        [IntegerLayer(np.ones((2, 2, 1, 1), np.int32), np.zeros(3, np.int64), 1, False)],
    ],
)
def test_layers_that_do_not_fit_are_refused(layers: list[IntegerLayer]) -> None:
    with pytest.raises(DamagedError, match="integer network"):
        IntegerNet(layers)


def stored() -> dict[str, np.ndarray]:
    return IntegerNet([layer(8, 2, shuffle=2, relu=True), layer(3, 2, 1)]).to_arrays()


def test_arrays_give_the_same_network_back() -> None:
    net = IntegerNet.from_arrays(stored())
    assert (net.channels_in, net.channels_out) == (2, 3)
    symbols = np.random.default_rng(0).integers(-9, 9, (2, 3, 5), np.int32)
    expected = reference([layer(8, 2, shuffle=2, relu=True), layer(3, 2, 1)], symbols)
    np.testing.assert_array_equal(net(symbols), expected)
    assert net(symbols).shape == (3, 6, 10)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.weight", np.ones((8, 2, 3, 3))),
        ("0.weight", np.ones((8, 2, 3), np.int32)),
        ("0.weight", np.ones((8, 0, 3, 3), np.int32)),
        ("0.weight", np.ones((1, 1, 4001, 4001), np.int8).astype(np.int32)),  # columns of 16 million pixels
        ("0.weight", np.ones((2**20, 2, 1, 1), np.int32)),
        ("0.bias", np.ones(8, np.int32)),
        ("0.bias", np.ones((8, 1), np.int64)),
        ("0.form", np.array([0, 1], np.int32)),
        ("0.form", np.array([-1, 1], np.int32)),
        ("0.form", np.array([100, 1], np.int32)),
        ("0.form", np.array([2, 7], np.int32)),
        ("0.form", np.array([2], np.int32)),
        ("0.form", np.array([2.0, 1.0])),
        ("0.weight", None),
        ("1.form", None),
        ("1.bias", None),
        ("extra", np.ones(1)),
    ],
)
def test_malformed_arrays_are_damage(name: str, value: np.ndarray | None) -> None:
    arrays = stored()
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    with pytest.raises(DamagedError, match="integer network"):
        IntegerNet.from_arrays(arrays)


def test_no_layer_and_too_many_are_damage() -> None:
    with pytest.raises(DamagedError, match="no layer"):
        IntegerNet.from_arrays({})
    many = IntegerNet([layer(2, 2, 1)] * 17).to_arrays()
    with pytest.raises(DamagedError, match="more than 16"):
        IntegerNet.from_arrays(many)


def test_float_layers_are_rounded_to_the_nearest_step() -> None:
    weight = np.array([0.1, -0.1, 1.00012, 0.0]).reshape(1, 4, 1, 1)
    made = quantise_layer(weight, np.array([0.3]), shuffle=1, relu=True)
    assert made.weight.ravel().tolist() == [410, -410, 4096, 0]
    assert made.bias.tolist() == [round(0.3 * 2**20)]
    assert made.relu


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0**20, -(2.0**19) - 1])
def test_float_layers_that_would_wrap_around_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="too large"):
        quantise_layer(np.full((1, 1, 1, 1), bad), np.zeros(1), shuffle=1, relu=False)
    with pytest.raises(InputError, match="too large"):
        quantise_layer(np.zeros((1, 1, 1, 1)), np.array([bad * 2.0**14]), shuffle=1, relu=False)
