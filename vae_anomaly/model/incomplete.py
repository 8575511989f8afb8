"""Rows with missing values, NaN: what training and scores use in the place of a `VAE`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vae_anomaly.core.adam import Adam
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.core.types import KerasModel, Tensor
from vae_anomaly.likelihoods import Likelihood, Parameters
from vae_anomaly.posteriors import Context

__all__ = ["DOUBTED_FROM", "Incomplete"]

#: Nats that a value may be less probable than expected before it is doubted: it may be the anomaly, and is
#: not to decide what the row's other cells are guessed to be.
DOUBTED_FROM = 10.0

# How often missing inputs are inferred again from what the last inference expects; they settle within it.
_INFERENCES = 10
# Three times as many steps to the most probable z guess hidden cells hardly better, a third as many worse.
_STEPS, _LONGEST_STEP = 60, 0.1
# Squares of sixty gradients are forgotten sooner than those of a training.
_ADAM = Adam(beta_2=0.99, epsilon=1e-8)


class Incomplete:
    """A `VAE` whose rows have NaN for missing values; made by `VAE.incomplete`, which says what is what."""

    def __init__(self, vae: KerasModel, missing_counts: bool, refined: bool) -> None:
        self._vae = vae
        self._refined = refined
        self.likelihood = _WithoutMissing(vae.likelihood, missing_counts)
        self.n_features, self.latent_dim = vae.n_features, vae.latent_dim
        self.decode, self.draw, self.draws_at_once = vae.decode, vae.draw, vae.draws_at_once
        self.center, self.kl_per_latent = vae.center, vae.kl_per_latent
        self.auxiliary_loss = vae.auxiliary_loss
        self.every_z, self.probability, self.at = vae.every_z, vae.probability, vae.at

    def encode(self, x: Tensor, training: bool = False) -> Context:
        """The posterior's context for each row given the values that are there.

        Missing inputs start as what the decoder expects at the mean of the standard prior. An encoder that
        sees marks for them is asked once. One that has been trained on complete rows is asked again and
        again, each time with what was expected by its last answer (Rezende, Mohamed & Wierstra 2014,
        "Stochastic backpropagation and approximate inference in deep generative models", without the noise).

        That finds about where z lies, which serves a score. To guess missing values, the posteriors of such
        rows are ``refined``: their center goes on to the most probable z given the values that are there,
        unless z are categories, to which no gradient leads.
        """
        vae, ops = self._vae, keras.ops
        missing = ops.isnan(x)
        seen = vae.inputs(ops.where(missing, 0.0, x))
        hidden = ops.take(missing, np.array(vae.likelihood.origins(vae.n_features)), axis=-1)
        fill = vae.likelihood.expected_inputs(vae.decode(vae.posterior.standard_center(vae.latent_dim)))
        inputs = ops.where(hidden, ops.stop_gradient(fill), seen)

        def inferred(inputs: Tensor) -> tuple[Tensor]:
            expected = vae.likelihood.expected_inputs(vae.decode(vae.center(vae.context(inputs))))
            return (ops.where(hidden, expected, seen),)

        if vae.marks_missing:
            inputs = ops.concatenate([inputs, ops.cast(missing, seen.dtype)], axis=-1)
        elif not training:
            inputs = _repeat(inferred, _INFERENCES - 1, inputs)
        context: Context = vae.context(inputs, training)
        if self._refined and vae.posterior.latents == "real":
            has_gaps, center = ops.any(missing, axis=-1, keepdims=True), vae.center(context)
            center = ops.where(has_gaps, self._most_probable(x, center), center)
            context = vae.posterior.move(context, center, vae.weights_of("posterior"))
        return context

    def log_derivative(self, x: Tensor) -> Tensor:
        """As `VAE.log_derivative`; 0 for a missing cell."""
        missing = keras.ops.isnan(x)
        return keras.ops.where(missing, 0.0, self._vae.log_derivative(keras.ops.where(missing, 0.0, x)))

    def infer(self, x: Tensor, noise: Tensor, training: bool = False) -> Tensor:
        """As `VAE.infer`."""
        return self.draw(self.encode(x, training), noise, training)

    def _most_probable(self, x: Tensor, z: Tensor) -> Tensor:
        """The z of each row at the top of log p(x|z) + log p(z) for the values that are there, from z uphill.

        A value that is d > `DOUBTED_FROM` nats less probable than expected counts ``DOUBTED_FROM / d``. By
        Adam, with steps that shrink to nothing along a cosine. A row's gradient is its own: rows of one call
        do not know of each other.
        """
        likelihood = _WithoutMissing(self._vae.likelihood, missing_counts=False)

        cosine = 0.5 * (1 + np.cos(np.pi * np.arange(_STEPS) / _STEPS))
        rates = tf.constant(_ADAM.rates(_LONGEST_STEP * cosine))

        def step(z: Tensor, mean: Tensor, square: Tensor, count: Tensor) -> tuple[Tensor, ...]:
            with tf.GradientTape() as tape:
                tape.watch(z)
                parameters = self._vae.decode(z)
                log_prob = likelihood.log_prob(x, parameters)
                less = tf.stop_gradient(likelihood.expected_log_prob(parameters) - log_prob)
                loss = -tf.reduce_sum(self._vae.log_prior(z))
                loss -= tf.reduce_sum(log_prob * DOUBTED_FROM / tf.maximum(less, DOUBTED_FROM))
            gradient = tape.gradient(loss, z)
            gradient = tf.where(tf.math.is_finite(gradient), gradient, 0.0)  # of values beyond float32
            return *_ADAM.step(z, mean, square, gradient, rates[count]), count + 1

        return _repeat(step, _STEPS, z, tf.zeros_like(z), tf.zeros_like(z), tf.constant(0))


class _WithoutMissing:
    """A likelihood that is asked for rows with missing values."""

    def __init__(self, likelihood: Likelihood, missing_counts: bool) -> None:
        self._likelihood, self._missing_counts = likelihood, missing_counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._likelihood, name)

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        return self._terms(x, parameters, self._likelihood.log_prob, self._likelihood.expected_log_prob)

    def error(self, x: Tensor, parameters: Parameters) -> Tensor:
        return self._terms(x, parameters, self._likelihood.error, self._likelihood.expected_error)

    def _terms(
        self,
        x: Tensor,
        parameters: Parameters,
        of_value: Callable[[Tensor, Parameters], Tensor],
        expected: Callable[[Parameters], Tensor],
    ) -> Tensor:
        missing = keras.ops.isnan(x)
        terms = of_value(keras.ops.where(missing, 0.0, x), parameters)
        return keras.ops.where(missing, expected(parameters) if self._missing_counts else 0.0, terms)


def _repeat(step: Callable[..., tuple[Tensor, ...]], n_times: int, *values: Tensor) -> Tensor:
    """The first of the values after so many times ``values = step(*values)``."""
    loop = tf.while_loop(
        lambda count, *_: count < n_times,
        lambda count, *values: (count + 1, *step(*values)),
        (tf.constant(0), *values),
        parallel_iterations=1,
    )
    return loop[1]
