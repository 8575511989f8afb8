"""The posterior of latents that are categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Constraints, Tensor
from vae_anomaly.core.weights import PROGRESS, Weight, Weights
from vae_anomaly.posteriors.base import Context, Posterior

__all__ = ["Categorical", "gumbel_softmax", "largest", "straight_through"]

# Below the exponential variate of any two numbers that are drawn.
_TINY = 1e-30
# A score that sums over so many combinations takes fifty times as long as one of ten draws.
_MOST_ENUMERATED = 4096


def gumbel_softmax(logits: Tensor, gumbel: Tensor, temperature: Tensor) -> Tensor:
    r"""Relaxed draws of categories, along the last axis (Jang et al. 2017; Maddison et al. 2017).

    .. math:: z_k = \operatorname{softmax}_k\bigl((\log \pi_k + g_k) / \tau\bigr)

    with noise g of the standard Gumbel distribution. Towards a temperature of 0, z is one of the categories,
    with the probabilities of ``logits``; towards infinity, equal shares of all.
    """
    return keras.ops.softmax((logits + gumbel) / temperature, axis=-1)


def straight_through(soft: Tensor) -> Tensor:
    """The category that has the greatest share, with the gradient of the shares."""
    return largest(keras.ops.stop_gradient(soft)) + (soft - keras.ops.stop_gradient(soft))


def largest(values: Tensor) -> Tensor:
    """1 for the largest value along the last axis, the first one of several, and 0 for the others."""
    # ONNX knows no argmax of Keras.
    is_largest = keras.ops.cast(values >= keras.ops.max(values, axis=-1, keepdims=True), values.dtype)
    return is_largest * keras.ops.cast(keras.ops.cumsum(is_largest, axis=-1) == 1, values.dtype)


class Categorical(Posterior):
    r"""Latents that are categories: q(z|x) is a product of categorical distributions, the encoder's.

    The decoder sees ``n_variables`` times ``n_values`` numbers, of which one is 1 for each variable. Training
    draws relaxed z by `gumbel_softmax`, at a temperature that falls geometrically over the training. Scores
    that are averages over q(z|x), all named ones but "iwae", are exact sums over all combinations of values
    if there are few, and so is what `reconstruct` expects; else categories are drawn by the shared draws.
    With ``prior="standard"``, all categories are equally probable, and the KL is closed:

    .. math:: \mathrm{KL} = \sum_v \Bigl(\log K + \sum_k \pi_{vk} \log \pi_{vk}\Bigr) \in [0, V \log K]

    Training takes this KL, too, and none of the relaxed draws, whose density, the concrete one, is nowhere
    used: only ``objective="elbo"`` trains them, and its loss is a bound towards a temperature of 0. Keras'
    own ``fit`` of a `VAE` leaves the temperature where it is.

    Parameters
    ----------
    n_variables : int, default=8
    n_values : int, default=4
        Values of each variable, at least 2.
    temperature : float or tuple (start, end), default=(1.0, 0.3)
        Positive numbers.
    straight_through : bool, default=False
        Whether the decoder sees categories in training too, and the encoder gets the gradient of the relaxed
        draws (Bengio et al. 2013).
    max_enumerated : int, default=256
        Combinations of values, ``n_values ** n_variables``, up to which averages are sums over all of them;
        at most 4,096. On one core, scores took four times as long by 256 of them as by ten draws, and fifty
        times by 4,096 (2,000 rows of 30 columns).

    References
    ----------
    Jang, Gu & Poole 2017, "Categorical reparameterization with Gumbel-softmax".
    Maddison, Mnih & Teh 2017, "The concrete distribution".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.posteriors import Categorical
    >>> detector = VAEDetector(posterior=Categorical(n_variables=8, n_values=4))
    """

    name = "categorical"
    latents = "categories"
    center_name = "probabilities of z"
    has_kl = True
    has_log_prob = True
    relaxes = True
    _parameter_constraints: ClassVar[Constraints] = {
        "n_variables": [Interval(Integral, 1, None, closed="left")],
        "n_values": [Interval(Integral, 2, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither"), tuple, list],
        "straight_through": ["boolean"],
        "max_enumerated": [Interval(Integral, 0, _MOST_ENUMERATED, closed="both")],
    }

    def __init__(
        self,
        n_variables: int = 8,
        n_values: int = 4,
        temperature: float | tuple[float, float] = (1.0, 0.3),
        straight_through: bool = False,
        max_enumerated: int = 256,
    ) -> None:
        self.n_variables = n_variables
        self.n_values = n_values
        self.temperature = temperature
        self.straight_through = straight_through
        self.max_enumerated = max_enumerated

    # -- sizes ----------------------------------------------------------------------------------------
    def own_latent_dim(self) -> int:
        return int(self.n_variables * self.n_values)

    def noise_width(self, latent_dim: int) -> int:
        return 2 * latent_dim

    def heads(self, latent_dim: int) -> dict[str, int]:
        return {"logits": latent_dim}

    def weights(self, latent_dim: int) -> dict[str, Weight]:
        return {PROGRESS: Weight((), trainable=False)}

    def check(self, latent_dim: int) -> None:
        """Raise a ValueError if the temperature is not one or two positive numbers."""
        ends = self.temperature if isinstance(self.temperature, (tuple, list)) else (self.temperature,) * 2
        if len(ends) != 2 or not all(isinstance(end, Real) and 0 < end < math.inf for end in ends):
            raise ValueError(
                "temperature must be a positive number or two, at the start and at the end of the training; "
                f"received {self.temperature!r}."
            )

    def support(self, latent_dim: int) -> Rows | None:
        """All combinations of values, if they are at most ``max_enumerated``."""
        if not self._is_enumerated:
            return None
        values = np.indices((self.n_values,) * self.n_variables).reshape(self.n_variables, -1).T
        return np.eye(self.n_values, dtype=np.float32)[values].reshape(-1, latent_dim)

    # -- the distribution -----------------------------------------------------------------------------
    def context(self, outputs: Sequence[Tensor]) -> Context:
        """(log-probabilities,), of shape (n_rows, n_variables, n_values)."""
        (logits,) = outputs
        shape = (-1, self.n_variables, self.n_values)
        return (keras.ops.log_softmax(keras.ops.reshape(logits, shape), axis=-1),)

    def sample(
        self, context: Context, noise: Tensor, weights: Weights, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        (log_probs,) = context
        one, other = keras.ops.split(noise, 2, axis=-1)
        # Half the squared length of two standard normal numbers is an exponential variate.
        exponential = keras.ops.maximum(0.5 * (keras.ops.square(one) + keras.ops.square(other)), _TINY)
        leading = keras.ops.shape(noise)[:-1]
        gumbel = keras.ops.reshape(-keras.ops.log(exponential), (*leading, *log_probs.shape[1:]))
        if training:
            z = gumbel_softmax(log_probs, gumbel, self._temperature(weights))
            z = straight_through(z) if self.straight_through else z
        else:
            z = largest(log_probs + gumbel)
        log_q = keras.ops.sum(z * log_probs, axis=(-2, -1))
        return keras.ops.reshape(z, (*keras.ops.shape(z)[:-2], self.own_latent_dim())), log_q

    def center(self, context: Context, weights: Weights) -> Tensor:
        """The probabilities, the mean of z."""
        return keras.ops.reshape(keras.ops.exp(context[0]), (-1, self.own_latent_dim()))

    def log_prob(self, z: Tensor, context: Context, weights: Weights) -> Tensor:
        (log_probs,) = context
        shape = (*keras.ops.shape(z)[:-1], self.n_variables, self.n_values)
        return keras.ops.sum(keras.ops.reshape(z, shape) * log_probs, axis=(-2, -1))

    def kl(self, context: Context) -> Tensor:
        """Of each variable: shape (n_rows, n_variables)."""
        (log_probs,) = context
        return keras.ops.sum(keras.ops.exp(log_probs) * log_probs, axis=-1) + math.log(self.n_values)

    # -- without a row --------------------------------------------------------------------------------
    def standard_log_prob(self, z: Tensor) -> Tensor:
        """All categories are equally probable."""
        return keras.ops.zeros_like(z[..., 0]) - self.n_variables * math.log(self.n_values)

    def standard_sample(self, n_samples: int, latent_dim: int, seed: int) -> Tensor:
        values = np.random.RandomState(seed).randint(self.n_values, size=(n_samples, self.n_variables))
        one_hot = np.eye(self.n_values, dtype=np.float32)[values]
        return keras.ops.convert_to_tensor(one_hot.reshape(n_samples, latent_dim))

    def standard_center(self, latent_dim: int) -> Tensor:
        return keras.ops.full((1, latent_dim), 1 / self.n_values, dtype="float32")

    @property
    def _is_enumerated(self) -> bool:
        # A power of a file's numbers may have millions of digits.
        n_bits = self.n_variables * math.log2(self.n_values)
        return n_bits < 64 and self.n_values**self.n_variables <= self.max_enumerated

    def _temperature(self, weights: Weights) -> Tensor:
        ends = self.temperature if isinstance(self.temperature, (tuple, list)) else (self.temperature,) * 2
        start, end = map(math.log, ends)
        return keras.ops.exp(start + (end - start) * weights[PROGRESS])
