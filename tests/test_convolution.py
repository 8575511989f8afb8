"""The transposed convolution with few outputs: Keras' own map and gradients, computed otherwise."""

import numpy as np
import pytest
from conftest import wide

from vae_anomaly import ConvNetwork
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.networks.shifted_conv import ShiftedConv2DTranspose

SHAPES = [((5, 7), (3, 3), 1, 4), ((1, 6), (1, 5), 2, 3), ((8, 5), (2, 4), 2, 3), ((3, 3), (5, 5), 1, 1)]


def layers(kernel, n_outputs, n_channels):
    """Keras' layer and ours with the same weights."""
    rng = np.random.RandomState(0)
    pair = [
        kind(n_outputs, kernel, padding="same", data_format="channels_last")
        for kind in (keras.layers.Conv2DTranspose, ShiftedConv2DTranspose)
    ]
    for layer in pair:
        layer.build((None, None, None, n_channels))
    weights = [rng.standard_normal(weight.shape) for weight in pair[0].get_weights()]
    for layer in pair:
        layer.set_weights(weights)
    return pair


@pytest.mark.parametrize("jit_compile", [False, wide(True)])
@pytest.mark.parametrize(("sides", "kernel", "n_outputs", "n_channels"), SHAPES)
def test_map_and_gradients_are_those_of_keras_layer(sides, kernel, n_outputs, n_channels, jit_compile):
    images = np.random.RandomState(1).standard_normal((6, *sides, n_channels)).astype(np.float32)
    results = []
    for layer in layers(kernel, n_outputs, n_channels):

        @tf.function(jit_compile=jit_compile)
        def computed(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
                total = tf.reduce_sum(y**3)
            return y, *tape.gradient(total, [x, *(v.value for v in layer.trainable_variables)])

        results.append([np.asarray(part) for part in computed(tf.constant(images))])
    for expected, found in zip(*results, strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("channels", "n_params", "is_shifted"), [(1, 1, True), (1, 2, True), (3, 1, False)])
def test_a_network_has_it_where_it_is_faster(channels, n_params, is_shifted):
    network = ConvNetwork((8, 8, channels), filters=(4,), dense_units=(8,))
    _, decoder = network.build(64 * channels, 2, n_params)
    assert isinstance(decoder.get_layer("parameters"), ShiftedConv2DTranspose) == is_shifted
