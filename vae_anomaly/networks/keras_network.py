"""`KerasNetwork`: a user's own Keras models as encoder and decoder.

Live models are never kept, copied or pickled: a `Blueprint` holds what is needed to build one again.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Hashable, Sequence
from typing import ClassVar, NamedTuple

import joblib

from vae_anomaly.core.backend import keras, without_weights
from vae_anomaly.core.spec import config_json
from vae_anomaly.core.types import Array, Constraints, KerasModel, Layer, LayerShape, Values
from vae_anomaly.layers import KLDivergence
from vae_anomaly.networks import Network, initializer_of

__all__ = ["Blueprint", "KerasNetwork"]


class KerasNetwork(Network):
    """A user's own Keras models as encoder and decoder.

    The models are taken as a blueprint: `fit` trains a copy that starts from new weights, drawn by
    each layer's own initializers from the detector's ``random_state``, and leaves the given models as
    they are. Weights without an initializer, and statistics that a layer has adapted to data, start as
    they are in the given models.

    Parameters
    ----------
    encoder : keras.Model
        Takes rows of shape (n_rows, n_features). Returns ``[z_mean, z_log_var]``, or one tensor of
        width 2 * latent_dim that holds both in this order. A third output (a draw z) is ignored.
        It should hold no `KLDivergence` layer: the detector adds the KL itself.
    decoder : keras.Model
        Takes (n_rows, latent_dim). Returns (n_rows, n_features * n_params) *without* an output
        activation: the likelihood has the link.
    pretrained : bool, default=False
        Start from the models' present weights instead of new ones.

    Raises
    ------
    TypeError
        When used, if a model is not a `keras.Model`.
    ValueError
        When used, if a model has no input shape, if its shapes don't fit, or if it holds layers that
        Keras cannot build again because their class is not registered.

    Examples
    --------
    >>> import keras
    >>> from vae_anomaly import KerasNetwork, VAEDetector
    >>> x = keras.Input((4,))
    >>> hidden = keras.layers.Dense(16, activation="gelu")(x)
    >>> encoder = keras.Model(x, [keras.layers.Dense(2)(hidden), keras.layers.Dense(2)(hidden)])
    >>> decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(16), keras.layers.Dense(4)])
    >>> detector = VAEDetector(network=KerasNetwork(encoder, decoder))
    """

    _parameter_constraints: ClassVar[Constraints] = {"pretrained": ["boolean"]}

    def __init__(self, encoder: KerasModel, decoder: KerasModel, pretrained: bool = False) -> None:
        self.encoder = encoder
        self.decoder = decoder
        self.pretrained = pretrained

    def default_latent_dim(self, n_features: int) -> int:
        """What ``latent_dim="auto"`` means: the width of the decoder's input."""
        _, decoder = self._blueprints()
        return int(decoder.input_shape[-1])

    def marks_missing(self) -> bool:
        """No: the encoder's width is given."""
        return False

    def build(self, n_features: int, latent_dim: int, n_params: int) -> tuple[KerasModel, KerasModel]:
        return self.build_apart(n_features, n_features * n_params, latent_dim)

    def build_apart(self, n_inputs: int, n_outputs: int, latent_dim: int) -> tuple[KerasModel, KerasModel]:
        encoder, decoder = self._blueprints()
        _expect("encoder", "input", encoder.input_shape, [(None, n_inputs)])
        pair = [(None, latent_dim)] * 2
        outputs = encoder.output_shape
        if not isinstance(outputs, list):
            _expect("encoder", "output", outputs, [(None, 2 * latent_dim)])
        elif list(map(tuple, outputs[:2])) != pair:
            _expect("encoder", "output", outputs, pair)
        _expect("decoder", "input", decoder.input_shape, [(None, latent_dim)])
        _expect("decoder", "output", decoder.output_shape, [(None, n_outputs)])
        return encoder.build(), decoder.build()

    @property
    def starts_from_new_weights(self) -> bool:
        return not self.pretrained

    def architecture_key(self) -> Hashable:
        """Equal for equal models; of their present weights, those count that a fit starts from."""
        encoder, decoder = self._blueprints()
        kept = [joblib.hash(b.weights) if self.pretrained else b.kept for b in (encoder, decoder)]
        return type(self), encoder.config, decoder.config, self.pretrained, *kept

    def snapshot(self) -> KerasNetwork:
        """A copy with blueprints in the place of the models."""
        encoder, decoder = self._blueprints()
        for role, blueprint in (("encoder", encoder), ("decoder", decoder)):
            if blueprint.adds_kl:
                warnings.warn(
                    f"KerasNetwork's {role} holds a KLDivergence layer, and the detector adds the KL itself: "
                    "it will be counted twice. Take the layer out of the model.",
                    stacklevel=2,
                )
        return KerasNetwork(encoder, decoder, self.pretrained)

    def _blueprints(self) -> tuple[Blueprint, Blueprint]:
        return Blueprint.of("encoder", self.encoder), Blueprint.of("decoder", self.decoder)

    # Pickles hold configuration and arrays, never a live Keras model.
    def __getstate__(self) -> Values:
        state = dict(super().__getstate__())
        for role in ("encoder", "decoder"):
            if isinstance(state[role], keras.Model):
                state[role] = _Pickled(Blueprint.of(role, state[role]))
        return state

    def __setstate__(self, state: Values) -> None:
        for role in ("encoder", "decoder"):
            if isinstance(state[role], _Pickled):
                state = {**state, role: state[role].blueprint.build()}
        super().__setstate__(state)


class Blueprint(NamedTuple):
    """A Keras model as configuration and arrays.

    Attributes
    ----------
    config : str, the model's configuration as JSON
    weights : list of arrays
    kept : str
        Digest of the weights that a fit keeps, because nothing can draw them anew.
    adds_kl : bool
        Whether the model holds a `KLDivergence` layer.
    input_shape, output_shape : the model's shapes
    trusted : bool
        Whether the configuration is the user's own. One from a file may hold no code and build no model of
        other weights than these.
    """

    config: str
    weights: list[Array]
    kept: str
    adds_kl: bool
    input_shape: LayerShape
    output_shape: LayerShape
    trusted: bool = True

    def __repr__(self) -> str:
        return f"Blueprint({self.input_shape} -> {self.output_shape})"

    @classmethod
    def of(cls, role: str, model: KerasModel) -> Blueprint:
        """The blueprint of a model, or the blueprint itself."""
        if isinstance(model, cls):
            return model
        if not isinstance(model, keras.Model):
            raise TypeError(f"KerasNetwork needs a keras.Model as {role}; received {type(model).__name__}.")
        if not getattr(model, "inputs", None):
            raise ValueError(
                f"KerasNetwork's {role} {model.name!r} has no shapes: give it a keras.Input, as "
                "functional and Sequential models have."
            )
        if isinstance(getattr(model, "output", None), dict):
            raise ValueError(
                f"KerasNetwork's {role} {model.name!r} returns a dictionary; let it return a list, "
                "[z_mean, z_log_var], or one tensor."
            )
        layers = list(model._flatten_layers())
        return cls(
            config_json(model),
            model.get_weights(),
            joblib.hash(_keep_weights(model, layers)),
            any(isinstance(layer, KLDivergence) for layer in layers),
            model.input_shape,
            model.output_shape,
        )

    def build(self) -> KerasModel:
        """A new Keras model with these weights."""
        if not self.trusted:
            # Before any memory is spent on weights that are not in the file.
            with without_weights():
                shapes = [tuple(weight.shape) for weight in self._model().weights]
            if shapes != [weight.shape for weight in self.weights]:
                raise ValueError(
                    f"a Keras model from a file has weights of shapes {[w.shape for w in self.weights]}, but "
                    f"its configuration describes {shapes}."
                )
        model = self._model()
        model.set_weights(self.weights)
        for layer in model._flatten_layers():
            if _adapts(layer):
                layer.finalize_state()
        return model

    def _model(self) -> KerasModel:
        # Layers without a seed draw one from Python's global generator when they are made.
        random_state = random.getstate()
        try:
            # A user's own model, or one from a pickle, which can run code anyway, may have a Lambda layer.
            return keras.saving.deserialize_keras_object(json.loads(self.config), safe_mode=not self.trusted)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "Keras cannot build a copy of a model given to KerasNetwork. Classes of your own need the "
                "decorator @keras.saving.register_keras_serializable() and a get_config that returns every "
                f"argument of their constructor. Keras says: {error}"
            ) from error
        finally:
            random.setstate(random_state)


class _Pickled(NamedTuple):
    """In a pickle, what was a live model."""

    blueprint: Blueprint


def _adapts(layer: Layer) -> bool:
    """Whether the layer turns statistics of data into constants of the graph, as Normalization does."""
    return callable(getattr(layer, "finalize_state", None))


def _keep_weights(model: KerasModel, layers: Sequence[Layer]) -> list[Array]:
    drawn = {
        id(variable)
        for layer in layers
        if not _adapts(layer)
        for variable in layer.weights
        if initializer_of(layer, variable.name) is not None
    }
    return [variable.numpy() for variable in model.weights if id(variable) not in drawn]


def _expect(role: str, side: str, received: LayerShape, expected: Sequence[tuple[int | None, int]]) -> None:
    if received != (list(expected) if len(expected) > 1 else expected[0]):
        wanted = " and ".join(map(str, expected))
        raise ValueError(
            f"KerasNetwork's {role} must have {side} shape {wanted} (n_features, latent_dim and the "
            f"likelihood's n_params decide it); received {received}."
        )
