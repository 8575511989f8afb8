"""The VAE: where encoder, noise, decoder and likelihood meet, as a real `keras.Model`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vae_anomaly import likelihoods
from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.shapes import check_shape
from vae_anomaly.core.spec import Part
from vae_anomaly.core.types import Array, Initializer, KerasModel, LayerShape, Shape, Tensor, Values
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.layers import Sampling
from vae_anomaly.likelihoods import Likelihood, Parameters
from vae_anomaly.model.column_transform import (
    N_NUMBERS,
    TransformedColumns,
    log_derivative,
    n_numbers,
    no_transform,
)
from vae_anomaly.model.cost import draws_at_once
from vae_anomaly.model.incomplete import Incomplete
from vae_anomaly.networks import initializer_of
from vae_anomaly.networks.base import last_activation
from vae_anomaly.objectives import ELBO, loss_terms
from vae_anomaly.posteriors import Context, Gaussian, Posterior
from vae_anomaly.priors import Prior, Standard

__all__ = ["VAE", "Inference", "Reach"]

# Adam moves a weight by about the learning rate in a step, whatever the gradient. A scale has to travel
# several nats, a hundred times a network weight's way, and gets a longer stride.
_SHARED_STRIDE = 10.0
_UNBOUNDED = 3.0e38
# An activation that stays below at inputs of up to a million has a limit.
_LIMITED_BELOW = 1e3


class Inference(NamedTuple):
    """Everything that one pass through the VAE knows about a block of rows.

    Attributes
    ----------
    context : the posterior's context, tensors of shape (n_rows, ...); of a Gaussian one, z_mean and z_log_var
    z : tensor of shape (n_draws, n_rows, latent_dim)
    log_ratio : tensor of shape (n_draws, n_rows), log p(z) - log q(z|x) of each draw
    parameters : the likelihood's parameters, tensors that broadcast to (n_draws, n_rows, n_features)
    """

    context: Context
    z: Tensor
    log_ratio: Tensor
    parameters: Parameters


class Reach(NamedTuple):
    """What a decoder that ends in an activation can expect.

    Attributes
    ----------
    activation : str
    limits : array of shape (2, n_features)
        The smallest and the largest expected x.
    repeats_link : bool
        Whether the activation's own values are means that the likelihood could have: then the likelihood
        makes means of numbers that are some already, as one that has a sigmoid does behind a sigmoid.
    """

    activation: str
    limits: Rows
    repeats_link: bool


@keras.saving.register_keras_serializable(package="vae_anomaly")
class VAE(keras.Model):  # type: ignore[misc]
    r"""Variational autoencoder p(x|z) p(z) with the posterior q(z|x), over flat rows.

    What the encoder sees of x, its inputs, and what the decoder computes are the likelihood's to say;
    usually the inputs are x itself.

    The encoder sees each input clipped to ``input_range``, the range it was trained on: far outside, a
    piecewise linear network would extrapolate without limit and can reconstruct the farthest anomaly
    (Bouman & Heskes 2025, "Autoencoders for anomaly detection are unreliable"). The likelihood always sees
    x itself, and the bound holds for any encoder.

    Parameters
    ----------
    encoder : keras.Model, (n_rows, n_inputs) -> a list of the posterior's heads, or one tensor with all
        Of a Gaussian posterior those are z_mean and z_log_var. ``n_inputs`` is the number of features,
        unless the likelihood says otherwise; with ``marks_missing``, there is one input more for each
        feature: 1 where it is missing, else 0.
    decoder : keras.Model, (n_rows, latent_dim) -> (n_rows, n_features * likelihood.n_params)
        Or whatever number of outputs the likelihood says.
    likelihood : Likelihood
    n_features : int
    latent_dim : int
    marks_missing : bool, default=False
        Whether the encoder is told which features are missing. See `incomplete`.
    transforms_columns : bool, default=False
        Whether columns are transformed before all else, and back after it, by the numbers in the weight
        ``column_transform``; see `Member`. Then ``likelihood`` gives densities of the transformed values.
    whitens_columns : bool, default=False
        Whether those numbers hold matrices that whiten the columns, too.
    posterior : Posterior or None, default=None
        q(z|x); None is `posteriors.Gaussian`.
    prior : Prior or None, default=None
        p(z); None is `priors.Standard`.
    **kwargs
        Passed to `keras.Model`.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.likelihoods import Gaussian
    >>> from vae_anomaly.model import VAE
    >>> from vae_anomaly.networks import DenseNetwork
    >>> vae = VAE(*DenseNetwork((8,)).build(3, 2, 1), Gaussian(), n_features=3, latent_dim=2)
    >>> z_mean, z_log_var = vae.encode(np.zeros((5, 3), "float32"))
    >>> tuple(z_mean.shape)
    (5, 2)
    """

    def __init__(
        self,
        encoder: KerasModel,
        decoder: KerasModel,
        likelihood: Likelihood,
        n_features: int,
        latent_dim: int,
        marks_missing: bool = False,
        transforms_columns: bool = False,
        whitens_columns: bool = False,
        posterior: Posterior | None = None,
        prior: Prior | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.posterior: Posterior = Gaussian() if posterior is None else posterior
        self.prior: Prior = Standard() if prior is None else prior
        self.encoder = encoder
        self.decoder = decoder
        #: How many draws of z are decoded at once, so that memory is bounded.
        self.draws_at_once = draws_at_once(decoder)
        self.likelihood: Any = likelihood
        self.n_features = n_features
        self.latent_dim = latent_dim
        self.marks_missing = marks_missing
        # The engine hands in its noise; the layer's own generator serves `call` and Keras' `fit`.
        self.sampling = Sampling(seed=0, name="sampling")
        self.input_range = self.add_weight(
            shape=(2, likelihood.n_inputs(n_features)),
            initializer=_unbounded,
            trainable=False,
            name="input_range",
        )
        self.transforms_columns, self.whitens_columns = transforms_columns, whitens_columns
        if transforms_columns:
            self.column_transform = self.add_weight(
                shape=(n_numbers(n_features, whitens_columns), n_features),
                initializer=_untransformed,
                trainable=False,
                name="column_transform",
            )
            self.likelihood = TransformedColumns(likelihood, n_features, self._column_transform)
        # A variable without elements would be one that never gets a gradient.
        self.shared = (
            self.add_weight(shape=(likelihood.n_shared, n_features), initializer="zeros", name="shared")
            if likelihood.n_shared
            else ()
        )
        n_inputs = likelihood.n_inputs(n_features) + (n_features if marks_missing else 0)
        self._own = {
            "posterior": self.posterior.weights(latent_dim),
            "prior": self.prior.weights(latent_dim, n_inputs),
        }
        self.own_variables = {part: self._add_own(part, weights) for part, weights in self._own.items()}
        self.build((None, n_features))

    def build(self, input_shape: LayerShape) -> None:
        """Note the shape of the rows, which `export` asks for; the weights are there."""
        self.built = True

    def encode(self, x: Tensor, training: bool = False) -> Context:
        """The posterior's context for each row; of a Gaussian one, z_mean and z_log_var.

        Both are of shape (n_rows, latent_dim).
        """
        inputs = self.inputs(x)
        if self.marks_missing:
            nothing = keras.ops.zeros_like(keras.ops.cast(x, self.compute_dtype))
            inputs = keras.ops.concatenate([inputs, nothing], axis=-1)
        return self.context(inputs, training)

    def inputs(self, x: Tensor) -> Tensor:
        """What the encoder sees of x, within ``input_range``: shape (n_rows, n_inputs)."""
        inputs = self.likelihood.inputs(keras.ops.cast(x, self.compute_dtype), self._shared())
        return keras.ops.clip(inputs, self.input_range[0], self.input_range[1])

    def context(self, inputs: Tensor, training: bool = False) -> Context:
        """The posterior's context, from the encoder's answer to its inputs, with any marks."""
        widths = [*self.posterior.heads(self.latent_dim).values()]
        outputs = self.encoder(inputs, training=training)
        if isinstance(outputs, (list, tuple)):
            outputs = outputs[: len(widths)]
        else:
            ends = np.cumsum(widths).tolist()
            outputs = [outputs[..., end - width : end] for end, width in zip(ends, widths, strict=True)]
        return self.posterior.context(outputs)

    def center(self, context: Context) -> Tensor:
        """The z that stands for each posterior, (n_rows, latent_dim); of a Gaussian one, z_mean."""
        return self.posterior.center(context, self.weights_of("posterior"))

    def kl_per_latent(self, context: Context, training: bool = False) -> Tensor | None:
        """KL(q(z|x) || p(z)) of each row and latent dimension in closed form; None if there is none."""
        prior = self.prior.in_training() if training else self.prior
        return self.posterior.kl(context) if prior.has_closed_kl(self.posterior) else None

    def log_prior(self, z: Tensor, training: bool = False) -> Tensor:
        """Log p(z), in nats: (..., latent_dim) -> (...)."""
        prior = self.prior.in_training() if training else self.prior
        log_prob = prior.log_prob(z, self.weights_of("prior"), self)
        return check_shape(log_prob, "log_prob of the prior", "(n_draws, n_rows)", z.shape[:-1])

    def weights_of(self, part: str) -> Weights:
        """What the "posterior" or the "prior" has of its own, by name."""
        variables = self.own_variables[part]
        return {name: keras.ops.convert_to_tensor(variable) for name, variable in variables.items()}

    def _add_own(self, part: str, weights: Mapping[str, Weight]) -> dict[str, Any]:
        return {
            name: self.add_weight(
                shape=weight.shape, initializer="zeros", trainable=weight.trainable, name=f"{part}_{name}"
            )
            for name, weight in weights.items()
        }

    def decode(self, z: Tensor, training: bool = False) -> Parameters:
        """Parameters of p(x|z) for `likelihood`, from z of shape (..., latent_dim).

        Returns a tuple: ``n_params`` tensors of shape (..., n_features), then ``n_shared`` tensors of
        shape (n_features,).
        """
        leading = keras.ops.shape(z)[:-1]
        outputs = self.decoder(keras.ops.reshape(z, (-1, self.latent_dim)), training=training)
        outputs = keras.ops.reshape(outputs, (*leading, outputs.shape[-1]))
        parameters: Parameters = self.likelihood.parameters(outputs, self._shared())
        return parameters

    def initial_shared(self, rows: Rows, scale_per_row: bool = False) -> Rows:
        """Where the weights of the parameters that all rows share start, shape (n_shared, n_features)."""
        likelihood = self.likelihood
        shared = likelihood.initial_shared_per_row(rows) if scale_per_row else likelihood.initial_shared(rows)
        return np.asarray(shared / np.float32(_SHARED_STRIDE))

    def reach(self) -> Reach | None:
        """What x the decoder's last activation lets it expect, or None if it sets no limits."""
        last = last_activation(self.decoder)
        if last is None:
            return None
        steps = np.logspace(-3, 6, 91, dtype=np.float32)
        try:
            values = _array(last.function(keras.ops.convert_to_tensor([[*-steps, 0.0, *steps]])))
        except Exception:  # a function of whole images, or of anybody's
            return None
        if not min(-values.min(), values.max()) < _LIMITED_BELOW:
            return None
        limits = [
            value if abs(value) < _LIMITED_BELOW else math.copysign(math.inf, value)
            for value in (float(values.min()), float(values.max()))
        ]
        unlimited = self._expected_at([-math.inf, math.inf])
        inside = np.isfinite(unlimited).all() and unlimited.min() <= limits[0] < limits[1] <= unlimited.max()
        return Reach(last.name, self._expected_at(limits), bool(inside))

    def _expected_at(self, outputs: list[float]) -> Rows:
        """Expected x of a decoder that has the same number in all outputs, a row for each number."""
        repeated = np.repeat(np.reshape(outputs, (-1, 1)), self.decoder.output_shape[-1], axis=1)
        tensor = keras.ops.convert_to_tensor(repeated, dtype="float32")
        return _array(self.likelihood.mean(self.likelihood.parameters(tensor, self._shared())))

    def log_derivative(self, x: Tensor) -> Tensor:
        """Log dt/dx of each cell, in nats; 0 where columns stay as they are: shape (n_rows, n_features)."""
        if not self.transforms_columns:
            return keras.ops.zeros_like(x)
        return log_derivative(x, self._column_transform())

    def _column_transform(self) -> Tensor:
        return keras.ops.convert_to_tensor(self.column_transform)

    def _shared(self) -> list[Tensor]:
        if not self.likelihood.n_shared:
            return []
        together = _SHARED_STRIDE * keras.ops.convert_to_tensor(self.shared)
        shared: list[Tensor] = keras.ops.unstack(together, axis=0)
        return shared

    def infer(self, x: Tensor, noise: Tensor, training: bool = False) -> Inference:
        """Encode rows, draw z with the given noise, decode.

        Parameters
        ----------
        x : tensor of shape (n_rows, n_features)
        noise : tensor of shape (n_draws, n_rows, noise_width) or (n_draws, 1, noise_width)
            Standard normal draws; a middle axis of 1 shares them among the rows.
        training : bool, default=False
            Whether dropout and batch normalization act as in training.
        """
        return self.draw(self.encode(x, training), noise, training)

    def draw(self, context: Context, noise: Tensor, training: bool = False) -> Inference:
        """Draw z from the posteriors of rows with the given noise, as in `infer`, and decode."""
        z, log_q = self.posterior.sample(context, noise, self.weights_of("posterior"), training)
        z_shape = (noise.shape[0], None, self.latent_dim)
        check_shape(z, "sample of the posterior", "(n_draws, n_rows, latent_dim) for z", z_shape)
        check_shape(log_q, "sample of the posterior", "(n_draws, n_rows) for log q", z.shape[:-1])
        return Inference(context, z, self.log_prior(z, training) - log_q, self.decode(z, training))

    def every_z(self) -> Rows | None:
        """All values of z, (n_values, latent_dim), if averages over q(z|x) are sums over them; else None.

        Where the KL is averaged over draws, so is everything else.
        """
        has_kl = self.prior.has_closed_kl(self.posterior)
        return self.posterior.support(self.latent_dim) if has_kl else None

    def probability(self, z: Tensor, context: Context) -> Tensor:
        """q(z|x) of values of z, (n_values, 1, latent_dim), for rows: shape (n_values, n_rows)."""
        return keras.ops.exp(self.posterior.log_prob(z, context, self.weights_of("posterior")))

    def at(self, z: Tensor, context: Context) -> Inference:
        """What `draw` returns, for these z of all rows, (n_values, 1, latent_dim): each is decoded once."""
        log_q = self.posterior.log_prob(z, context, self.weights_of("posterior"))
        shape = (*keras.ops.shape(log_q), self.latent_dim)
        log_ratio = self.log_prior(z) - log_q
        return Inference(context, keras.ops.broadcast_to(z, shape), log_ratio, self.decode(z))

    def auxiliary_loss(self, inferred: Inference, noise: Tensor) -> Tensor | None:
        """What training minimizes besides the objective, for each row; None for nothing.

        ``inferred`` is what `infer` made of this noise.
        """
        own = self.weights_of("posterior")
        return self.posterior.auxiliary_loss(inferred.z, inferred.context, noise, own)

    def incomplete(self, missing_counts: bool = True, refined: bool = False) -> Incomplete:
        r"""The model for rows in which NaN marks missing values.

        Its ``likelihood`` gives a missing cell what the model expects a value to count there,
        :math:`\mathrm{E}_{x' \sim p(x|z)} \log p(x'|z)`, so that rows with few and with many values have
        comparable scores; or nothing, if ``missing_counts`` is False: then the ELBO bounds the log-density
        of the values that are there. Both bounds hold for any encoder, so whatever takes a missing input's
        place is right; see `incomplete.Incomplete.encode`, also for what is ``refined``.
        """
        return Incomplete(self, missing_counts, refined)

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """Expected x at one draw of z from each row's posterior, of shape (n_rows, n_features)."""
        inferred = self.infer(x, self._new_noise(x), training)
        return self.likelihood.mean(inferred.parameters)[0]

    def sample(self, n_samples: int, seed: int, noise: bool = True) -> npt.NDArray[np.float32]:
        """New rows: z from the prior, then x from p(x|z); an array of shape (n_samples, n_features).

        Without ``noise``, what is expected of x given z.
        """
        prior_seed, likelihood_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2) // 2)
        z = self.prior.sample(n_samples, prior_seed, self.weights_of("prior"), self)
        parameters = self.decode(z)
        if not noise:
            expected = self.likelihood.values(_array(self.likelihood.expectations(parameters)))
            return np.asarray(expected, dtype=np.float32)
        return np.asarray(_array(self.likelihood.sample(parameters, likelihood_seed)), dtype=np.float32)

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Mean negative ELBO of the rows, so that ``compile(optimizer)`` and ``fit(X)`` train the VAE."""
        x = keras.ops.cast(x, self.compute_dtype)
        noise = self._new_noise(x)
        inferred = self.infer(x, noise, training)
        log_prob = keras.ops.sum(self.likelihood.log_prob(x, inferred.parameters), axis=-1)
        kl_per_latent = self.kl_per_latent(inferred.context, training)
        terms = loss_terms(log_prob, inferred.log_ratio, kl_per_latent, objective=ELBO)
        auxiliary = self.auxiliary_loss(inferred, noise)
        loss = terms.loss if auxiliary is None else terms.loss + auxiliary
        return sum(self.losses, keras.ops.mean(loss))

    def _new_noise(self, x: Tensor) -> Tensor:
        """One draw for each row, of the model's own generator."""
        shape = (1, keras.ops.shape(x)[0], self.posterior.noise_width(self.latent_dim))
        return keras.random.normal(shape, dtype=self.compute_dtype, seed=self.sampling.seed_generator)

    def initial_values(self, seed: int, new_weights: bool = True) -> list[Array]:
        """New values for ``self.variables``, in their order, as their own initializers would draw them.

        Each random initializer is used with a seed derived from ``seed``, so that nothing depends on a
        global generator. A variable whose layer has no initializer for it keeps its present value, and
        with ``new_weights=False`` every weight does; dropout gets its seed from ``seed`` all the same.
        """
        rng = np.random.RandomState(seed)
        drawn: dict[int, Tensor] = {}
        for layer in self._flatten_layers() if new_weights else ():
            for variable in layer.weights:
                initializer = initializer_of(layer, variable.name)
                if initializer is not None and id(variable) not in drawn:
                    drawn[id(variable)] = _reseed(initializer, rng)(variable.shape, variable.dtype)
        weights = {id(variable) for variable in self.weights}
        values = []
        for variable in self.variables:
            if id(variable) in drawn:
                value = drawn[id(variable)]
            elif id(variable) not in weights:  # the state of a seed generator: (seed, counter)
                value = np.array([rng.randint(2**31 - 1), 0], dtype=variable.dtype)
            else:
                value = variable
            values.append(_array(value))
        return values

    def initial_own_values(self, seed: int, rows: Rows) -> dict[int, Array]:
        """New values for what posterior and prior have of their own, by the identities of their variables.

        Parameters
        ----------
        seed : int
        rows : array of shape (n_rows, n_features)
            That the model is to be trained on.
        """
        own = {part: weights for part, weights in self._own.items() if weights}
        if not own:
            return {}
        inputs, values = self._complete_inputs(rows), {}
        for position, (part, weights) in enumerate(own.items()):
            rng = np.random.RandomState([seed, position])
            for name, weight in weights.items():
                values[id(self.own_variables[part][name])] = weight.draw(rng, inputs)
        return values

    def _complete_inputs(self, rows: Rows) -> Rows:
        """What the encoder sees of complete rows: shape (n_rows, n_inputs)."""
        complete = rows[~np.isnan(rows).any(axis=1)]
        inputs = _array(self.likelihood.inputs(keras.ops.convert_to_tensor(complete), self._shared()))
        marks = np.zeros((len(complete), self.n_features if self.marks_missing else 0), dtype=np.float32)
        return np.concatenate([inputs, marks], axis=1)

    def get_config(self) -> Values:
        """The model's settings, from which `from_config` makes an equal untrained model."""
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "decoder": keras.saving.serialize_keras_object(self.decoder),
            "likelihood": self.likelihood.config(),
            "n_features": self.n_features,
            "latent_dim": self.latent_dim,
            "marks_missing": self.marks_missing,
            "transforms_columns": self.transforms_columns,
            "whitens_columns": self.whitens_columns,
            "posterior": self.posterior.config(),
            "prior": self.prior.config(),
        }

    @classmethod
    def from_config(cls, config: Values, custom_objects: Mapping[str, object] | None = None) -> VAE:
        """The untrained model that `get_config` describes."""
        config = dict(config)
        for role in ("encoder", "decoder"):
            config[role] = keras.saving.deserialize_keras_object(config[role], custom_objects)
        for part in ("posterior", "prior"):
            config[part] = Part.from_config(config[part])
        return cls(**{**config, "likelihood": likelihoods.from_config(config["likelihood"])})


def _unbounded(shape: Shape, dtype: npt.DTypeLike | None = None) -> Array:
    return np.broadcast_to(np.array([[-_UNBOUNDED], [_UNBOUNDED]], dtype=dtype or np.float32), shape)


def _untransformed(shape: Shape, dtype: npt.DTypeLike | None = None) -> Array:
    n_of_column, n_features = shape
    return no_transform(n_features, whitens=n_of_column > N_NUMBERS).astype(dtype or np.float32)


def _array(value: Tensor) -> Array:
    # keras.ops.convert_to_numpy warns of TensorFlow's tensors under numpy 2.
    return np.array(value.numpy() if hasattr(value, "numpy") else value)


def _reseed(initializer: Initializer, rng: np.random.RandomState) -> Initializer:
    config = initializer.get_config() if hasattr(initializer, "get_config") else {}
    if "seed" not in config:
        return initializer
    return type(initializer).from_config({**config, "seed": int(rng.randint(2**31 - 1))})
