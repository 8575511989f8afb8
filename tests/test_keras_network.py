"""KerasNetwork: a user's own models as blueprints, their weights, copies and errors."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import wide
from sklearn.base import clone

from vae_anomaly import ConvNetwork, KerasNetwork, VAEDetector, load
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.engine.programs import model_of
from vae_anomaly.layers import KLDivergence
from vae_anomaly.networks.base import last_activation


def an_encoder(n_features: int = 4, latent_dim: int = 2, outputs: str = "pair", units: int = 3) -> Any:
    x = keras.Input((n_features,))
    hidden = keras.layers.Dense(units, activation="gelu")(x)
    z_mean, z_log_var = keras.layers.Dense(latent_dim)(hidden), keras.layers.Dense(latent_dim)(hidden)
    forms = {
        "pair": lambda: [z_mean, z_log_var],
        "tuple": lambda: (z_mean, z_log_var),
        "with a draw": lambda: [z_mean, z_log_var, keras.layers.Add()([z_mean, z_log_var])],
        "one tensor": lambda: keras.layers.Concatenate()([z_mean, z_log_var]),
    }
    return keras.Model(x, forms[outputs]())


def a_decoder(latent_dim: int = 2, n_outputs: int = 4) -> Any:
    return keras.Sequential(
        [keras.Input((latent_dim,)), keras.layers.Dense(3, activation="gelu"), keras.layers.Dense(n_outputs)]
    )


layers = keras.layers


def weights_of(*models: Any) -> list[Any]:
    return [np.array(weight) for model in models for weight in model.get_weights()]


def equal(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


@pytest.mark.parametrize("outputs", ["pair", "tuple", "with a draw", "one tensor"])
def test_keras_network_takes_every_documented_form_of_encoder(outputs: str) -> None:
    encoder, decoder = KerasNetwork(an_encoder(outputs=outputs), a_decoder()).build(4, 2, 1)
    assert encoder.input_shape == (None, 4)
    assert decoder.output_shape == (None, 4)


def test_keras_network_takes_two_parameters_for_each_feature() -> None:
    _, decoder = KerasNetwork(an_encoder(), a_decoder(n_outputs=8)).build(4, 2, 2)
    assert decoder.output_shape == (None, 8)


def test_default_latent_dim_of_a_keras_network_is_its_decoders_width() -> None:
    assert KerasNetwork(an_encoder(latent_dim=3), a_decoder(latent_dim=3)).default_latent_dim(4) == 3


WRONG_SHAPES = {
    "encoder input": (
        lambda: (an_encoder(n_features=5), a_decoder()),
        "encoder must have input shape (None, 4)",
        "received (None, 5)",
    ),
    "encoder pair": (
        lambda: (an_encoder(latent_dim=3), a_decoder()),
        "encoder must have output shape (None, 2) and (None, 2)",
        "received [(None, 3), (None, 3)]",
    ),
    "encoder tensor": (
        lambda: (an_encoder(latent_dim=3, outputs="one tensor"), a_decoder()),
        "encoder must have output shape (None, 4)",
        "received (None, 6)",
    ),
    "decoder input": (
        lambda: (an_encoder(), a_decoder(latent_dim=3)),
        "decoder must have input shape (None, 2)",
        "received (None, 3)",
    ),
    "decoder output": (
        lambda: (an_encoder(), a_decoder(n_outputs=8)),
        "decoder must have output shape (None, 4)",
        "received (None, 8)",
    ),
}


@pytest.mark.parametrize(("models", "expected", "received"), WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_each_shape_that_does_not_fit_is_named(
    models: Callable[[], Any], expected: str, received: str
) -> None:
    with pytest.raises(ValueError, match="KerasNetwork's") as raised:
        KerasNetwork(*models()).build(4, 2, 1)
    assert expected in str(raised.value)
    assert received in str(raised.value)


@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize("use", ["build", "default_latent_dim", "architecture_key"])
def test_something_that_is_not_a_model_is_named(role: str, use: str) -> None:
    models = {"encoder": an_encoder(), "decoder": a_decoder(), role: "resnet"}
    arguments = {"build": (4, 2, 1), "default_latent_dim": (4,), "architecture_key": ()}
    with pytest.raises(TypeError, match=f"needs a keras.Model as {role}; received str"):
        getattr(KerasNetwork(**models), use)(*arguments[use])


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_a_model_without_shapes_is_named(role: str) -> None:
    unbuilt = keras.Sequential([keras.layers.Dense(4)], name="mine")
    models = {"encoder": an_encoder(), "decoder": a_decoder(), role: unbuilt}
    with pytest.raises(ValueError, match=f"{role} 'mine' has no shapes: give it a keras.Input"):
        KerasNetwork(**models).build(4, 2, 1)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_pickled_keras_network_keeps_its_weights_and_its_key(pretrained: bool) -> None:
    network = KerasNetwork(an_encoder(), a_decoder(), pretrained)
    copy = pickle.loads(pickle.dumps(network))
    assert equal(weights_of(copy.encoder, copy.decoder), weights_of(network.encoder, network.decoder))
    assert copy.pretrained is pretrained
    assert copy.architecture_key() == network.architecture_key()
    x = np.random.RandomState(0).normal(size=(5, 4))
    for output, expected in zip(copy.encoder(x), network.encoder(x), strict=True):
        np.testing.assert_array_equal(output, expected)


def test_a_pickled_keras_network_contains_no_live_keras_object() -> None:
    modules = set()

    class Recorder(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            modules.add(module.split(".")[0])
            return super().find_class(module, name)

    Recorder(io.BytesIO(pickle.dumps(KerasNetwork(an_encoder(), a_decoder())))).load()
    assert "vae_anomaly" in modules
    assert modules <= {"vae_anomaly", "numpy"}


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_cloned_keras_network_is_independent_with_an_equal_key(pretrained: bool) -> None:
    network = KerasNetwork(an_encoder(), a_decoder(), pretrained)
    before = weights_of(network.encoder, network.decoder)
    copy = clone(network)
    assert copy.architecture_key() == network.architecture_key()
    assert equal(weights_of(copy.encoder, copy.decoder), before)
    copy.encoder.set_weights([weight + 1 for weight in copy.encoder.get_weights()])
    assert equal(weights_of(network.encoder, network.decoder), before)


def test_the_key_of_a_keras_network_tells_architectures_apart() -> None:
    decoder = a_decoder()
    narrow, wide = KerasNetwork(an_encoder(units=3), decoder), KerasNetwork(an_encoder(units=5), decoder)
    assert narrow.architecture_key() != wide.architecture_key()
    assert narrow.architecture_key() != KerasNetwork(narrow.encoder, decoder, True).architecture_key()


@pytest.mark.parametrize("pretrained", [False, True])
def test_weights_count_in_the_key_of_a_pretrained_keras_network_only(pretrained: bool) -> None:
    network = KerasNetwork(an_encoder(), a_decoder(), pretrained)
    before = network.architecture_key()
    network.encoder.set_weights([weight + 1 for weight in network.encoder.get_weights()])
    assert (network.architecture_key() != before) is pretrained


ROWS = np.random.RandomState(0).normal(size=(32, 4))


def fit(network: KerasNetwork, **options: Any) -> VAEDetector:
    options = {"epochs": 1, "batch_size": 32, "jit_compile": False, "random_state": 0, **options}
    return VAEDetector(network=network, **options).fit(ROWS)


def test_a_fit_leaves_the_given_models_as_they_are() -> None:
    network = KerasNetwork(an_encoder(), a_decoder())
    before = weights_of(network.encoder, network.decoder)
    detector = fit(network)
    assert equal(weights_of(network.encoder, network.decoder), before)
    detector.model_  # noqa: B018 - a copy of the trained model; reading it must not write either
    assert equal(weights_of(network.encoder, network.decoder), before)


def test_two_readings_of_a_trained_model_share_no_weights() -> None:
    detector = fit(KerasNetwork(an_encoder(), a_decoder()))
    first, second = detector.model_, detector.model_
    first.encoder.set_weights([weight + 1 for weight in first.encoder.get_weights()])
    assert not equal(weights_of(first.encoder), weights_of(second.encoder))


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_fit_starts_from_the_present_weights_if_pretrained_and_from_new_ones_otherwise(
    pretrained: bool,
) -> None:
    """Adam's first step moves a weight by at most the learning rate, here by nothing worth the name."""
    network = KerasNetwork(an_encoder(), a_decoder(), pretrained)
    before = weights_of(network.encoder, network.decoder)
    model = fit(network, learning_rate=1e-30).model_
    after = weights_of(model.encoder, model.decoder)
    moved = max(float(np.abs(new - old).max()) for new, old in zip(after, before, strict=True))
    assert (moved <= 1e-30) is pretrained


def test_a_fitted_detector_holds_no_live_model_and_nothing_of_the_users(forget_programs: Any) -> None:
    network = KerasNetwork(an_encoder(), a_decoder(), pretrained=True)
    detector = fit(network)
    kept = detector.members_[0].specification.network
    assert not isinstance(kept.encoder, keras.Model)
    assert "Blueprint((None, 4) -> " in repr(kept)
    before = detector.score_samples(ROWS)
    network.encoder.set_weights([weight + 1 for weight in network.encoder.get_weights()])
    forget_programs()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(detector)).score_samples(ROWS), before)


def test_statistics_that_a_layer_has_adapted_are_kept() -> None:
    far = (ROWS * 50 + 500).astype("f4")

    def network(data: Any) -> KerasNetwork:
        x = keras.Input((4,), name="x")
        normalization = keras.layers.Normalization(name="normalization")
        normalization.adapt(data)
        outputs = keras.layers.Dense(4, name="posterior")(normalization(x))
        return KerasNetwork(keras.Model(x, outputs, name="encoder"), a_decoder(), pretrained=True)

    adapted = network(far)
    encoder, _ = adapted.build(4, 2, 1)
    np.testing.assert_allclose(encoder(far[:3]), adapted.encoder(far[:3]), rtol=1e-6)
    assert adapted.architecture_key() != network(far * 2).architecture_key()


@keras.saving.register_keras_serializable(package="tests")
class Centre(keras.layers.Layer):  # type: ignore[misc]
    """A layer whose weight has no initializer that could be found."""

    def build(self, shape: Any) -> None:
        self.center = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False, name="center")

    def call(self, x: Any) -> Any:
        return x - self.center

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@pytest.mark.wide
def test_weights_without_an_initializer_come_from_the_given_model(forget_programs: Any) -> None:
    """Not from a model of the same configuration that was fitted before."""

    def network(center: float) -> KerasNetwork:
        x, layer = keras.Input((4,), name="x"), Centre(name="center")
        outputs = keras.layers.Dense(4, name="posterior")(layer(x))
        layer.set_weights([np.full(4, center, "f4")])
        decoder = keras.Sequential(
            [keras.Input((2,), name="z"), keras.layers.Dense(4, name="parameters")], name="decoder"
        )
        return KerasNetwork(keras.Model(x, outputs, name="encoder"), decoder)

    near, far = network(0.0), network(30.0)
    after_another = [fit(near).score(ROWS), fit(far).score(ROWS)][1]
    forget_programs()
    assert after_another == fit(far).score(ROWS) != fit(near).score(ROWS)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64", "float16"])
def test_models_made_under_another_dtype_policy_are_trained_as_those_of_float32(policy: str) -> None:
    def network() -> KerasNetwork:
        x = keras.Input((4,), name="x")
        encoder = keras.Model(x, keras.layers.Dense(4, name="posterior")(x), name="encoder")
        decoder = keras.Sequential(
            [keras.Input((2,), name="z"), keras.layers.Dense(4, name="parameters")], name="decoder"
        )
        return KerasNetwork(encoder, decoder)

    expected = fit(network()).score_samples(ROWS)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        made_so = network()
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(fit(made_so).score_samples(ROWS), expected)


def test_a_frozen_layer_keeps_the_weights_of_the_given_model_and_others_are_drawn_anew() -> None:
    encoder = an_encoder()
    frozen, trained = encoder.layers[1], encoder.layers[2]
    frozen.trainable = False
    kept, left = weights_of(frozen), weights_of(trained)
    for member in fit(KerasNetwork(encoder, a_decoder()), members=2).members_:
        model = model_of(member)
        assert equal(weights_of(model.encoder.layers[1]), kept)
        assert not equal(weights_of(model.encoder.layers[2]), left)


def frozen_attention(x: Any) -> tuple[Any, Any]:
    attention, pairs = layers.MultiHeadAttention(1, 2), layers.Reshape((2, 2))(x)
    outputs = layers.Flatten()(attention(pairs, pairs))
    attention.trainable = False
    return attention, outputs


def frozen_class(x: Any) -> tuple[Any, Any]:
    model = Decoder()
    outputs = layers.Flatten()(model(x))
    model.trainable = False
    return model, outputs


def frozen_layer_of_a_class(x: Any) -> tuple[Any, Any]:
    model = Decoder()
    outputs = layers.Flatten()(model(x))
    model.hidden.trainable = False
    return model.hidden, outputs


@pytest.mark.parametrize("pretrained", [False, wide(True)])
@pytest.mark.parametrize("part", [*map(wide, [frozen_attention, frozen_class]), frozen_layer_of_a_class])
def test_layers_within_others_stay_frozen_where_no_configuration_tells(
    part: Callable[[Any], tuple[Any, Any]], pretrained: bool, tmp_path: Path
) -> None:
    x = keras.Input((4,))
    frozen, outputs = part(x)
    encoder = keras.Model(x, keras.layers.Dense(4)(outputs))
    network = KerasNetwork(encoder, a_decoder(), pretrained)
    detector = fit(network)
    detector.save(tmp_path / "detector.vae")
    for copy in (detector, pickle.loads(pickle.dumps(detector)), load(tmp_path / "detector.vae")):
        trained = copy.model_.encoder
        kept = weights_of(trained)
        for expected in weights_of(frozen):
            assert any(np.array_equal(expected, weight) for weight in kept)
        n_frozen = len(trained.weights) - len(trained.trainable_weights)
        assert n_frozen == len(frozen.weights)
    before = network.architecture_key()
    frozen.trainable = True
    assert network.architecture_key() != before


def test_a_network_with_other_frozen_weights_is_another() -> None:
    encoder, decoder = an_encoder(), a_decoder()
    encoder.layers[1].trainable = False
    before = KerasNetwork(encoder, decoder).architecture_key()
    assert KerasNetwork(encoder, decoder).architecture_key() == before
    encoder.layers[1].set_weights([weight + 1 for weight in encoder.layers[1].get_weights()])
    assert KerasNetwork(encoder, decoder).architecture_key() != before


def images(n: int = 60) -> Any:
    return (np.random.RandomState(0).random_sample((n, 4, 4, 1)) < 0.2).astype("f4")


def of_images(last: Any) -> KerasNetwork:
    """Models that take and make images of 4 x 4 pixels."""
    x = keras.Input((4, 4, 1))
    hidden = keras.layers.Flatten()(keras.layers.Conv2D(2, 3, padding="same", activation="relu")(x))
    encoder = keras.Model(x, [keras.layers.Dense(2)(hidden), keras.layers.Dense(2)(hidden)])
    decoder = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Reshape((4, 4, 2)),
            keras.layers.Conv2D(1, 3, padding="same", activation=last),
        ]
    )
    return KerasNetwork(encoder, decoder)


@pytest.mark.parametrize("shape", [(4, 4, 1), wide((4, 4)), wide((16,))])
def test_models_of_images_take_images_and_flat_rows_alike(shape: tuple[int, ...]) -> None:
    X = images()
    detector = VAEDetector(
        network=of_images(None),
        likelihood="bernoulli",
        epochs=1,
        members=1,
        early_stopping=False,
        score="elbo",
        random_state=0,
    )
    of_images_too = detector.fit(X).score_samples(X)
    given = X.reshape(-1, *shape)
    np.testing.assert_array_equal(detector.fit(given).score_samples(given), of_images_too)
    encoder, decoder = detector.model_.encoder, detector.model_.decoder
    assert (encoder.input_shape, decoder.output_shape) == ((None, 16), (None, 16))


@pytest.mark.parametrize(
    ("likelihood", "last", "reach"),
    [
        ("bernoulli", "tanh", "from 0.269 to 0.731"),
        wide("bernoulli", "relu", "from 0.5 to 1"),
        wide("gaussian", "tanh", "from -1 to 1"),
        ("gaussian", "relu", "from 0 to inf"),
    ],
)
def test_a_decoder_whose_last_activation_keeps_it_from_the_rows_is_warned_of(
    likelihood: str, last: str, reach: str
) -> None:
    detector = VAEDetector(network=of_images(last), likelihood=likelihood, epochs=1, members=1)
    with pytest.warns(UserWarning, match=f"ends in the activation '{last}'.*expects values {reach}"):
        detector.fit(images())


@pytest.mark.parametrize("last", [None, *map(wide, ["linear", "sigmoid", "leaky_relu"])])
def test_a_decoder_that_reaches_the_rows_is_not_warned_of(last: str | None) -> None:
    """Pixels in [0, 1], of which a unit Gaussian expects what the decoder says."""
    VAEDetector(network=of_images(last), likelihood="unit_gaussian", epochs=1, members=1).fit(images())


@pytest.mark.parametrize(
    ("likelihood", "last", "reach"),
    [
        ("bernoulli", "sigmoid", "from 0.5 to 0.731"),
        ("continuous_bernoulli", "sigmoid", "from 0.5 to 0.582"),
        wide("bernoulli", "hard_sigmoid", "from 0.5 to 0.731"),
    ],
)
def test_a_decoder_that_applies_the_link_of_the_likelihood_is_refused(
    likelihood: str, last: str, reach: str
) -> None:
    """Images of mean .05 would be reconstructed with a mean of .6."""
    detector = VAEDetector(network=of_images(last), likelihood=likelihood, epochs=1, members=1)
    message = (
        f"ends in the activation '{last}'.*expects values {reach}.*End the decoder without an activation"
    )
    with pytest.raises(ValueError, match=message):
        detector.fit(images())


def test_a_last_activation_can_be_taken_out_of_a_model_that_was_trained_with_it() -> None:
    network = of_images("sigmoid")
    network.decoder.layers[-1].activation = keras.activations.linear
    VAEDetector(network=network, likelihood="bernoulli", epochs=1, members=1).fit(images())


@keras.saving.register_keras_serializable(package="tests")
def bounded(logits: Any) -> Any:
    return 20 * keras.ops.tanh(logits)


@pytest.mark.wide
def test_a_decoder_may_bound_its_logits() -> None:
    network = of_images(bounded)
    VAEDetector(network=network, likelihood="bernoulli", epochs=1, members=1).fit(images())


@keras.saving.register_keras_serializable(package="tests")
class Decoder(keras.Model):  # type: ignore[misc]
    """A decoder as a class of a user's own."""

    def __init__(self, last: str | None = None, by_numbers: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last, self.by_numbers = last, by_numbers
        self.hidden, self.pixels = keras.layers.Dense(5, activation="relu"), keras.layers.Dense(16)
        self.activate = keras.layers.Activation(last)

    def call(self, z: Any) -> Any:
        images = keras.ops.reshape(self.activate(self.pixels(self.hidden(z))), (-1, 4, 4, 1))
        return tf.identity(images) if self.by_numbers else images

    def get_config(self) -> Any:
        return {**super().get_config(), "last": self.last, "by_numbers": self.by_numbers}


def called(model: Any, n_inputs: int) -> Any:
    model(np.zeros((1, n_inputs), "float32"))
    return model


ENDS: dict[str, tuple[Callable[[], list[Any]], str | None]] = {
    "a layer": (lambda: [layers.Dense(16), layers.Activation("sigmoid")], "sigmoid"),
    "a layer's own": (lambda: [layers.Dense(16, activation="tanh")], "tanh"),
    "moved": (lambda: [layers.Dense(16, activation="tanh"), layers.Reshape((4, 4, 1))], "tanh"),
    "cropped": (
        lambda: [layers.Dense(36, activation="tanh"), layers.Reshape((6, 6, 1)), layers.Cropping2D(1)],
        "tanh",
    ),
    "an operation": (lambda: [layers.Dense(16), keras.ops.sigmoid], "sigmoid"),
    "a function": (lambda: [layers.Dense(16), keras.activations.softsign], "softsign"),
    "a clip": (lambda: [layers.Dense(16), lambda x: keras.ops.clip(x, 0, 1)], "clip"),
    "a Lambda": (lambda: [layers.Dense(16), layers.Lambda(keras.ops.tanh, output_shape=(16,))], "tanh"),
    "of many layers": (lambda: [keras.Sequential([layers.Dense(16), layers.ReLU()])], "re_lu"),
    "rescaled": (lambda: [layers.Dense(16, activation="sigmoid"), layers.Rescaling(0.5)], "sigmoid"),
    "with dropout": (lambda: [layers.Dense(16, activation="sigmoid"), layers.Dropout(0.1)], "sigmoid"),
    "ELU": (lambda: [layers.Dense(16), layers.ELU()], "elu"),
    "a class": (lambda: [called(Decoder("sigmoid"), 2)], "sigmoid"),
    "none": (lambda: [layers.Dense(16), layers.Activation("linear"), layers.Reshape((4, 4, 1))], None),
    "a sum": (lambda: [layers.Dense(16, activation="tanh"), lambda x: x + x], None),
    "weights behind": (lambda: [layers.Dense(16, activation="sigmoid"), layers.Dense(16)], None),
    "a class that is closed": (lambda: [called(Decoder("sigmoid", by_numbers=True), 2)], None),
}


@pytest.mark.parametrize(("end", "expected"), ENDS.values(), ids=ENDS)
def test_a_last_activation_is_found_in_every_form(end: Callable[[], list[Any]], expected: str | None) -> None:
    z = outputs = keras.Input((2,))
    for step in end():
        outputs = step(outputs)
    found = last_activation(keras.Model(z, outputs))
    assert (found and found.name) == expected


def test_what_follows_the_last_activation_belongs_to_it() -> None:
    z = keras.Input((2,))
    end = keras.layers.Dense(3, activation="sigmoid")(z) * 4.0
    found = last_activation(keras.Model(z, keras.layers.Rescaling(1.0, offset=-2.0)(end)))
    assert found is not None
    np.testing.assert_allclose(found.function(np.array([[-50.0, 0.0, 50.0]], "f4")), [[-2, 0, 2]])


@pytest.mark.wide
def test_a_last_activation_of_whole_images_is_left_alone() -> None:
    decoder = keras.Sequential(
        [keras.Input((2,)), layers.Dense(16), layers.Reshape((4, 4, 1)), layers.Softmax(axis=(1, 2))]
    )
    VAEDetector(network=KerasNetwork(of_images(None).encoder, decoder), epochs=1, members=1).fit(images())


# -- models that are classes ----------------------------------------------------------------------------
@keras.saving.register_keras_serializable(package="tests")
class Encoder(keras.Model):  # type: ignore[misc]
    """An encoder as a class of a user's own."""

    def __init__(self, latent_dim: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.latent_dim = latent_dim
        self.flat, self.mean = keras.layers.Flatten(), keras.layers.Dense(latent_dim)
        self.log_var = keras.layers.Dense(latent_dim)

    def call(self, x: Any) -> Any:
        hidden = self.flat(x)
        return self.mean(hidden), self.log_var(hidden)

    def get_config(self) -> Any:
        return {**super().get_config(), "latent_dim": self.latent_dim}


@pytest.mark.wide
def test_models_that_are_classes_are_taken_once_they_were_called(tmp_path: Path) -> None:
    encoder, X = Encoder(), images()
    encoder(X[:1])
    network = KerasNetwork(encoder, called(Decoder(), 2))
    assert network.architecture_key() == clone(network).architecture_key() == network.architecture_key()
    before = weights_of(encoder, network.decoder)
    detector = VAEDetector(network, epochs=1, members=1, random_state=0).fit(X)
    assert equal(weights_of(encoder, network.decoder), before)
    expected = detector.score_samples(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(detector)).score_samples(X), expected)
    detector.save(tmp_path / "detector.vae")
    np.testing.assert_array_equal(load(tmp_path / "detector.vae").score_samples(X), expected)
    pretrained = KerasNetwork(encoder, network.decoder, pretrained=True).build(16, 2, 1)
    assert equal(weights_of(*pretrained), before)


def test_a_model_that_is_a_class_and_was_not_called_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"encoder 'encoder.*' has no shapes.*call a model of your own class"
    ):
        fit(KerasNetwork(Encoder(), a_decoder()))


# -- shapes of images -----------------------------------------------------------------------------------
def an_image_encoder(shape: tuple[int | None, ...]) -> Any:
    x = keras.Input(shape)
    hidden = x if None not in shape else keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(x, keras.layers.Dense(4)(keras.layers.Flatten()(hidden)))


def an_image_decoder(shape: tuple[int, ...]) -> Any:
    return keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(int(np.prod(shape))), keras.layers.Reshape(shape)]
    )


MISTAKEN = {
    "an encoder's sides swapped": (
        (6, 4, 3),
        (4, 6, 3),
        "encoder takes images of shape (6, 4, 3)",
        "resizes",
    ),
    "a decoder's sides swapped": ((4, 6, 3), (6, 4, 3), "makes images of shape (6, 4, 3)", "resizes"),
    "an encoder's channels first": (
        (3, 4, 6),
        (4, 6, 3),
        "encoder takes images of shape (3, 4, 6)",
        "begin with keras.layers.Permute((3, 1, 2))",
    ),
    "a decoder's channels first": (
        (4, 6, 3),
        (3, 4, 6),
        "decoder makes images of shape (3, 4, 6)",
        "end with keras.layers.Permute((2, 3, 1))",
    ),
}


@pytest.mark.parametrize(("taken", "made", "message", "remedy"), MISTAKEN.values(), ids=MISTAKEN)
def test_models_of_images_of_the_same_size_in_another_shape_are_refused(
    taken: tuple[int, ...], made: tuple[int, ...], message: str, remedy: str
) -> None:
    network = KerasNetwork(an_image_encoder(taken), an_image_decoder(made))
    with pytest.raises(ValueError, match="but the images have the shape") as raised:
        network.for_images((4, 6, 3))
    assert message in str(raised.value)
    assert remedy in str(raised.value)


@pytest.mark.parametrize(
    ("taken", "made", "shape", "n_params"),
    [
        ((4, 6, 3), (4, 6, 6), (4, 6, 3), 2),
        ((4, 6), (4, 6), (4, 6, 1), 1),
        ((24,), (4, 6, 2), (4, 6, 1), 2),
        ((4, 6, 1), (24,), (4, 6, 1), 1),
        ((1, 4, 6), (4, 6, 1), (4, 6, 1), 1),
    ],
)
def test_models_may_leave_out_axes_of_one_and_be_flat(
    taken: tuple[int, ...], made: tuple[int, ...], shape: tuple[int, int, int], n_params: int
) -> None:
    network = KerasNetwork(an_image_encoder(taken), an_image_decoder(made)).for_images(shape)
    network.build(int(np.prod(shape)), 2, n_params)


@pytest.mark.wide
def test_an_encoder_of_images_of_any_size_is_given_that_of_the_images(tmp_path: Path) -> None:
    network = KerasNetwork(an_image_encoder((None, None, 1)), an_image_decoder((4, 4, 1)))
    X = images()
    detector = VAEDetector(network, epochs=1, members=1, random_state=0).fit(X)
    assert detector.model_.encoder.input_shape == (None, 16)
    detector.save(tmp_path / "detector.vae")
    np.testing.assert_array_equal(load(tmp_path / "detector.vae").score_samples(X), detector.score_samples(X))
    with pytest.raises(ValueError, match="flat rows don't tell their sides: hand in images, or"):
        VAEDetector(network, epochs=1).fit(X.reshape(-1, 16))


@pytest.mark.wide
def test_flat_rows_before_an_encoder_of_images_are_images() -> None:
    """As they are before a ConvNetwork: the same default likelihood, score and pixels of bytes."""
    network = KerasNetwork(an_image_encoder((4, 4, 1)), an_image_decoder((4, 4, 1)))
    X = (255 * images()).astype(np.uint8)
    detector = VAEDetector(network, epochs=1, random_state=0)
    expected = detector.fit(X).score_samples(X)
    np.testing.assert_array_equal(detector.fit(X.reshape(-1, 16)).score_samples(X.reshape(-1, 16)), expected)
    np.testing.assert_array_equal(detector.score_samples(X), expected)


# -- what a trained model is good for -------------------------------------------------------------------
def test_models_can_be_made_of_the_layers_of_a_trained_one() -> None:
    """Also where an input of the user's own has the name that a network gives its own."""
    X, network = images(20), ConvNetwork(filters=(2, 2), dense_units=())
    model = VAEDetector(network, epochs=1, members=1, random_state=0).fit(X).model_
    encoder, rows = model.encoder, X.reshape(20, -1)
    hidden = keras.Model(encoder.input, encoder.layers[1].output)
    x = keras.Input((16,), name="x")
    joined = keras.Model(x, [hidden(x), encoder(x)[0], model.decoder(encoder(x)[0])])
    apart = hidden(rows), encoder(rows)[0], model.decoder(encoder(rows)[0])
    for made, expected in zip(joined(rows), apart, strict=True):
        np.testing.assert_array_equal(made, expected)


@pytest.mark.wide
def test_the_users_own_encoder_is_the_last_layer_of_the_trained_one() -> None:
    X = images(20)
    detector = VAEDetector(of_images(None), epochs=1, members=1, random_state=0).fit(X)
    encoder = detector.model_.encoder.layers[-1]
    assert keras.Model(encoder.input, encoder.layers[1].output)(X).shape == (20, 4, 4, 2)
    np.testing.assert_array_equal(encoder(X)[0], detector.model_.encoder(X.reshape(20, -1))[0])


# -- pretrained parts -----------------------------------------------------------------------------------
def a_backbone() -> Any:
    """Frozen convolutions with a normalization that has seen other images."""
    backbone = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(3, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
        ]
    )
    rng = np.random.RandomState(1)
    backbone.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in backbone.get_weights()])
    backbone.trainable = False
    return backbone


@pytest.mark.parametrize("epochs", [1, wide(20)])
def test_a_frozen_backbone_stays_as_it_is_within_an_encoder(epochs: int) -> None:
    backbone, x = a_backbone(), keras.Input((4, 4, 1))
    encoder = keras.Model(x, keras.layers.Dense(4)(backbone(x)))
    network, X = KerasNetwork(encoder, an_image_decoder((4, 4, 1))), images()
    model = VAEDetector(network, epochs=epochs, members=1, random_state=0).fit(X).model_
    trained = model.encoder.layers[-1].layers[1]
    assert equal(weights_of(trained), weights_of(backbone))
    np.testing.assert_array_equal(trained(X), backbone(X))


@pytest.mark.wide
@pytest.mark.parametrize("size", [32, None])
def test_a_backbone_of_keras_applications_begins_an_encoder(size: int | None) -> None:
    backbone = keras.applications.MobileNetV2(
        input_shape=(size, size, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    backbone.trainable = False
    x = keras.Input((size, size, 3))
    features = backbone(keras.layers.Rescaling(2.0, offset=-1.0)(x))
    encoder = keras.Model(x, [keras.layers.Dense(2)(features), keras.layers.Dense(2)(features)])
    X = np.random.RandomState(0).random_sample((20, 32, 32, 3)).astype("f4")
    detector = VAEDetector(
        KerasNetwork(encoder, an_image_decoder((32, 32, 3))), epochs=1, members=1, random_state=0
    ).fit(X)
    (kept,) = [layer for layer in detector.model_.encoder._flatten_layers() if layer.name == backbone.name]
    assert equal(weights_of(kept), weights_of(backbone))
    assert np.isfinite(detector.score_samples(X)).all()


def test_a_layer_that_keras_cannot_find_again_is_explained() -> None:
    class Doubling(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return 2 * x

    x = keras.Input((4,))
    encoder = keras.Model(x, keras.layers.Dense(4)(Doubling()(x)))
    with pytest.raises(ValueError, match=r"(?s)@keras.saving.register_keras_serializable\(\).*Doubling"):
        fit(KerasNetwork(encoder, a_decoder()))


def test_a_kl_layer_in_the_encoder_is_warned_of() -> None:
    x = keras.Input((4,))
    outputs = KLDivergence()([keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)])
    with pytest.warns(UserWarning, match="encoder holds a KLDivergence layer.*counted twice"):
        fit(KerasNetwork(keras.Model(x, outputs), a_decoder()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(KerasNetwork(an_encoder(), a_decoder()))


def test_an_encoder_with_named_outputs_is_refused() -> None:
    x = keras.Input((4,))
    outputs = {"mean": keras.layers.Dense(2)(x), "log_var": keras.layers.Dense(2)(x)}
    with pytest.raises(ValueError, match="returns a dictionary; let it return a list"):
        fit(KerasNetwork(keras.Model(x, outputs), a_decoder()))
