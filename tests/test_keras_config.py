"""Keras configurations: layers that are data pass, whatever could be code does not."""

import json

import keras
import numpy as np
import pytest

from vae_anomaly import KerasNetwork, ModelFileError
from vae_anomaly.core.spec import config_json
from vae_anomaly.files.keras_config import check_config
from vae_anomaly.layers import KLDivergence
from vae_anomaly.networks.keras_network import Blueprint


@keras.saving.register_keras_serializable(package="test_keras_config")
class Doubling(keras.layers.Layer):
    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable(package="test_keras_config")
def halved(x):
    return x / 2


def functional():
    x = keras.Input((6,))
    z = keras.layers.Normalization(mean=[0.0] * 6, variance=[1.0] * 6)(x)
    z = keras.layers.Dense(4, activation="gelu", kernel_regularizer="l2", bias_constraint="non_neg")(z)
    z = keras.ops.relu(z) + 1.0
    z = keras.layers.Dropout(0.1)(keras.layers.BatchNormalization()(z))
    return keras.Model(x, [keras.layers.Dense(2, kernel_initializer="he_normal")(z), keras.ops.tanh(z)])


def attentive():
    x = keras.Input((12,))
    z = keras.layers.Reshape((4, 3))(x)
    z = keras.layers.MultiHeadAttention(2, 3)(z, z)
    z = keras.layers.Bidirectional(keras.layers.GRU(3))(z)
    return keras.Model(x, keras.layers.SpectralNormalization(keras.layers.Dense(3))(z))


def convolutional():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((64,)), layers.Reshape((8, 8, 1)), layers.Conv2D(3, 3, strides=2), layers.ReLU()]
        + [layers.SeparableConv2D(2, 2), layers.GlobalAveragePooling2D(), layers.LayerNormalization()]
    )


def nested_and_compiled():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5), keras.layers.PReLU()])
    model = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(2)])
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    return model


def registered():
    x = keras.Input((4,))
    z = keras.layers.Dense(3, activation=halved)(Doubling()(x))
    return keras.Model(x, KLDivergence()([keras.layers.Dense(2)(z), keras.layers.Dense(2)(z)]))


MODELS = [functional, attentive, convolutional, nested_and_compiled, registered]


@pytest.mark.parametrize("make", MODELS)
def test_models_of_such_layers_pass_and_compute_the_same(make):
    model = make()
    config = check_config(config_json(model))
    assert "compile_config" not in config
    assert check_config(config) == config
    blueprint = Blueprint.of("encoder", model)._replace(config=config, trusted=False)
    X = np.random.RandomState(0).normal(size=(3, *model.input_shape[1:])).astype("f4")
    for one, other in zip(*map(keras.tree.flatten, (blueprint.build()(X), model(X))), strict=True):
        np.testing.assert_array_equal(one, other)


def edited(**fields):
    """A configuration of one layer, whose entry was edited."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    config = json.loads(config_json(model))
    config["config"]["layers"][-1].update(fields)
    return json.dumps(config)


def layer(name, **config):
    return {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None}


def function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def activation(value):
    return {"config": {"units": 5, "activation": value}}


CODE = {
    "a pickled function": activation({"class_name": "__lambda__", "config": {"value": ["4wE=", None, None]}}),
    "a Lambda layer": layer("Lambda", function=function("keras.ops", "tanh")),
    "a saved model": layer("TFSMLayer", filepath="/tmp/model"),
    "a torch module": layer("TorchModuleWrapper", module="gASV"),
    "a JAX layer": layer("JaxLayer"),
    "a vocabulary file": layer("StringLookup", vocabulary="/etc/passwd"),
    "a vectorizer": layer("TextVectorization", vocabulary="/etc/passwd"),
    "a pipeline": layer("Pipeline", layers=[]),
    "a deserializer": layer("deserialize"),
    "a loader": {"module": "keras.models", "class_name": "load_model", "config": {}},
    "a module of Python": {"module": "os", "class_name": "system", "config": "true"},
    "a module of Keras": {"module": "keras.src.utils.file_utils", "class_name": "File", "config": {}},
    "a module of another package": {"module": "keras_hub.models", "class_name": "Backbone", "config": {}},
    "no module": {"module": None, "class_name": "Dense"},
    "another name": {"registered_name": "somebody>Dense"},
    "a namesake": {"registered_name": "Dense2"},
    "a function of Python": activation(function("builtins", "eval")),
    "a function of a module": activation(function("os", "system")),
    "a function of Keras": activation(function("keras.models", "load_model")),
    "a function of its configuration": activation(function("keras.config", "enable_unsafe_deserialization")),
    "a getter": activation(function("keras.activations", "get")),
    "a dotted function": activation(function("keras.activations", "relu.__globals__")),
    "a function without a name": activation(function("keras.activations", None)),
    "a type": activation({"class_name": "__typespec__", "config": [], "module": "os", "spec_name": "system"}),
    "objects": activation({"class_name": "__numpy__", "config": {"value": [], "dtype": "object"}}),
    "a huge type": activation({"class_name": "__tensor__", "config": {"value": [], "dtype": "V2000000000"}}),
    "an operation with a function": {"module": "keras.src.ops.core", "class_name": "Map", "config": {}},
    "a function of an operation's module": {
        "module": "keras.src.ops.numpy",
        "class_name": "add",
        "config": {},
    },
    "a name that is none": {"class_name": ["Dense"]},
    "an initializer": {"module": "keras.initializers", "class_name": "get", "config": {"identifier": "x"}},
}


@pytest.mark.parametrize("fields", CODE.values(), ids=CODE)
def test_whatever_could_be_code_is_refused(fields):
    with pytest.raises(ModelFileError, match="not on the list of Keras layers that are data.*register_keras"):
        check_config(edited(**fields))


@pytest.mark.parametrize("config", ["", "[", '{"a": 1, "a": 2}', "[" * 50_000])
def test_what_is_no_json_is_refused(config):
    with pytest.raises(ModelFileError, match="a Keras configuration is"):
        check_config(config)


def test_a_blueprint_from_a_file_builds_no_model_but_that_of_its_weights():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(7)])
    blueprint = Blueprint.of("decoder", model)._replace(trusted=False)
    assert [w.shape for w in blueprint.build().weights] == [(4, 5), (5,), (5, 7), (7,)]
    # A kernel of 2 terabytes, which no machine here could make.
    config = blueprint.config.replace('"units": 7', '"units": 800000')
    config = config.replace('"units": 5', '"units": 700000').replace("[null, 5]", "[null, 700000]")
    with pytest.raises(ValueError, match=r"has weights of shapes \[\(4, 5\),.*describes.*\(700000, 800000\)"):
        blueprint._replace(config=config).build()


def test_a_blueprint_from_a_file_keeps_keras_safe_mode():
    x = keras.Input((4,))
    outputs = keras.layers.Dense(4)(keras.layers.Lambda(lambda x: 2 * x, output_shape=(4,))(x))
    blueprint = Blueprint.of("encoder", keras.Model(x, outputs))
    assert blueprint.build().count_params() == 20
    with pytest.raises(ValueError, match="Keras says"):
        blueprint._replace(trusted=False).build()


def test_a_network_of_blueprints_is_a_network_like_any():
    encoder, decoder = (keras.Sequential([keras.Input((n,)), keras.layers.Dense(4)]) for n in (4, 2))
    network = KerasNetwork(encoder, decoder)
    stored = KerasNetwork(*(Blueprint.of("it", m)._replace(trusted=False) for m in (encoder, decoder)))
    assert stored.default_latent_dim(4) == network.default_latent_dim(4) == 2
    assert stored.architecture_key() == network.architecture_key()
