"""Networks: shapes, layers, copies and errors of the specifications that build encoder and decoder."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from conftest import wide
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError

from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, networks
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.model.vae import VAE
from vae_anomaly.networks import Network


def layers_of_type(model: Any, name: str) -> list[str]:
    """Names of the layers of this class, which is named because naming it would load Keras."""
    return [layer.name for layer in model.layers if type(layer).__name__ == name]


# -- dense ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n_params", [1, 2])
@pytest.mark.parametrize("hidden_units", [(), (8,), (16, 8), [16, 8]], ids=str)
def test_dense_network_maps_rows_to_a_posterior_and_latents_to_parameters(
    hidden_units: Any, n_params: int
) -> None:
    encoder, decoder = DenseNetwork(hidden_units).build(5, 3, n_params)
    z_mean, z_log_var = encoder(np.zeros((7, 5)))
    assert z_mean.shape == z_log_var.shape == (7, 3)
    assert decoder(np.zeros((7, 3))).shape == (7, 5 * n_params)


def test_dense_decoder_mirrors_the_encoder() -> None:
    encoder, decoder = DenseNetwork((16, 8)).build(5, 3, 2)

    def widths(model: Any) -> list[int]:
        return [layer.units for layer in model.layers if type(layer).__name__ == "Dense"]

    assert widths(encoder) == [16, 8, 3, 3]
    assert widths(decoder) == [8, 16, 10]


def departure_from_affine(model: Any, width: int) -> float:
    """Largest |f(a + b) - f(a) - f(b) + f(0)|, relative to the largest |f|."""
    a, b = np.random.RandomState(0).normal(0, 3, (2, 50, width)).astype(np.float32)

    def f(x: Any) -> Any:
        return np.hstack([np.asarray(output) for output in tf.nest.flatten(model(x))])

    difference = f(a + b) - f(a) - f(b) + f(np.zeros_like(a))
    return float(np.abs(difference).max() / np.abs(f(a + b)).max())


def test_without_hidden_units_encoder_and_decoder_are_affine() -> None:
    encoder, decoder = DenseNetwork(hidden_units=()).build(5, 3, 1)
    rounding = 32 * float(np.finfo(np.float32).eps)
    assert departure_from_affine(encoder, 5) < rounding
    assert departure_from_affine(decoder, 3) < rounding


def test_with_hidden_units_encoder_and_decoder_are_not_affine() -> None:
    encoder, decoder = DenseNetwork(hidden_units=(8,)).build(5, 3, 1)
    assert departure_from_affine(encoder, 5) > 0.1
    assert departure_from_affine(decoder, 3) > 0.1


def test_the_activation_is_used_in_every_hidden_layer_and_nowhere_else() -> None:
    """An activation that is constant 0 leaves only the biases of the outputs, which are 0."""
    encoder, decoder = DenseNetwork((8, 4), activation=lambda x: 0 * x).build(5, 3, 1)
    for model, width in ((encoder, 5), (decoder, 3)):
        assert all((np.asarray(output) == 0).all() for output in tf.nest.flatten(model(np.ones((2, width)))))
    encoder, decoder = DenseNetwork((), activation=lambda x: 0 * x).build(5, 3, 1)
    for model, width in ((encoder, 5), (decoder, 3)):
        assert all((np.asarray(output) != 0).any() for output in tf.nest.flatten(model(np.ones((2, width)))))


def test_default_latent_dims_are_bounded() -> None:
    assert [DenseNetwork().default_latent_dim(n) for n in (1, 8, 100)] == [1, 8, 8]
    assert [ConvNetwork().default_latent_dim(n) for n in (1, 16, 784)] == [1, 16, 16]


# -- normalization and dropout -------------------------------------------------------------------------
WITH_HIDDEN_LAYERS = {
    "dense": (lambda **options: DenseNetwork((8, 4), **options), 9),
    "conv": (lambda **options: ConvNetwork((3, 3, 1), (4, 2), dense_units=(), **options), 9),
}
with_hidden_layers = pytest.mark.parametrize(
    ("network", "n_features"), WITH_HIDDEN_LAYERS.values(), ids=WITH_HIDDEN_LAYERS
)


@pytest.mark.parametrize(
    ("option", "layer"),
    [({"batch_normalization": True}, "BatchNormalization"), ({"dropout": 0.3}, "Dropout")],
    ids=["batch_normalization", "dropout"],
)
@with_hidden_layers
def test_an_option_adds_one_layer_after_each_hidden_layer(
    network: Any, n_features: int, option: dict[str, Any], layer: str
) -> None:
    for without, model in zip(
        network().build(n_features, 2, 1), network(**option).build(n_features, 2, 1), strict=True
    ):
        assert layers_of_type(without, layer) == []
        assert len(layers_of_type(model, layer)) == len(layers_of_type(model, "Activation")) >= 2


@with_hidden_layers
def test_normalization_comes_before_the_activation_and_dropout_after_it(
    network: Any, n_features: int
) -> None:
    for model in network(batch_normalization=True, dropout=0.3).build(n_features, 2, 1):
        kinds = [type(layer).__name__ for layer in model.layers]
        for position, kind in enumerate(kinds):
            if kind == "Activation":
                assert (kinds[position - 1], kinds[position + 1]) == ("BatchNormalization", "Dropout")


@with_hidden_layers
def test_normalization_takes_the_place_of_the_bias_before_it(network: Any, n_features: int) -> None:
    """A bias in front of it would be a weight without effect."""
    for model in network(batch_normalization=True).build(n_features, 2, 1):
        for layer, following in zip(model.layers, model.layers[1:], strict=False):
            if type(following).__name__ == "BatchNormalization":
                assert not layer.use_bias, layer.name


@with_hidden_layers
def test_dropout_acts_in_training_only(network: Any, n_features: int) -> None:
    encoder, _ = network(dropout=0.5).build(n_features, 2, 1)
    x = np.random.RandomState(0).normal(size=(20, n_features))
    np.testing.assert_array_equal(encoder(x, training=False)[0], encoder(x, training=False)[0])
    assert (np.asarray(encoder(x, training=True)[0]) != np.asarray(encoder(x, training=True)[0])).any()


# -- SELU ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("activation", ["selu", "relu"])
@with_hidden_layers
def test_selu_brings_its_initialization_and_dropout(network: Any, n_features: int, activation: str) -> None:
    expected = ("LecunNormal", "AlphaDropout") if activation == "selu" else ("GlorotUniform", "Dropout")
    for model in network(activation=activation, dropout=0.3).build(n_features, 2, 1):
        layers = [layer for layer in model.layers if hasattr(layer, "kernel_initializer")]
        outputs = {"z_mean", "z_log_var", "parameters"}
        for layer in layers:
            kind = "GlorotUniform" if layer.name in outputs else expected[0]
            assert type(layer.kernel_initializer).__name__ == kind, layer.name
        kinds = {type(layer).__name__ for layer in model.layers}
        assert kinds & {"AlphaDropout", "Dropout"} == {expected[1]}


def test_selu_is_known_as_a_function_too() -> None:
    encoder, _ = DenseNetwork((4,), keras.activations.selu, dropout=0.1).build(3, 2, 1)
    assert len(layers_of_type(encoder, "AlphaDropout")) == 1


@pytest.mark.parametrize("training", [False, True])
def test_selu_keeps_mean_and_variance_through_many_layers(training: bool) -> None:
    network = DenseNetwork((400,) * 12, activation="selu", dropout=0.1)
    vae = VAE(*network.build(400, 2, 1), Gaussian(), n_features=400, latent_dim=2)
    for variable, value in zip(vae.variables, vae.initial_values(0), strict=True):
        variable.assign(value)
    last = keras.Model(vae.encoder.input, vae.encoder.get_layer("encoder_11_dropout").output)
    made = np.asarray(last(np.random.RandomState(0).normal(size=(500, 400)), training=training))
    assert abs(made.mean()) < 0.1
    assert made.var() == pytest.approx(1, abs=0.2)


# -- images --------------------------------------------------------------------------------------------
def drawn_images(n_cases: int) -> list[dict[str, Any]]:
    """Images of 1x1 to 65x33 with networks of every stride and kernel, each setting one number or a list."""
    rng = np.random.RandomState(0)
    cases: list[dict[str, Any]] = []
    for _ in range(n_cases):
        sides = [int(np.ceil(longest ** rng.uniform())) for longest in (65, 33)]
        n = int(rng.randint(1, 4))
        strides, kernels = rng.randint(1, 4, n).tolist(), rng.randint(1, 6, n).tolist()
        cases.append(
            {
                "image_shape": (*sides, int(rng.randint(1, 5))),
                "filters": (3, 2, 4)[:n],
                "strides": ["auto", strides[0], strides][rng.randint(3)],
                "kernel_sizes": [kernels[0], kernels][rng.randint(2)],
            }
        )
    return cases


CORNERS = [
    {"image_shape": (*sides, channels), "filters": (3, 2), "strides": strides}
    for sides, channels in (((1, 1), 1), ((65, 33), 4), ((28, 28), 1), ((1, 33), 2), ((65, 1), 3))
    for strides in (1, 2, 3, (2, 3), (3, 1), "auto")
]


# By default, every shape once, every stride once, and some that are drawn.
BY_DEFAULT = [*CORNERS[::7], CORNERS[5], *drawn_images(50)[:10]]


@pytest.mark.parametrize(
    "options",
    [(pytest.param if options in BY_DEFAULT else wide)(options) for options in CORNERS + drawn_images(50)],
    ids=str,
)
def test_images_of_any_size_come_back_in_their_own_shape(options: dict[str, Any]) -> None:
    n_features = int(np.prod(options["image_shape"]))
    encoder, decoder = ConvNetwork(**options, dense_units=(4,)).build(n_features, 2, 1)
    z_mean, z_log_var = encoder(np.zeros((2, n_features)))
    assert z_mean.shape == z_log_var.shape == (2, 2)
    assert decoder(z_mean).shape == (2, n_features)


@pytest.mark.parametrize(
    "options",
    [
        {"filters": ()},
        {"dense_units": ()},
        {"filters": (), "dense_units": ()},
        {"filters": (), "kernel_sizes": (), "strides": ()},
        {"kernel_sizes": 1, "strides": 3},
        {"kernel_sizes": 7},
        {"kernel_sizes": (4, (1, 5)), "strides": [(2, 1), 1]},
        {"filters": [2, 3, 4], "dense_units": [5, 4], "strides": [1, 2, 1]},
        {"filters": "auto", "kernel_sizes": (1, 2, 3)},
    ],
    ids=str,
)
def test_any_depth_and_kernel_works_with_two_parameters_for_each_pixel(options: dict[str, Any]) -> None:
    network = ConvNetwork(**{"image_shape": (5, 7, 3), "filters": (2, 3), "dense_units": (4,), **options})
    encoder, decoder = network.build(105, 2, 2)
    assert decoder(encoder(np.zeros((3, 105)))[0]).shape == (3, 210)


def kernels_of(model: Any, kind: str) -> list[Any]:
    """Shapes of the kernels of layers of this class."""
    return [tuple(layer.kernel.shape) for layer in model.layers if type(layer).__name__.endswith(kind)]


def test_each_convolution_has_its_own_setting_and_the_decoder_mirrors_it() -> None:
    network = ConvNetwork((28, 28, 1), (32, 64, 128), (3, 5, 2), (1, 2, 2), dense_units=())
    encoder, decoder = network.build(784, 2, 1)
    assert kernels_of(encoder, "Conv2D") == [(3, 3, 1, 32), (5, 5, 32, 64), (2, 2, 64, 128)]
    shapes = [layer.output.shape[1:] for layer in encoder.layers if type(layer).__name__ == "Conv2D"]
    assert shapes == [(28, 28, 32), (14, 14, 64), (7, 7, 128)]
    # A transposed kernel has its outputs before its inputs.
    transposed = [(2, 2, 128, 128), (5, 5, 64, 128), (3, 3, 32, 64), (3, 3, 1, 32)]
    assert kernels_of(decoder, "Conv2DTranspose") == transposed


def test_a_decoder_of_its_own_filters_is_that_of_the_text_with_one_layer_less() -> None:
    """ "Variational Autoencoder with TensorFlow": filters 64-32-1, strides 2-2-1, 111,361 weights."""
    network = ConvNetwork(
        (28, 28, 1), (32, 64, 128), strides=(1, 2, 2), dense_units=(), decoder_filters=(64, 32)
    )
    _, decoder = network.build(784, 2, 1)
    assert kernels_of(decoder, "Conv2DTranspose") == [(3, 3, 64, 128), (3, 3, 32, 64), (3, 3, 1, 32)]
    assert decoder.count_params() == 111_361
    mirrored = clone(network).set_params(decoder_filters="auto")
    assert mirrored.build(784, 2, 1)[1].count_params() == 258_945


@pytest.mark.parametrize("n_params", [1, 2])
@pytest.mark.parametrize(
    ("decoder_filters", "channels"), [((3, 5), [3, 5]), ((7,), [7]), ("auto", [6, 4])], ids=str
)
def test_a_decoder_of_its_own_filters_makes_images_of_any_size(
    decoder_filters: Any, channels: list[int], n_params: int
) -> None:
    """Also where the last transposed convolution has a stride that does not divide the sides."""
    network = ConvNetwork((7, 5, 3), (4, 6), strides=(3, 2), dense_units=(), decoder_filters=decoder_filters)
    decoder = network.build(105, 2, n_params)[1]
    assert decoder(np.zeros((4, 2))).shape == (4, 105 * n_params)
    made = [kernel[2] for kernel in kernels_of(decoder, "Conv2DTranspose")]
    assert made == [*channels, 3 * n_params]


@pytest.mark.parametrize("decoder_filters", [(), (1, 2, 3, 4)])
def test_decoder_filters_of_another_length_are_named(decoder_filters: tuple[int, ...]) -> None:
    network = ConvNetwork((8, 8, 1), (4, 5, 6), decoder_filters=decoder_filters)
    with pytest.raises(
        ValueError, match=r"each of its 3 convolutions, or one fewer.*received decoder_filter"
    ):
        network.build(64, 2, 1)


AUTOMATIC = {
    (1, 1, 1): ((16, 32), (1, 1)),
    (8, 8, 1): ((16, 32), (2, 2)),
    (28, 28, 1): ((16, 32), (2, 2)),
    (6, 6, 1): ((16, 32), (2, 1)),
    (32, 32, 3): ((16, 32), (2, 2)),
    (64, 64, 3): ((16, 32, 64), (2, 2, 2)),
    (3, 100, 1): ((16, 32, 64, 128), ((1, 2),) * 4),
    (1000, 1, 2): ((16, 32, 64, 128), (4, 4, 4, 4)),
}


@pytest.mark.parametrize(("image_shape", "decided"), AUTOMATIC.items(), ids=str)
def test_automatic_convolutions_follow_the_shape_of_the_images(image_shape: Any, decided: Any) -> None:
    network = ConvNetwork().for_images(image_shape)
    assert (network.filters, network.strides) == decided
    n_features = int(np.prod(image_shape))
    for built, explicit in zip(
        ConvNetwork(image_shape).build(n_features, 2, 1), network.build(n_features, 2, 1), strict=True
    ):
        assert [w.shape for w in built.weights] == [w.shape for w in explicit.weights]


def test_automatic_filters_are_as_many_as_there_are_kernels_or_strides() -> None:
    assert ConvNetwork(kernel_sizes=(5, 3, 3)).for_images((8, 8, 1)).filters == (16, 32, 64)
    assert ConvNetwork(strides=(2,)).for_images((64, 64, 1)).filters == (16,)
    assert ConvNetwork(filters=(8, 8, 8)).for_images((28, 28, 1)).strides == (2, 2, 2)


# -- signals -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "decided"),
    {
        (1000, 2): ((16, 32, 64, 128), (4, 4, 4, 4)),
        (128, 3): ((16, 32), (4, 4)),
        (24, 40): ((16, 32), (4, 4)),
        (3, 1): ((16, 32), (1, 1)),
    }.items(),
    ids=str,
)
def test_convolutions_of_signals_run_along_their_length(shape: tuple[int, int], decided: Any) -> None:
    network = ConvNetwork(dimensions=1).for_images(shape)
    assert (network.image_shape, network.filters, network.strides) == (shape, *decided)
    n_features = int(np.prod(shape))
    for one in (ConvNetwork(shape, dimensions=1), network):
        encoder, decoder = one.build(n_features, 2, 1)
        kernels = [*kernels_of(encoder, "Conv2D"), *kernels_of(decoder, "Conv2DTranspose")]
        assert {kernel[1] for kernel in kernels} == {1}
        assert encoder.count_params() == network.build(n_features, 2, 1)[0].count_params()
        assert decoder(encoder(np.zeros((3, n_features)))[0]).shape == (3, n_features)
    assert network.fewest_weights(n_features, 2, 1) > 0


@pytest.mark.parametrize("given", [(50, 2), (50, 1, 2), None])
@pytest.mark.parametrize("own", [(50, 2), (50, 1, 2), None])
def test_a_signal_may_have_an_axis_of_one(given: Any, own: Any) -> None:
    network = ConvNetwork(own, dimensions=1).for_images(given)
    assert network.signal_channels() == (2 if given or own else 1)
    assert network.shape_of_images(given) is None
    assert network.default_likelihood(given) == "gaussian"
    assert given is own is None or network.image_shape == (50, 2)


def test_flat_rows_are_signals_of_one_channel() -> None:
    encoder, _ = ConvNetwork(dimensions=1).build(60, 2, 1)
    assert kernels_of(encoder, "Conv2D")[0] == (7, 1, 1, 16)


@pytest.mark.parametrize("network", [ConvNetwork(), DenseNetwork(), ConvNetwork(filters=(2,))], ids=repr)
@pytest.mark.parametrize("shape", [(128, 3), (8, 4), (8, 1), (160, 20)])
def test_arrays_that_may_be_signals_or_images_are_refused_with_both_ways(
    network: Network, shape: Any
) -> None:
    with pytest.raises(ValueError, match="signals of length") as raised:
        network.for_images(shape)
    message = str(raised.value)
    assert f"of length {shape[0]} with {shape[1]} channels" in message
    assert f"{shape[0]} pixels high and {shape[1]} wide" in message
    assert "network=ConvNetwork(dimensions=1)" in message
    assert "X[..., np.newaxis]" in message


@pytest.mark.parametrize("shape", [(28, 28), (7, 4), (3, 128), (40, 6), (128, 3, 1)])
def test_other_arrays_are_images(shape: Any) -> None:
    network = ConvNetwork().for_images(shape)
    assert (network.dimensions, network.signal_channels()) == (2, None)
    assert network.shape_of_images(shape) == (*shape, 1)[:3]
    assert DenseNetwork().for_images(shape).signal_channels() is None


def test_what_was_said_is_no_longer_ambiguous() -> None:
    assert ConvNetwork(dimensions=2).for_images((128, 3)).image_shape == (128, 3, 1)
    assert ConvNetwork((128, 3, 1)).for_images((128, 3)).dimensions == 2
    assert ConvNetwork(dimensions=1).for_images((128, 3)).dimensions == 1


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (
            ConvNetwork(dimensions=1),
            (28, 28, 3),
            r"\(length, channels\) of signals; received .*\(28, 28, 3\)",
        ),
        (ConvNetwork((50, 2), dimensions=1), (2, 50), r"X holds signals of shape \(2, 50\) \(length, chan"),
        (ConvNetwork((50, 2, 2, 2), dimensions=1), None, r"\(length, channels\) of signals; received"),
        (ConvNetwork((50, 2)), None, r"\(height, width, channels\); received image_shape=\(50, 2\)"),
    ],
)
def test_shapes_of_no_signal_are_named(network: ConvNetwork, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network.for_images(shape)


def test_images_of_width_1_have_one_dimensional_convolutions() -> None:
    encoder, decoder = ConvNetwork((50, 1, 2), (4, 8), kernel_sizes=5, strides=2).build(100, 2, 1)
    assert kernels_of(encoder, "Conv2D") == [(5, 1, 2, 4), (5, 1, 4, 8)]
    assert {kernel[:2] for kernel in kernels_of(decoder, "Conv2DTranspose")} == {(5, 1)}


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (1, 4)], ids=str)
def test_no_weight_of_a_kernel_meets_the_padding_only(sides: tuple[int, int], kernel_size: int) -> None:
    network = ConvNetwork((*sides, 1), (2,), kernel_size, strides=1, activation="linear")
    n_features = sides[0] * sides[1]
    inputs = np.random.RandomState(0).normal(size=(4, n_features)).astype("f4")
    for model, x in zip(network.build(n_features, n_features, 1), (inputs, inputs), strict=True):
        with tf.GradientTape() as tape:
            outputs = tf.concat([tf.square(output) for output in tf.nest.flatten(model(x))], axis=-1)
        for weight, gradient in zip(
            model.trainable_variables, tape.gradient(outputs, model.trainable_variables), strict=True
        ):
            if len(weight.shape) == 4:
                assert (np.abs(gradient).max(axis=(2, 3)) > 0).all(), weight.path


def test_each_pixel_is_reconstructed_at_its_own_place() -> None:
    """With 1x1 kernels and strides, what the decoder makes of one place depends on that place alone."""
    network = ConvNetwork((3, 4, 2), filters=(5,), kernel_sizes=1, strides=1, dense_units=())
    _, decoder = network.build(24, 2, 2)
    kernel, bias = decoder.get_layer("decoder_map").get_weights()
    z = np.ones((1, 2))
    before = np.asarray(decoder(z)).reshape(3, 4, 2 * 2)
    bias.reshape(3, 4, 5)[1, 3] += 10.0
    decoder.get_layer("decoder_map").set_weights([kernel, bias])
    changed = (np.asarray(decoder(z)).reshape(3, 4, 2 * 2) != before).any(axis=-1)
    assert np.argwhere(changed).tolist() == [[1, 3]]


def test_the_encoder_reads_rows_as_flattened_images() -> None:
    encoder, _ = ConvNetwork((3, 4, 2), filters=(2,)).build(24, 2, 1)
    images = np.arange(48.0).reshape(2, 3, 4, 2)
    image = keras.Model(encoder.input, encoder.get_layer("image").output)(images.reshape(2, -1))
    np.testing.assert_array_equal(image, images)


WRONG_IMAGE_SHAPES = {
    "none": None,
    "another product": (28, 28, 1),
    "no channels": (4, 6),
    "four sides": (2, 2, 3, 2),
    "negative sides": (-4, -6, 1),
    "fractional sides": (4.0, 6.0, 1),
}


@pytest.mark.parametrize("image_shape", WRONG_IMAGE_SHAPES.values(), ids=WRONG_IMAGE_SHAPES)
def test_an_image_shape_that_does_not_fit_the_row_is_named(image_shape: Any) -> None:
    with pytest.raises(
        ValueError, match=r"image_shape=\(height, width, channels\).* product of 24"
    ) as raised:
        ConvNetwork(image_shape).build(24, 2, 1)
    assert f"received image_shape={image_shape!r}" in str(raised.value)


@pytest.mark.parametrize("image_shape", [(4, 6), (2, 2, 3, 2), (-4, -6, 1), (4.0, 6.0, 1), ("4", "6", "1")])
def test_a_shape_of_no_image_is_named_before_a_row_is_seen(image_shape: Any) -> None:
    with pytest.raises(ValueError, match=r"image_shape=\(height, width, channels\); received") as raised:
        ConvNetwork(image_shape).for_images(None)
    assert f"received image_shape={image_shape!r}" in str(raised.value)


LENGTHS = {
    "no strides": {"strides": ()},
    "one stride": {"strides": (2,)},
    "three strides": {"strides": (2, 2, 2)},
    "one kernel": {"kernel_sizes": (3,)},
    "kernels against strides": {"filters": "auto", "kernel_sizes": (3,), "strides": (2, 2)},
}


@pytest.mark.parametrize("options", LENGTHS.values(), ids=LENGTHS)
def test_lists_of_different_lengths_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"one entry for each convolution") as raised:
        ConvNetwork(**{"image_shape": (4, 6, 1), "filters": (3, 4), **options}).build(24, 2, 1)
    assert all(f"{name}={value!r}" in str(raised.value) for name, value in options.items() if value != "auto")


def test_for_images_fills_in_a_missing_shape_and_nothing_else_that_is_decided() -> None:
    network = ConvNetwork(filters=(3, 4), strides=2, activation="gelu")
    filled = network.for_images((28, 28, 1))
    decided = {"image_shape": (28, 28, 1), "kernel_sizes": 3, "dimensions": 2}
    assert filled.get_params() == {**network.get_params(), **decided}
    assert network.image_shape is None


def test_for_images_keeps_a_class_of_ones_own() -> None:
    class OwnNetwork(ConvNetwork):
        pass

    assert type(OwnNetwork().for_images((28, 28, 1))) is OwnNetwork


def test_images_of_another_shape_than_the_networks_are_refused_with_both() -> None:
    network = ConvNetwork(image_shape=[28, 28, 1])
    assert network.for_images((28, 28, 1)).image_shape == (28, 28, 1)
    with pytest.raises(ValueError, match=r"image_shape=\[28, 28, 1\], but X .* shape \(14, 56, 1\)"):
        network.for_images((14, 56, 1))


@pytest.mark.parametrize("network", [ConvNetwork(), DenseNetwork()], ids=str)
def test_for_images_of_a_table_is_the_network_itself(network: Network) -> None:
    assert network.for_images(None) is network


def test_a_dense_network_takes_images_as_rows() -> None:
    network = DenseNetwork()
    assert network.for_images((28, 28, 1)) is network


# -- parameters ----------------------------------------------------------------------------------------
def conv(**options: Any) -> ConvNetwork:
    return ConvNetwork(image_shape=(4, 6, 1), **options)


WRONG_SIZES = {
    "zero units": (DenseNetwork((8, 0)), "hidden_units=(8, 0)"),
    "negative units": (DenseNetwork((-1,)), "hidden_units=(-1,)"),
    "fractional units": (DenseNetwork((8.5,)), "hidden_units=(8.5,)"),
    "named units": (DenseNetwork(("8",)), "hidden_units=('8',)"),
    "zero filters": (conv(filters=(0,)), "filters=(0,)"),
    "zero dense units": (conv(dense_units=(0,)), "dense_units=(0,)"),
    "zero strides": (conv(strides=(1, 0)), "strides=(1, 0)"),
    "fractional strides": (conv(strides=(1, 1.5)), "strides=(1, 1.5)"),
    "three numbers for a stride": (conv(strides=((1, 1, 1), 1)), "strides=((1, 1, 1), 1)"),
    "zero in a pair": (conv(kernel_sizes=(3, (3, 0))), "kernel_sizes=(3, (3, 0))"),
    "pairs of filters": (conv(filters=((3, 3),)), "filters=((3, 3),)"),
    "zero decoder filters": (conv(filters=(2, 2), decoder_filters=(0,)), "decoder_filters=(0,)"),
}


@pytest.mark.parametrize(("network", "received"), WRONG_SIZES.values(), ids=WRONG_SIZES)
def test_wrong_sizes_are_named(network: Network, received: str) -> None:
    with pytest.raises(ValueError, match=r"must hold positive integers") as raised:
        network.build(24, 2, 1)
    assert str(raised.value).startswith(received.split("=")[0])
    assert received in str(raised.value)


INVALID = {
    "units without a tuple": (DenseNetwork(hidden_units=8), "hidden_units"),
    "activation": (DenseNetwork(activation=None), "activation"),
    "batch_normalization": (DenseNetwork(batch_normalization="yes"), "batch_normalization"),
    "all dropped": (DenseNetwork(dropout=1.0), "dropout"),
    "negative dropout": (ConvNetwork(dropout=-0.1), "dropout"),
    "filters": (ConvNetwork(filters=8), "filters"),
    "dense_units": (ConvNetwork(dense_units=None), "dense_units"),
    "named filters": (ConvNetwork(filters="many"), "filters"),
    "kernel_sizes": (ConvNetwork(kernel_sizes=0), "kernel_sizes"),
    "named strides": (ConvNetwork(strides="some"), "strides"),
    "zero stride": (ConvNetwork(strides=0), "strides"),
    "fractional stride": (ConvNetwork(strides=1.5), "strides"),
    "image_shape": (ConvNetwork(image_shape=28), "image_shape"),
    "pretrained": (KerasNetwork(None, None, pretrained="yes"), "pretrained"),
}


@pytest.mark.parametrize(("network", "parameter"), INVALID.values(), ids=INVALID)
def test_invalid_parameters_are_named(network: Network, parameter: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"'{parameter}' parameter of {type(network).__name__}"):
        network._validate_params()


NUMPY_SIZES = {
    "hidden_units": DenseNetwork(hidden_units=(np.int64(8), np.int32(4))),
    "filters": conv(filters=(np.int64(3),), dense_units=(np.int64(4),)),
    "one kernel": conv(kernel_sizes=np.int64(3)),
    "kernels": conv(kernel_sizes=(np.int64(3), (np.int32(2), np.int64(1)))),
    "one stride": conv(strides=np.int64(2)),
    "strides": conv(strides=(np.int64(2), np.int64(1))),
}


@pytest.mark.parametrize("network", NUMPY_SIZES.values(), ids=NUMPY_SIZES)
def test_sizes_may_be_numpy_integers(network: Network) -> None:
    """As grid searches over ``np.arange`` hand them in."""
    network._validate_params()
    encoder, decoder = network.build(24, 2, 1)
    assert decoder(encoder(np.zeros((3, 24)))[0]).shape == (3, 24)


@pytest.mark.parametrize("network", [DenseNetwork(activation="rellu"), conv(activation="rellu")], ids=str)
def test_an_unknown_activation_lists_the_choices(network: Network) -> None:
    with pytest.raises(ValueError, match=r"received 'rellu'") as raised:
        network.build(24, 2, 1)
    assert all(repr(name) in str(raised.value) for name in ("elu", "gelu", "leaky_relu", "relu", "tanh"))


def test_every_listed_activation_works() -> None:
    with pytest.raises(ValueError, match="rellu") as raised:
        DenseNetwork(activation="rellu").build(4, 2, 1)
    choices = str(raised.value).partition("[")[2].partition("]")[0].replace("'", "").split(", ")
    assert len(choices) > 10
    for name in choices:
        DenseNetwork((3,), activation=name).build(4, 2, 1)


@pytest.mark.parametrize(("name", "expected"), [("dense", DenseNetwork), ("conv", ConvNetwork)])
def test_resolve_takes_a_name(name: str, expected: type[Network]) -> None:
    assert type(networks.resolve(name)) is expected


def test_resolve_returns_an_instance_itself() -> None:
    network = DenseNetwork((3,))
    assert networks.resolve(network) is network


def test_resolve_lists_the_choices_for_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"one of \['auto', 'dense', 'conv'\] .* received 'cnn'"):
        networks.resolve("cnn")


@pytest.mark.parametrize(
    ("network", "n_features"),
    [
        (DenseNetwork((8,), batch_normalization=True, dropout=0.1), 9),
        (ConvNetwork((3, 3, 1), (4,), batch_normalization=True, dropout=0.1), 9),
    ],
    ids=["dense", "conv"],
)
def test_building_leaves_global_random_state_alone(
    network: Network, n_features: int, draws_after: Any
) -> None:
    assert draws_after(lambda: network.build(n_features, 2, 1)) == draws_after(lambda: None)


# -- copies and keys -----------------------------------------------------------------------------------
SPECIFICATIONS = {
    "dense": DenseNetwork(),
    "dense, narrower": DenseNetwork((32,)),
    "dense, linear": DenseNetwork(()),
    "dense, gelu": DenseNetwork(activation="gelu"),
    "dense, normalized": DenseNetwork(batch_normalization=True),
    "dense, dropout": DenseNetwork(dropout=0.1),
    "dense, more dropout": DenseNetwork(dropout=0.1 + 1e-12),
    "conv": ConvNetwork(),
    "conv of a shape": ConvNetwork(image_shape=(28, 28, 1)),
    "conv of another shape": ConvNetwork(image_shape=(14, 56, 1)),
    "conv, strides": ConvNetwork(strides=(2, 1)),
    "conv, kernels": ConvNetwork(kernel_sizes=(3, 5)),
    "conv, selu": ConvNetwork(activation="selu"),
}


@pytest.mark.parametrize("network", SPECIFICATIONS.values(), ids=SPECIFICATIONS)
def test_clones_and_unpickled_specifications_have_equal_parameters_and_keys(network: Network) -> None:
    for copy in (clone(network), pickle.loads(pickle.dumps(network))):
        assert copy is not network
        assert type(copy) is type(network)
        assert copy.get_params() == network.get_params()
        assert copy.architecture_key() == network.architecture_key()


def test_different_specifications_have_different_architecture_keys() -> None:
    assert len({network.architecture_key() for network in SPECIFICATIONS.values()}) == len(SPECIFICATIONS)


def test_building_does_not_change_the_architecture_key() -> None:
    network = DenseNetwork((3,))
    before = network.architecture_key()
    network.build(4, 2, 1)
    assert network.architecture_key() == before


def test_different_callable_activations_have_different_architecture_keys() -> None:
    """Keras layers are callables; two of them can print alike and compute differently."""
    gentle, steep = (keras.layers.LeakyReLU(negative_slope=slope, name="leaky") for slope in (0.01, 0.5))
    assert repr(gentle) == repr(steep)
    assert (
        DenseNetwork(activation=gentle).architecture_key()
        != DenseNetwork(activation=steep).architecture_key()
    )


# -- sizes without building ------------------------------------------------------------------------------
NETWORKS_WITH_KNOWN_SIZES = [
    *(DenseNetwork(), DenseNetwork(()), DenseNetwork((7, 5, 3), batch_normalization=True)),
    ConvNetwork((9, 6, 2)),
    ConvNetwork((9, 6, 2), (), dense_units=()),
    ConvNetwork((9, 6, 2), (4, 3, 5), kernel_sizes=2, strides=(1, 3, 2), dense_units=(6,)),
    ConvNetwork((9, 6, 2), (4, 3, 5), kernel_sizes=(50, (2, 1), 4), strides=(9, 1, 1), dense_units=(6, 5)),
    ConvNetwork((108, 1, 1), kernel_sizes=4, strides=(2, 2, 2)),
    ConvNetwork((9, 6, 2), (), kernel_sizes=(), dropout=0.1, activation="selu"),
    ConvNetwork((9, 6, 2), (4, 3, 5), strides=(2, 3, 2), decoder_filters=(7, 8)),
    ConvNetwork((9, 6, 2), (4, 3), decoder_filters=(7, 8)),
]


@pytest.mark.parametrize("n_params", [1, 2])
@pytest.mark.parametrize("network", NETWORKS_WITH_KNOWN_SIZES, ids=repr)
def test_the_kernels_are_counted_without_building_them(network: Network, n_params: int) -> None:
    models = network.build(108, 3, n_params)
    kernels = [weight for model in models for weight in model.weights if weight.name == "kernel"]
    assert network.fewest_weights(108, 3, n_params) == sum(int(np.prod(kernel.shape)) for kernel in kernels)


HUGE = np.int64(2**40)


@pytest.mark.parametrize(
    "network",
    [
        DenseNetwork((HUGE, HUGE)),
        ConvNetwork((9, 6, 2), (4,), dense_units=(HUGE, HUGE)),
        ConvNetwork((9, 6, 2), (HUGE, HUGE)),
    ],
    ids=repr,
)
def test_counting_weights_does_not_overflow(network: Network) -> None:
    """A file could describe a network by numpy's integers."""
    assert network.fewest_weights(108, 3, 1) > 2**80
