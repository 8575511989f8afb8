"""`KerasNetwork`: a user's own Keras models as encoder and decoder.

Live models are never kept, copied or pickled: a `Blueprint` holds what is needed to build one again.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, NamedTuple

import joblib
import numpy as np

from vae_anomaly.core.backend import keras, without_weights
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.rows import with_channels
from vae_anomaly.core.spec import config_json
from vae_anomaly.core.types import Array, Constraints, KerasModel, Layer, LayerShape, Shape, Values
from vae_anomaly.layers import KLDivergence
from vae_anomaly.networks import Network, initializer_of
from vae_anomaly.networks.base import Heads, is_ambiguous, usual_heads

__all__ = ["Blueprint", "KerasNetwork"]


class KerasNetwork(Network):
    """A user's own Keras models as encoder and decoder.

    The models may be functional, Sequential, or of a class of your own that has been called once. They are
    taken as a blueprint: `fit` trains a copy that starts from new weights, drawn by
    each layer's own initializers from the detector's ``random_state``, and leaves the given models as
    they are. Layers with ``trainable=False``, weights without an initializer, and statistics that a layer has
    adapted to data keep the values of the given models. The copy computes in float32, whatever dtype policy
    the models were made under.

    Parameters
    ----------
    encoder : keras.Model
        Takes rows of shape (n_rows, n_features), or images of the shape that X holds; flat rows are images of
        the encoder's shape. Sides of any length, ``keras.Input((None, None, 3))``, become those of X. Returns
        ``[z_mean, z_log_var]``, or one tensor of width 2 * latent_dim that holds both in this order. A third
        output (a draw z) is ignored. A ``posterior`` that wants other heads takes one output for each. It
        should hold no `KLDivergence` layer: the detector adds the KL itself.
    decoder : keras.Model
        Takes (n_rows, latent_dim). Returns (n_rows, n_features * n_params), or images, with the parameters of
        a channel next to each other: (n_rows, height, width, channels * n_params). *Without* an output
        activation: the likelihood has the link. `fit` refuses a decoder that applies the link too, such as
        one that ends in a sigmoid with a Bernoulli likelihood, and warns of any other that cannot reach the
        training rows.
    pretrained : bool, default=False
        Start all layers from the models' present weights instead of new ones.

    Raises
    ------
    TypeError
        When used, if a model is not a `keras.Model`.
    ValueError
        When used, if a model has no input shape, if its shapes don't fit, or if Keras cannot build it or a
        layer of it again because their class is not registered.

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

    def for_images(self, image_shape: Shape | None) -> KerasNetwork:
        """The network for images of this shape, which its encoder is given if it takes images of any size.

        Raises
        ------
        ValueError
            If a model takes or makes images of another shape.
        """
        # Blueprints, which are made of live models once here and not again at each question.
        network = KerasNetwork(*self._blueprints(), self.pretrained)
        images = network.shape_of_images(None) if image_shape is None else with_channels(image_shape)
        shapes = network.encoder.input_shape, network.decoder.output_shape
        if images is None or not all(isinstance(shape, tuple) for shape in shapes):
            return network  # `build` says what is wrong
        (_, *own), (_, *made) = shapes
        if _fits_open_sides(own, images):
            network.encoder = Blueprint.of("encoder", _of_shape(network.encoder.build(), images))
        elif not _same_order(own, images):
            raise _other_images("encoder", "takes", tuple(own), images, "Permute((3, 1, 2))", "begin")
        if not any(_same_order(made, [*shape[:-1], made[-1]]) for shape in (images, _long_axes(images))):
            raise _other_images("decoder", "makes", tuple(made), images, "Permute((2, 3, 1))", "end")
        return network

    def shape_of_images(self, image_shape: Shape | None) -> Shape | None:
        """The shape of the images in X, or of those that the encoder takes."""
        if image_shape is not None:
            return None if self.signal_channels() else with_channels(image_shape)
        shape = self._blueprints()[0].input_shape
        return shape[1:] if isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:] else None

    def signal_channels(self) -> int | None:
        """Those of an encoder that takes (length, channels), if that is not rather the shape of an image."""
        shape = self._blueprints()[0].input_shape
        if not isinstance(shape, tuple) or None in shape[1:] or not is_ambiguous(shape[1:]):
            return None
        return int(shape[-1])

    def default_latent_dim(self, n_features: int, of_pixels: bool = False) -> int:
        """What ``latent_dim="auto"`` means: the width of the decoder's input."""
        _, decoder = self._blueprints()
        return int(decoder.input_shape[-1])

    def marks_missing(self) -> bool:
        """No: the encoder's width is given."""
        return False

    def build(
        self, n_features: int, latent_dim: int, n_params: int, heads: Heads | None = None
    ) -> tuple[KerasModel, KerasModel]:
        return self.build_apart(n_features, n_features * n_params, latent_dim, heads=heads)

    def build_apart(
        self, n_inputs: int, n_outputs: int, latent_dim: int, heads: Heads | None = None
    ) -> tuple[KerasModel, KerasModel]:
        encoder, decoder = self._blueprints()
        if not _holds(encoder.input_shape, n_inputs):
            raise _misfit("encoder", "input", encoder.input_shape, f"(None, {n_inputs})", n_inputs)
        outputs, widths = encoder.output_shape, [*(heads or usual_heads(latent_dim)).values()]
        wanted = [(None, width) for width in widths]
        if not isinstance(outputs, list):
            if outputs != (None, sum(widths)):
                raise _misfit("encoder", "output", outputs, f"(None, {sum(widths)})")
        elif list(map(tuple, outputs[: len(widths)])) != wanted:
            raise _misfit("encoder", "output", outputs, " and ".join(map(str, wanted)))
        if decoder.input_shape != (None, latent_dim):
            raise _misfit("decoder", "input", decoder.input_shape, f"(None, {latent_dim})")
        if not _holds(decoder.output_shape, n_outputs):
            raise _misfit("decoder", "output", decoder.output_shape, f"(None, {n_outputs})", n_outputs)
        return _of_flat_rows(encoder.build(), n_inputs), _to_flat_rows(decoder.build(), n_outputs)

    @property
    def starts_from_new_weights(self) -> bool:
        return not self.pretrained

    def architecture_key(self) -> Hashable:
        """Equal for equal models; of their present weights, those count that a fit starts from."""
        encoder, decoder = self._blueprints()
        kept = [joblib.hash(b.weights) if self.pretrained else b.kept for b in (encoder, decoder)]
        trainable = encoder.trainable, decoder.trainable
        return type(self), encoder.config, decoder.config, self.pretrained, trainable, *kept

    def snapshot(self) -> KerasNetwork:
        """A copy with blueprints in the place of the models."""
        encoder, decoder = self._blueprints()
        for role, blueprint in (("encoder", encoder), ("decoder", decoder)):
            if blueprint.adds_kl:
                warn_user(
                    f"KerasNetwork's {role} holds a KLDivergence layer, and the detector adds the KL itself: "
                    "it will be counted twice. Take the layer out of the model."
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
    trainable : tuple of bool
        Of each layer, the layers within others included, whether it is trained: configurations tell it of
        layers that are made by others' classes only at times. Empty if it is not known.
    """

    config: str
    weights: list[Array]
    kept: str
    adds_kl: bool
    input_shape: LayerShape
    output_shape: LayerShape
    trusted: bool = True
    trainable: tuple[bool, ...] = ()

    def __repr__(self) -> str:
        return f"Blueprint({self.input_shape} -> {self.output_shape})"

    @classmethod
    def of(cls, role: str, model: KerasModel) -> Blueprint:
        """The blueprint of a model, or the blueprint itself."""
        if isinstance(model, cls):
            return model
        if not isinstance(model, keras.Model):
            kind = type(model)
            hint = "; build the model with Keras 3" if kind.__module__.startswith("tf_keras") else ""
            raise TypeError(
                f"KerasNetwork needs a keras.Model as {role}; received {kind.__name__} of the module "
                f"{kind.__module__}{hint}."
            )
        if not getattr(model, "inputs", None):
            model = _with_input(role, model)
        if isinstance(getattr(model, "output", None), dict):
            raise ValueError(
                f"KerasNetwork's {role} {model.name!r} returns a dictionary; let it return a list, "
                "[z_mean, z_log_var], or one tensor."
            )
        layers = list(model._flatten_layers())
        return cls(
            json.dumps(_in_float32(json.loads(config_json(model))), sort_keys=True),
            [_as_float32(weight) for weight in model.get_weights()],
            joblib.hash([_as_float32(weight) for weight in _keep_weights(model, layers)]),
            any(isinstance(layer, KLDivergence) for layer in layers),
            model.input_shape,
            model.output_shape,
            trainable=tuple(bool(layer.trainable) for layer in layers),
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
        layers = list(model._flatten_layers())
        if len(layers) == len(self.trainable):
            # A layer comes before those within it, which it freezes with itself.
            for layer, trainable in zip(layers, self.trainable, strict=True):
                if layer.trainable != trainable:
                    layer.trainable = trainable
        model.set_weights(self.weights)
        for layer in layers:
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


def _in_float32(config: Any) -> Any:
    """A configuration whose layers compute in float32, whatever dtype policy they were made under."""
    if isinstance(config, list):
        return [_in_float32(item) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return {**config, "config": {**config["config"], "name": "float32"}}
    return {
        name: "float32" if name == "dtype" and value in _OTHER_FLOATS else _in_float32(value)
        for name, value in config.items()
    }


_OTHER_FLOATS = ("float16", "bfloat16", "float64")


def _as_float32(weight: Array) -> Array:
    return weight.astype(np.float32) if str(weight.dtype) in _OTHER_FLOATS else weight


def _with_input(role: str, model: KerasModel) -> KerasModel:
    """A model that is a class as a functional one, of the shape that it was called with."""
    shape = (model.get_build_config() or {}).get("input_shape") if model.built else None
    if not isinstance(shape, (list, tuple)) or not all(isinstance(side, (int, type(None))) for side in shape):
        raise ValueError(
            f"KerasNetwork's {role} {model.name!r} has no shapes: give it a keras.Input, as functional and "
            "Sequential models have, or call a model of your own class once, on one array of rows."
        )
    return _of_shape(model, shape[1:])


def _of_shape(model: KerasModel, shape: LayerShape) -> KerasModel:
    """The model as a functional one of this input shape."""
    x = keras.Input(tuple(shape), name="inputs")
    outputs = model(x)
    return keras.Model(x, list(outputs) if isinstance(outputs, tuple) else outputs, name=model.name)


def _fits_open_sides(own: Sequence[int | None], shape: Shape) -> bool:
    """Whether images of this shape are among those of any size that a model takes."""
    return (
        None in own
        and len(own) == len(shape)
        and all(mine in (None, side) for mine, side in zip(own, shape, strict=True))
    )


def _same_order(own: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Whether a shape is flat, or equal to the other but for axes of length 1."""
    return len(_long_axes(own)) <= 1 or _long_axes(own) == _long_axes(shape)


def _long_axes(shape: Sequence[int | None]) -> list[int | None]:
    return [side for side in shape if side != 1]


def _other_images(
    role: str, verb: str, own: LayerShape, shape: Shape, permute: str, where: str
) -> ValueError:
    height, width, channels = shape
    first = own[:3] == (channels, height, width) and channels not in (height, width)
    remedy = (
        f"Its channels come first: let it {where} with keras.layers.{permute}"
        if first
        else f"Give it that shape, or let it {where} with a layer that resizes, crops or permutes"
    )
    return ValueError(
        f"KerasNetwork's {role} {verb} images of shape {own}, but the images have the shape {shape} (height, "
        f"width, channels). {remedy}."
    )


def _of_flat_rows(encoder: KerasModel, n_inputs: int) -> KerasModel:
    """The encoder of images, as one of flat rows."""
    _, *shape = encoder.input_shape
    if len(shape) == 1:
        return encoder
    rows = keras.Input((n_inputs,), name="rows")
    return keras.Model(rows, encoder(keras.layers.Reshape(shape, name="images")(rows)), name="encoder")


def _to_flat_rows(decoder: KerasModel, n_outputs: int) -> KerasModel:
    """The decoder to images, as one to flat rows."""
    if len(decoder.output_shape) == 2:
        return decoder
    latents = keras.Input(decoder.input_shape[1:], name="latents")
    rows = keras.layers.Reshape((n_outputs,), name="rows")(decoder(latents))
    return keras.Model(latents, rows, name="decoder")


def _holds(shape: LayerShape, n_numbers: int) -> bool:
    """Whether a row of this shape holds so many numbers."""
    return isinstance(shape, tuple) and None not in shape[1:] and math.prod(shape[1:]) == n_numbers


def _misfit(
    role: str, side: str, received: LayerShape, expected: str, n_numbers: int | None = None
) -> ValueError:
    images = "" if n_numbers is None else f", or that of an image with {n_numbers} numbers"
    reason = "n_features, latent_dim, the posterior and the likelihood's n_params decide it"
    if side == "input" and isinstance(received, tuple) and None in received[1:]:
        reason = "flat rows don't tell their sides: hand in images, or give it a keras.Input with sides"
    return ValueError(
        f"KerasNetwork's {role} must have {side} shape {expected}{images} ({reason}); received {received}."
    )
