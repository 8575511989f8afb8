"""What every network has, and the parts that networks of this package are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Protocol

from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import with_channels
from vae_anomaly.core.spec import Spec
from vae_anomaly.core.types import Initializer, KerasModel, Layer, Shape, Tensor

__all__ = [
    "Network",
    "check_activation",
    "check_sizes",
    "finish_layer",
    "glorot",
    "hidden_initializer",
    "initializer_of",
    "last_activation",
    "posterior",
]


_MOVING_LAYERS = {"Flatten", "Permute", "Reshape"} | {
    f"{kind}{n_dims}D" for kind in ("Cropping", "UpSampling") for n_dims in (1, 2, 3)
}


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
        """The network to use for images of this shape, or for rows of a table (None)."""
        return self

    def default_latent_dim(self, n_features: int, of_pixels: bool = False) -> int:
        """What ``latent_dim="auto"`` means: as many latents as features, at most 8, of pixels 16."""
        return min(n_features, 16 if of_pixels else 8)

    def shape_of_images(self, image_shape: Shape | None) -> Shape | None:
        """(height, width, channels) of the images that its rows are, or None for rows of a table.

        ``image_shape`` is the shape of the images that X held, or None.
        """
        return None if image_shape is None else with_channels(image_shape)

    def default_likelihood(self, image_shape: Shape | None) -> str:
        """What ``likelihood="auto"`` means: Gaussian, for images with one scale for all pixels."""
        return "gaussian" if self.shape_of_images(image_shape) is None else "pixel_gaussian"

    def fewest_weights(self, n_features: int, latent_dim: int, n_params: int) -> int:
        """A bound from below for the number of weights in what `build` returns, known without building it."""
        return 0

    def build(self, n_features: int, latent_dim: int, n_params: int) -> tuple[KerasModel, KerasModel]:
        """Return a new Keras encoder and decoder.

        Parameters
        ----------
        n_features : int
            The width of a row.
        latent_dim : int
            The number of latent dimensions.
        n_params : int
            How many numbers the likelihood wants for each feature.

        Returns
        -------
        encoder : keras.Model, (n_rows, n_features) -> [z_mean, z_log_var]
        decoder : keras.Model, (n_rows, latent_dim) -> (n_rows, n_features * n_params)
        """
        raise NotImplementedError

    def build_apart(self, n_inputs: int, n_outputs: int, latent_dim: int) -> tuple[KerasModel, KerasModel]:
        """A new encoder and decoder whose widths differ: of mixed tables, or with marks for missing values.

        Returns
        -------
        encoder : keras.Model, (n_rows, n_inputs) -> [z_mean, z_log_var]
        decoder : keras.Model, (n_rows, latent_dim) -> (n_rows, n_outputs)
        """
        return self.build(n_inputs, latent_dim, 1)[0], self.build(n_outputs, latent_dim, 1)[1]

    def marks_missing(self) -> bool:
        """Whether the encoder is to be told which values are missing, by one more input for each feature."""
        return True


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


def last_activation(model: KerasModel) -> Callable[[Tensor], Tensor] | None:
    """What a model of one output ends in, an activation of any form, or None.

    Layers behind it that only move values, such as Reshape and Cropping2D, are passed over.
    """
    output = model.outputs[0]
    while True:
        layer, node, position = output._keras_history
        if isinstance(layer, keras.Model) and getattr(layer, "outputs", None):
            output = layer.outputs[position]
        elif type(layer).__name__ in _MOVING_LAYERS:
            (output,) = layer._inbound_nodes[node].input_tensors
        elif isinstance(layer, (keras.layers.ReLU, keras.layers.Softmax)):
            return layer  # type: ignore[no-any-return]
        else:
            activation = getattr(layer, "activation", None)
            return None if activation is keras.activations.linear else activation


def posterior(hidden: Tensor, latent_dim: int) -> list[Tensor]:
    """The encoder's outputs, z_mean and z_log_var."""
    return [
        keras.layers.Dense(latent_dim, kernel_initializer=glorot(), name=name)(hidden)
        for name in ("z_mean", "z_log_var")
    ]


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
