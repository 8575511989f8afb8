"""What every posterior has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.spec import Part
from vae_anomaly.core.types import Tensor
from vae_anomaly.core.weights import Weight, Weights

__all__ = ["LOG_TWO_PI", "POSTERIORS", "Context", "Posterior"]

LOG_TWO_PI = math.log(2 * math.pi)

#: What the encoder says of rows: tensors whose first axis is that of the rows.
Context: TypeAlias = tuple[Tensor, ...]


class Posterior(Part, family="posterior"):
    """Base class of the posteriors q(z|x).

    A posterior draws z from what the encoder says of a row, its context, and knows the density of its draws.
    By default the context is a location and the logarithm of a squared scale for each latent dimension.

    Attributes
    ----------
    name : str
        What model files call it. A subclass with a name registers itself.
    latents : {"real", "categories"}
        What a z is: real numbers, or categories, one of each group of numbers being 1.
    center_name : str
        What pictures call the `center`.
    has_kl : bool
        Whether there is a closed form of its KL, see `kl`.
    has_log_prob : bool
        Whether it knows the density of any z, see `log_prob`.
    relaxes : bool
        Whether draws in training are others than those that log q is of: then only the ELBO can be trained.
    has_density : bool
        Whether log q of a draw is its density, and not an estimate. Of an estimate no bound can be made: then
        only the ELBO can be trained, and its figures are called estimates.
    """

    latents: ClassVar[str] = "real"
    center_name: ClassVar[str] = "z_mean"
    has_kl: ClassVar[bool] = False
    has_log_prob: ClassVar[bool] = False
    relaxes: ClassVar[bool] = False
    has_density: ClassVar[bool] = True

    # -- sizes ----------------------------------------------------------------------------------------
    def own_latent_dim(self) -> int | None:
        """The number of latent dimensions that the posterior's parameters decide, or None."""
        return None

    def fewest_latents(self) -> int:
        """The latent dimensions that it needs; ``latent_dim="auto"`` is at least as many."""
        return 1

    def noise_width(self, latent_dim: int) -> int:
        """How many standard normal numbers make a draw."""
        return latent_dim

    def heads(self, latent_dim: int) -> dict[str, int]:
        """What the encoder returns of a row: names and widths of its outputs, in order."""
        return {"z_mean": latent_dim, "z_log_var": latent_dim}

    def weights(self, latent_dim: int) -> dict[str, Weight]:
        """What the posterior learns besides the encoder, and what it keeps.

        One of the name `core.weights.PROGRESS`, a number, is how far the training is, from 0 to 1.
        """
        return {}

    def support(self, latent_dim: int) -> Rows | None:
        """Every z that there is, of shape (n_values, latent_dim), where scores are to sum over them.

        Averages over q(z|x) are then exact sums, by `log_prob`, and take no draws. None, the default, where z
        is real or has too many values.
        """
        return None

    def check(self, latent_dim: int) -> None:
        """Raise a ValueError if the posterior is none of so many latent dimensions."""

    # -- the distribution -----------------------------------------------------------------------------
    def context(self, outputs: Sequence[Tensor]) -> Context:
        """The context, from the encoder's outputs: one for each of `heads`."""
        return tuple(outputs)

    def sample(
        self, context: Context, noise: Tensor, weights: Weights, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw z, differentiably, and tell its log-density.

        Parameters
        ----------
        context : tensors of shape (n_rows, ...)
        noise : tensor of shape (n_draws, n_rows, noise_width), or (n_draws, 1, noise_width)
            Standard normal numbers, of which the posterior makes whatever it needs.
        weights : values of `weights`
        training : bool

        Returns
        -------
        z : tensor of shape (n_draws, n_rows, latent_dim)
        log_q : tensor of shape (n_draws, n_rows), log q(z|x) in nats
        """
        raise self._lacks("sample")

    def center(self, context: Context, weights: Weights) -> Tensor:
        """The z that stands for each posterior, of shape (n_rows, latent_dim): by default the location."""
        return context[0]

    def move(self, context: Context, center: Tensor, weights: Weights) -> Context:
        """The same posteriors, elsewhere: with this `center`."""
        return (center, *context[1:])

    def log_prob(self, z: Tensor, context: Context, weights: Weights) -> Tensor:
        """Log q(z|x) of any z, which broadcasts against the context, summed over latent dimensions, in nats.

        Priors that are mixtures of posteriors ask for it, and sums over all z.
        """
        raise self._lacks("log_prob")

    def kl(self, context: Context) -> Tensor:
        """The closed form of KL(q(z|x) || p(z)) for ``prior="standard"``, of posteriors that have one.

        Of each latent dimension or category, shape (n_rows, n_latents), in nats. Without a closed form, the
        KL is the mean of log q(z|x) - log p(z) over the draws.
        """
        raise self._lacks("kl")

    def auxiliary_loss(self, z: Tensor, context: Context, noise: Tensor, weights: Weights) -> Tensor | None:
        """What training minimizes besides the objective, for each row, shape (n_rows,); None for nothing.

        For weights that the objective does not train. No gradient of it may reach others: stop it where it
        would.

        Parameters
        ----------
        z : tensor of shape (n_draws, n_rows, latent_dim)
            What `sample` has drawn with this context, noise and weights.
        context, noise, weights : as of `sample`
        """
        return None

    # -- without a row --------------------------------------------------------------------------------
    def standard_log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) for ``prior="standard"``, in nats: (..., latent_dim) -> (...). By default N(0, I)."""
        return -0.5 * keras.ops.sum(keras.ops.square(z) + LOG_TWO_PI, axis=-1)

    def standard_sample(self, n_samples: int, latent_dim: int, seed: int) -> Tensor:
        """Draws of z from ``prior="standard"``, of shape (n_samples, latent_dim)."""
        return keras.random.normal((n_samples, latent_dim), dtype="float32", seed=seed)

    def standard_center(self, latent_dim: int) -> Tensor:
        """The mean of ``prior="standard"``, of shape (1, latent_dim)."""
        return keras.ops.zeros((1, latent_dim), dtype="float32")


#: Every posterior that has a name: ``{"gaussian": Gaussian, ...}``.
POSTERIORS = Part.families["posterior"]
