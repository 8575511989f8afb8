r"""What every objective has, and the loss that training makes of it.

Conventions, stated here once. All terms are in nats and belong to one row: reconstruction is summed
over features, KL over latent dimensions; training takes the mean over the rows of a batch, scoring
takes the same numbers. ``beta = 1`` is the true evidence lower bound

.. math:: \log p(x) \ge \mathrm{E}_{q(z|x)} \log p(x|z) - \mathrm{KL}(q(z|x) \,\|\, p(z))

Arrays of draws carry a leading axis: ``(n_draws, n_rows, ...)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vae_anomaly.core.backend import keras
from vae_anomaly.core.shapes import check_shape
from vae_anomaly.core.spec import Part
from vae_anomaly.core.types import Tensor

__all__ = ["OBJECTIVES", "LossTerms", "Objective", "kl_of", "loss_terms"]


class Objective(Part, family="objective"):
    """Base class of the objectives: bounds on log p(x), as functions of log-weights.

    The log-weight of a draw z from q(z|x) is log p(x|z) + log p(z) - log q(z|x).

    Attributes
    ----------
    side : {"lower", "upper"}
        Of log p(x), where the bound lies if there are draws without end.
    is_elbo : bool
        Whether it is the ELBO, of which training takes the KL in closed form where there is one.
    """

    is_elbo: bool = False

    @property
    def side(self) -> str:
        return "lower"

    def bound(self, log_weights: Any) -> Any:
        """The bound by these draws, in nats: (n_draws, n_rows) -> (n_rows,)."""
        raise self._lacks("bound")


#: Every objective that has a name: ``{"renyi": Renyi, ...}``.
OBJECTIVES = Part.families["objective"]


class LossTerms(NamedTuple):
    """What training minimizes and its parts, one number for each row, in nats.

    Attributes
    ----------
    loss : the negative bound, with its weights; for ``beta = 1`` without free bits, that of the objective
    reconstruction : the Monte-Carlo mean of -log p(x|z)
    kl : KL(q(z|x) || p(z)), unweighted; see `kl_of`
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


def kl_of(kl_per_latent: Tensor | None, log_ratio: Tensor) -> Tensor:
    """KL(q(z|x) || p(z)) of each row: the sum of its closed form, or the mean of log q - log p over draws.

    Parameters
    ----------
    kl_per_latent : tensor of shape (n_rows, n_latents), or None if there is no closed form
    log_ratio : tensor of shape (n_draws, n_rows)
        log p(z) - log q(z|x) of each draw.
    """
    if kl_per_latent is None:
        return -keras.ops.mean(log_ratio, axis=0)
    return keras.ops.sum(kl_per_latent, axis=-1)


def loss_terms(
    log_prob: Tensor,
    log_ratio: Tensor,
    kl_per_latent: Tensor | None,
    *,
    objective: Objective,
    beta: Tensor = 1.0,
    free_bits: Tensor = None,
) -> LossTerms:
    """The training objective, row by row.

    Parameters
    ----------
    log_prob : tensor of shape (n_draws, n_rows), log p(x|z) summed over features
    log_ratio : tensor of shape (n_draws, n_rows), log p(z) - log q(z|x)
    kl_per_latent : tensor of shape (n_rows, n_latents), or None
        The closed form of each latent's KL, if there is one.
    objective : Objective
        The ELBO averages log p(x|z) over the draws and subtracts the KL; others are bounds of the draws'
        log-weights.
    beta : float, default=1.0
        The weight of the KL (Higgins et al. 2017, "beta-VAE").
    free_bits : float or None, default=None
        Nats of KL that each latent dimension may use, on average over the batch, without being
        penalized (Kingma et al. 2016, "Improved variational inference with inverse autoregressive
        flow"). Only for the ELBO with a KL in closed form.
    """
    kl = kl_of(kl_per_latent, log_ratio)
    reconstruction = -keras.ops.mean(log_prob, axis=0)
    if not objective.is_elbo:
        bound = objective.bound(log_prob + beta * log_ratio)
        check_shape(bound, "bound of the objective", "(n_rows,)", tuple(log_prob.shape[1:]))
        return LossTerms(-bound, reconstruction, kl)
    penalty = kl
    if free_bits is not None:
        # A latent dimension below its allowance costs the allowance, whatever it does: no gradient.
        batch_mean = keras.ops.mean(kl_per_latent, axis=0)
        below = keras.ops.cast(batch_mean < free_bits, kl.dtype)
        penalty = keras.ops.sum((1 - below) * kl_per_latent + below * free_bits, axis=-1)
    return LossTerms(reconstruction + beta * penalty, reconstruction, kl)
