r"""The objective: reparameterization, KL divergence, the ELBO and its importance-weighted relative.

Conventions, stated here once. All terms are in nats and belong to one row: reconstruction is summed
over features, KL over latent dimensions; training takes the mean over the rows of a batch, scoring
takes the same numbers. ``beta = 1`` is the true evidence lower bound

.. math:: \log p(x) \ge \mathrm{E}_{q(z|x)} \log p(x|z) - \mathrm{KL}(q(z|x) \,\|\, p(z))

with the prior p(z) = N(0, I) and the posterior q(z|x) = N(z_mean, diag(exp(z_log_var))).
Arrays of draws carry a leading axis: ``(n_draws, n_rows, ...)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Tensor

#: Nats that a value counts which no row can have: more than any value that one can.
IMPOSSIBLE = 1e30

__all__ = [
    "IMPOSSIBLE",
    "LossTerms",
    "importance_weighted_bound",
    "kl_divergence",
    "log_weight",
    "loss_terms",
    "reparameterize",
]


class LossTerms(NamedTuple):
    """What training minimizes and its parts, one number for each row, in nats.

    Attributes
    ----------
    loss : the negative bound, with its weights; for ``beta = 1`` without free bits, the negative ELBO
        (or the negative importance-weighted bound)
    reconstruction : the Monte-Carlo mean of -log p(x|z)
    kl : KL(q(z|x) || p(z)), unweighted
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


def reparameterize(z_mean: Tensor, z_log_var: Tensor, noise: Tensor) -> Tensor:
    """Z = z_mean + exp(z_log_var / 2) * noise: a draw from the posterior, differentiable in both."""
    return z_mean + keras.ops.exp(0.5 * z_log_var) * noise


def kl_divergence(z_mean: Tensor, z_log_var: Tensor) -> Tensor:
    """Closed-form KL(q(z|x) || N(0, I)) of each latent dimension, shaped as ``z_mean``, in nats."""
    return 0.5 * (keras.ops.square(z_mean) + keras.ops.exp(z_log_var) - 1.0 - z_log_var)


def log_weight(log_prob: Tensor, z: Tensor, noise: Tensor, z_log_var: Tensor, beta: Tensor = 1.0) -> Tensor:
    """Log p(x|z) + beta (log p(z) - log q(z|x)) of each draw and row.

    Parameters
    ----------
    log_prob : tensor of shape (n_draws, n_rows), log p(x|z) summed over features
    z, noise : tensors of shape (n_draws, n_rows, latent_dim), with z = reparameterize(..., noise)
    z_log_var : tensor of shape (n_rows, latent_dim)
    beta : float, default=1.0
    """
    # log q is written with the noise that made z: (z - z_mean) / sigma would lose its digits.
    log_ratio = 0.5 * (keras.ops.square(noise) + z_log_var - keras.ops.square(z))
    return log_prob + beta * keras.ops.sum(log_ratio, axis=-1)


def importance_weighted_bound(log_weights: Any) -> Any:
    """Log of the mean weight over the draws: (n_draws, n_rows) -> (n_rows,).

    At least the ELBO, at most log p(x), and tighter with every draw (Burda, Grosse & Salakhutdinov
    2016, "Importance weighted autoencoders").
    """
    n_draws = keras.ops.cast(keras.ops.shape(log_weights)[0], log_weights.dtype)
    return keras.ops.logsumexp(log_weights, axis=0) - keras.ops.log(n_draws)


def loss_terms(
    log_prob: Tensor,
    z: Tensor,
    noise: Tensor,
    z_mean: Tensor,
    z_log_var: Tensor,
    *,
    objective: str = "elbo",
    beta: Tensor = 1.0,
    free_bits: Tensor = None,
) -> LossTerms:
    """The training objective, row by row.

    Parameters
    ----------
    log_prob : tensor of shape (n_draws, n_rows), log p(x|z) summed over features
    z, noise : tensors of shape (n_draws, n_rows, latent_dim)
    z_mean, z_log_var : tensors of shape (n_rows, latent_dim)
    objective : {"elbo", "iwae"}, default="elbo"
        "elbo" averages log p(x|z) over the draws and subtracts the closed-form KL; "iwae" is the
        importance-weighted bound over the draws.
    beta : float, default=1.0
        The weight of the KL (Higgins et al. 2017, "beta-VAE").
    free_bits : float or None, default=None
        Nats of KL that each latent dimension may use, on average over the batch, without being
        penalized (Kingma et al. 2016, "Improved variational inference with inverse autoregressive
        flow"). Only for "elbo".
    """
    kl_per_latent = kl_divergence(z_mean, z_log_var)
    kl = keras.ops.sum(kl_per_latent, axis=-1)
    reconstruction = -keras.ops.mean(log_prob, axis=0)
    if objective == "iwae":
        bound = importance_weighted_bound(log_weight(log_prob, z, noise, z_log_var, beta))
        return LossTerms(-bound, reconstruction, kl)
    penalty = kl
    if free_bits is not None:
        # A latent dimension below its allowance costs the allowance, whatever it does: no gradient.
        batch_mean = keras.ops.mean(kl_per_latent, axis=0)
        below = keras.ops.cast(batch_mean < free_bits, kl.dtype)
        penalty = keras.ops.sum((1 - below) * kl_per_latent + below * free_bits, axis=-1)
    return LossTerms(reconstruction + beta * penalty, reconstruction, kl)
