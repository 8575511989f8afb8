"""What every network has, and the parts that networks of this package are made of."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple, Protocol

from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import with_channels
from vae_anomaly.core.spec import Spec
from vae_anomaly.core.types import Initializer, KerasModel, Layer, Shape, Tensor

__all__ = [
    "Heads",
    "LastActivation",
    "Network",
    "check_activation",
    "check_models",
    "check_sizes",
    "check_unambiguous",
    "describe_heads",
    "finish_layer",
    "glorot",
    "hidden_initializer",
    "initializer_of",
    "is_ambiguous",
    "last_activation",
    "usual_heads",
    "with_heads",
]

#: What an encoder returns of a row: names and widths of its outputs, in order.
Heads = Mapping[str, int]


# Layers and operations that leave each number what it was, if not in a training step.
_MOVING = {"ExpandDims", "Flatten", "Flip", "GetItem", "Permute", "Reshape", "Squeeze", "Transpose"}
_MOVING |= {
    f"{kind}{n}D" for kind in ("Cropping", "SpatialDropout", "UpSampling", "ZeroPadding") for n in (1, 2, 3)
}
_MOVING |= {"AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity"}
# What may be a signal rather than a gray image: narrow, or longer than images are.
_SHORTEST_SIGNAL, _MOST_CHANNELS, _LONGEST_IMAGE = 8, 4, 8


class HiddenLayers(Protocol):
    """A network whose hidden layers may be normalized and have dropout."""

    activation: str | Callable[[Tensor], Tensor]
    batch_normalization: bool
    dropout: float


class Network(Spec):
    """Base class of the networks."""

    @property
    def starts_from_new_weights(self) -> bool:
        """Whether a fit draws new weights, or starts from those that `build` returns."""
        return True

    def for_images(self, image_shape: Shape | None) -> Network:
        """The network to use for images or signals of this shape, or for rows of a table (None).

        ``image_shape`` is the shape of one image in X, (height, width) or (height, width, channels), or that
        of one signal, (length, channels).
        """
        return self

    def default_latent_dim(self, n_features: int, of_pixels: bool = False) -> int:
        """What ``latent_dim="auto"`` means: as many latents as features, at most 8, of pixels 16."""
        return min(n_features, 16 if of_pixels else 8)

    def shape_of_images(self, image_shape: Shape | None) -> Shape | None:
        """(height, width, channels) of the images that its rows are, or None for tables and signals.

        ``image_shape`` is the shape of the images that X held, or None.
        """
        return None if image_shape is None else with_channels(image_shape)

    def signal_channels(self) -> int | None:
        """The number of channels of the signals that its rows are, or None for images and tables."""
        return None

    def default_likelihood(self, image_shape: Shape | None) -> str:
        """What ``likelihood="auto"`` means: Gaussian, for images with one scale for all pixels."""
        return "gaussian" if self.shape_of_images(image_shape) is None else "pixel_gaussian"

    def fewest_weights(self, n_features: int, latent_dim: int, n_params: int) -> int:
        """A bound from below for the number of weights in what `build` returns, known without building it."""
        return 0

    def build(
        self, n_features: int, latent_dim: int, n_params: int, heads: Heads | None = None
    ) -> tuple[KerasModel, KerasModel]:
        """Return a new Keras encoder and decoder.

        Parameters
        ----------
        n_features : int
            The width of a row.
        latent_dim : int
            The number of latent dimensions.
        n_params : int
            How many numbers the likelihood wants for each feature.
        heads : dict of name to width, or None, default=None
            What the posterior wants the encoder to return, in order; None is `usual_heads`. A network of
            your own whose ``build`` does not take it serves posteriors that want no more than those.

        Returns
        -------
        encoder : keras.Model, (n_rows, n_features) -> [z_mean, z_log_var], or a list of the ``heads``
        decoder : keras.Model, (n_rows, latent_dim) -> (n_rows, n_features * n_params)
        """
        raise self._lacks("build")

    def build_apart(
        self, n_inputs: int, n_outputs: int, latent_dim: int, heads: Heads | None = None
    ) -> tuple[KerasModel, KerasModel]:
        """A new encoder and decoder whose widths differ: of mixed tables, or with marks for missing values.

        Returns
        -------
        encoder : keras.Model, (n_rows, n_inputs) -> as that of `build`
        decoder : keras.Model, (n_rows, latent_dim) -> (n_rows, n_outputs)
        """
        others = {} if heads is None else {"heads": heads}
        encoder, _ = self.build(n_inputs, latent_dim, 1, **others)
        return encoder, self.build(n_outputs, latent_dim, 1)[1]

    def check_heads(self, heads: Heads, latent_dim: int) -> None:
        """Refuse heads, before anything is built, that `build` cannot give to the encoder.

        Raises
        ------
        ValueError
        """
        if dict(heads) != usual_heads(latent_dim) and "heads" not in inspect.signature(self.build).parameters:
            raise ValueError(
                f"the posterior wants an encoder that returns {describe_heads(heads)}, and "
                f"{type(self).__name__}.build makes none: give it a parameter `heads`, a dict of name to "
                "width, and let the encoder return one output for each."
            )

    def marks_missing(self) -> bool:
        """Whether the encoder is to be told which values are missing, by one more input for each feature."""
        return True


def is_ambiguous(image_shape: Shape) -> bool:
    """Whether arrays of this shape may be signals, (length, channels), as well as gray images."""
    if len(image_shape) != 2:
        return False
    height, width = image_shape
    return height >= _SHORTEST_SIGNAL and (width <= _MOST_CHANNELS or height >= _LONGEST_IMAGE * width)


def check_unambiguous(image_shape: Shape | None) -> None:
    """Refuse arrays that may be signals as well as gray images, and say how to say which.

    Raises
    ------
    ValueError
    """
    if image_shape is not None and is_ambiguous(image_shape):
        height, width = image_shape
        raise ValueError(
            f"X holds signals of length {height} with {width} channels, or gray images {height} pixels high "
            f"and {width} wide; its shape (n, {height}, {width}) does not tell. For signals, set "
            "network=ConvNetwork(dimensions=1); for images, hand in X[..., np.newaxis]."
        )


def glorot() -> Initializer:
    """An initializer with a seed of its own: Keras' default draws one from Python's global generator.

    Every fit replaces the seed by one derived from ``random_state``.
    """
    return keras.initializers.GlorotUniform(seed=0)


def hidden_initializer(activation: object) -> Initializer:
    """The initializer of a layer that this activation follows."""
    return keras.initializers.LecunNormal(seed=0) if _is_selu(activation) else glorot()


def initializer_of(layer: Layer, name: str) -> Initializer | None:
    """What draws the layer's variable of this name, under any of Keras' names for it, or None.

    A frozen layer keeps its weights: nobody freezes random ones.
    """
    if not layer.trainable:
        return None
    stems = (name, name.removesuffix("_kernel"), *(["depthwise"] if name == "kernel" else []))
    return next(filter(None, (getattr(layer, f"{stem}_initializer", None) for stem in stems)), None)


class LastActivation(NamedTuple):
    """What a model ends in behind its last weights.

    Attributes
    ----------
    name : str
    function : callable, from an array to one of the same shape
    """

    name: str
    function: Callable[[Tensor], Tensor]


def last_activation(model: KerasModel) -> LastActivation | None:
    """What a model of one output applies to each number behind its last weights, or None.

    That is an activation in any form: of a layer, a layer or an operation of its own, also within a model
    that is a class. Operations behind it, such as Rescaling, belong to it; those that only move values, such
    as Reshape and Cropping2D, are passed over.
    """
    steps: list[Callable[[Tensor], Tensor]] = []
    names: list[str] = []
    output = model.outputs[0]
    while True:
        layer, position, index = output._keras_history
        nodes = layer._inbound_nodes
        inputs = nodes[position].input_tensors if nodes else []
        if isinstance(layer, keras.Model):
            outputs = getattr(layer, "outputs", None) or _open(layer, inputs)
            if not outputs:
                break
            output = outputs[index]
        elif type(layer).__name__ in _MOVING:
            (output,) = inputs
        elif len(inputs) == 1 and not getattr(layer, "weights", ()) and inputs[0].shape == output.shape:
            if getattr(layer, "activation", None) is not keras.activations.linear:
                steps.append(partial(_apply, nodes[position], inputs[0]))
                names.append(_name_of(layer))
            (output,) = inputs
        else:
            activation = getattr(layer, "activation", None)
            if activation not in (None, keras.activations.linear):
                steps.append(activation)
                names.append(_name_of(activation))
            break
    steps.reverse()
    return LastActivation(names[-1], partial(_chain, steps)) if steps else None


def _open(model: KerasModel, inputs: list[Tensor]) -> list[Tensor]:
    """The outputs of a model that is a class, with the operations that made them if Keras can tell."""
    try:
        outputs = model.call(*[keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs])
    except Exception:  # anybody's code, which may need numbers
        return []
    return [x for x in keras.tree.flatten(outputs) if hasattr(x, "_keras_history")]


def _name_of(operation: object) -> str:
    """The name of a Keras activation, whatever form it has."""
    forms = (getattr(operation, form, None) for form in ("activation", "function"))
    activation = next(filter(None, forms), operation)
    name = getattr(activation, "__name__", None) or type(activation).__name__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _apply(node: Any, given: Tensor, values: Tensor) -> Tensor:
    arguments, keywords = node.arguments.fill_in({id(given): values})
    return node.operation(*arguments, **keywords)


def _chain(steps: Iterable[Callable[[Tensor], Tensor]], values: Tensor) -> Tensor:
    for step in steps:
        values = step(values)
    return values


def usual_heads(latent_dim: int) -> dict[str, int]:
    """The heads of an encoder unless the posterior wants others."""
    return {"z_mean": latent_dim, "z_log_var": latent_dim}


def with_heads(hidden: Tensor, latent_dim: int, heads: Heads | None) -> list[Tensor]:
    """The encoder's outputs, behind its hidden layers."""
    return [
        keras.layers.Dense(width, kernel_initializer=glorot(), name=name)(hidden)
        for name, width in (heads or usual_heads(latent_dim)).items()
    ]


def describe_heads(heads: Heads) -> str:
    """Heads in words."""
    return ", ".join(f"{name} of width {width}" for name, width in heads.items())


def check_models(
    network: Network, models: Any, n_inputs: int, n_outputs: int, latent_dim: int, heads: Heads
) -> None:
    """Refuse what a network's `build` has returned, if it is no encoder and decoder of these widths.

    Of models that do not say which widths they have, subclasses of `keras.Model`, nothing is known.

    Raises
    ------
    TypeError
        If it is no pair of Keras models.
    ValueError
        If a width is another one.
    """
    name = f"{type(network).__name__}.build"
    is_pair = isinstance(models, (tuple, list)) and len(models) == 2
    if not is_pair or not all(isinstance(model, keras.Model) for model in models):
        raise TypeError(f"{name} must return two Keras models, encoder and decoder; received {models!r}.")
    encoder, decoder = models
    for model, role, end, wanted in (
        (encoder, "encoder", "input", n_inputs),
        (decoder, "decoder", "input", latent_dim),
        (decoder, "decoder", "output", n_outputs),
    ):
        widths = _widths(model, end)
        if widths is not None and widths != [wanted]:
            raise ValueError(
                f"the {role} that {name} returns must have one {end} of width {wanted}; received {widths}."
            )
    widths, wanted_heads = _widths(encoder, "output"), [*heads.values()]
    if widths is None or widths[: len(heads)] == wanted_heads or widths == [sum(wanted_heads)]:
        return
    raise ValueError(
        f"the encoder that {name} returns must have the outputs {describe_heads(heads)}, or one output of "
        f"all of them side by side; received outputs of the widths {widths}."
    )


def _widths(model: KerasModel, end: str) -> list[int] | None:
    """How many numbers of a row each "input" or "output" holds; None if the model does not say it."""
    shapes = getattr(model, f"{end}_shape", None)
    if not isinstance(shapes, (tuple, list)) or not shapes:
        return None
    of_each = shapes if isinstance(shapes[0], (tuple, list)) else [shapes]
    known = all(None not in shape[1:] for shape in of_each)
    return [math.prod(shape[1:]) for shape in of_each] if known else None


def finish_layer(spec: HiddenLayers, x: Tensor, name: str) -> Tensor:
    """What follows a layer's weights: normalization, activation, dropout."""
    if spec.batch_normalization:
        # Keras' momentum of 0.99 needs hundreds of steps to forget its start; a short fit has fewer.
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_normalization")(x)
    x = keras.layers.Activation(spec.activation, name=f"{name}_activation")(x)
    if spec.dropout:
        # Zeros are not what SELU takes for nothing: they would shift its mean and variance.
        kind = keras.layers.AlphaDropout if _is_selu(spec.activation) else keras.layers.Dropout
        x = kind(spec.dropout, seed=0, name=f"{name}_dropout")(x)
    return x


def _is_selu(activation: object) -> bool:
    return keras.activations.get(activation) is keras.activations.selu


def check_sizes(name: str, sizes: Iterable[object], pairs: bool = False) -> None:
    """Refuse anything but positive integers, or pairs of them if that is allowed."""
    for size in sizes:
        numbers = size if pairs and isinstance(size, (tuple, list)) and len(size) == 2 else (size,)
        if not all(isinstance(number, Integral) and int(number) > 0 for number in numbers):
            expected = "positive integers" + (" or pairs of them" if pairs else "")
            raise ValueError(f"{name} must hold {expected}; received {name}={sizes!r}.")


def check_activation(activation: object) -> None:
    """Refuse a name that Keras does not know, and say which it knows."""
    if isinstance(activation, str):
        try:
            keras.activations.get(activation)
        except ValueError:
            known = sorted(name for name in dir(keras.activations) if name.islower() and name[0] != "_")
            choices = [name for name in known if name not in {"deserialize", "get", "serialize"}]
            raise ValueError(
                f"activation must be a Keras activation, one of {choices}, or a callable; "
                f"received {activation!r}."
            ) from None
