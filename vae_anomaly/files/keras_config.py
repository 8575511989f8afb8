"""Keras configurations from a file: which of them are data.

Keras' own safe mode refuses pickled functions. What else a configuration can name is not let through to it:
layers that read files or hold code, and, in some releases of Keras, any function of any module. A
configuration is accepted if every class in it is on the lists below, or was registered with Keras by this
process itself.
"""

from __future__ import annotations

import json
import re

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Json
from vae_anomaly.files.archive import ModelFileError, parse_json

__all__ = ["check_config"]

_LAYERS = """
Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average AveragePooling1D
AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CategoryEncoding Concatenate Conv1D
Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D
Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Flatten
GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization
GroupQueryAttention Identity InputLayer LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxPooling1D
MaxPooling2D MaxPooling3D Maximum Minimum MultiHeadAttention Multiply Normalization PReLU Permute
RMSNormalization RNN ReLU RepeatVector Rescaling Reshape SeparableConv1D SeparableConv2D SimpleRNN
SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization
StackedRNNCells Subtract TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D
ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
_INITIALIZERS = """
Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal LecunUniform
Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros
"""
_CLASSES: dict[str, frozenset[str]] = {
    "keras": frozenset({"DTypePolicy", "Functional", "Model", "Sequential"}),
    "keras.models": frozenset({"Functional", "Model", "Sequential"}),
    "keras.src.models.functional": frozenset({"Functional"}),
    "keras.src.models.sequential": frozenset({"Sequential"}),
    "keras.layers": frozenset(_LAYERS.split()),
    "keras.constraints": frozenset({"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"}),
    "keras.regularizers": frozenset({"L1", "L1L2", "L2", "OrthogonalRegularizer"}),
    "keras.initializers": frozenset(_INITIALIZERS.split()),
    "keras.random": frozenset({"SeedGenerator"}),
    "keras.src.random.seed_generator": frozenset({"SeedGenerator"}),
    "keras.src.ops.core": frozenset({"Cast", "Slice", "StopGradient", "Unstack"}),
}
# Operations on arrays, such as the `+` of two tensors: every class there is one.
_OPERATIONS = {f"keras.src.ops.{module}" for module in ("linalg", "math", "nn", "numpy")}
_VALUES = {"__bytes__", "__ellipsis__", "__keras_tensor__", "__slice__"}
_ARRAYS, _DTYPES = {"__numpy__", "__tensor__"}, re.compile(r"bool|bfloat16|float(16|32|64)|u?int(8|16|32|64)")


def check_config(config: str) -> str:
    """A Keras model's configuration, without what it was compiled with.

    Parameters
    ----------
    config : str, as `spec.config_json` makes it

    Raises
    ------
    ModelFileError
        If it holds anything but layers that are data.
    """
    return json.dumps(_check(parse_json(config.encode(), "a Keras configuration")), sort_keys=True)


def _check(node: Json) -> Json:
    if isinstance(node, list):
        return [_check(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "class_name" in node:
        _check_object(node)
    return {name: _check(value) for name, value in node.items() if name != "compile_config"}


def _check_object(node: dict[str, Json]) -> None:
    name, module, registered = (node.get(key) for key in ("class_name", "module", "registered_name"))
    config = node.get("config")
    if not isinstance(name, str):
        raise _refusal(f"{module}.{name}")
    if name == "function":
        if _is_registered(config) or (module == "keras.activations" and _is_activation(config)):
            return
        raise _refusal(f"the function {config!r}")
    if _is_registered(registered):
        return
    if name in _VALUES:
        return
    if name in _ARRAYS and isinstance(config, dict) and _DTYPES.fullmatch(str(config.get("dtype"))):
        return
    # Keras prefers a registered name to the class.
    if registered in (None, name):
        if name in _CLASSES.get(str(module), ()):
            return
        if module in _OPERATIONS and re.fullmatch(r"[A-Z][A-Za-z0-9]*", name):
            return
    raise _refusal(registered if isinstance(registered, str) and ">" in registered else f"{module}.{name}")


def _is_activation(name: object) -> bool:
    return bool(re.fullmatch(r"[a-z][a-z0-9_]*", str(name))) and name not in {
        "deserialize",
        "get",
        "serialize",
    }


def _is_registered(name: object) -> bool:
    """Whether this process has registered a class or function by this name, which a built-in never has."""
    return isinstance(name, str) and ">" in name and keras.saving.get_registered_object(name) is not None


def _refusal(what: str) -> ModelFileError:
    return ModelFileError(
        f"needs {what}, which is not on the list of Keras layers that are data. Register a class of your own "
        "with @keras.saving.register_keras_serializable(), in a module that is imported before load, and put "
        "there what a Lambda layer does. Otherwise use joblib.dump."
    )
