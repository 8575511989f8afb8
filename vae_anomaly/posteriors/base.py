"""What every posterior has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from vae_anomaly.core.spec import Part
from vae_anomaly.core.types import Tensor
from vae_anomaly.core.weights import Weight, Weights

__all__ = ["POSTERIORS", "Context", "Posterior"]

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
    has_kl : bool
        Whether there is a closed form of its KL, see `kl`.
    has_log_prob : bool
        Whether it knows the density of any z, see `log_prob`.
    """

    latents: ClassVar[str] = "real"
    has_kl: ClassVar[bool] = False
    has_log_prob: ClassVar[bool] = False

    # -- sizes ----------------------------------------------------------------------------------------
    def own_latent_dim(self) -> int | None:
        """The number of latent dimensions that the posterior's parameters decide, or None."""
        return None

    def heads(self, latent_dim: int) -> dict[str, int]:
        """What the encoder returns of a row: names and widths of its outputs, in order."""
        return {"z_mean": latent_dim, "z_log_var": latent_dim}

    def weights(self, latent_dim: int) -> dict[str, Weight]:
        """What the posterior learns besides the encoder."""
        return {}

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
        noise : tensor of shape (n_draws, n_rows, latent_dim), or (n_draws, 1, latent_dim)
            Standard normal numbers, of which the posterior makes whatever it needs.
        weights : values of `weights`
        training : bool

        Returns
        -------
        z : tensor of shape (n_draws, n_rows, latent_dim)
        log_q : tensor of shape (n_draws, n_rows), log q(z|x) in nats
        """
        raise NotImplementedError

    def center(self, context: Context, weights: Weights) -> Tensor:
        """The z that stands for each posterior, of shape (n_rows, latent_dim): by default the location."""
        return context[0]

    def move(self, context: Context, center: Tensor, weights: Weights) -> Context:
        """The same posteriors, elsewhere: with this `center`."""
        return (center, *context[1:])

    def log_prob(self, z: Tensor, context: Context, weights: Weights) -> Tensor:
        """Log q(z|x) of any z, which broadcasts against the context, summed over latent dimensions, in nats.

        Priors that are mixtures of posteriors ask for it.
        """
        raise NotImplementedError

    def kl(self, context: Context) -> Tensor:
        """The closed form of KL(q(z|x) || p(z)) for ``prior="standard"``, of posteriors that have one.

        Of each latent dimension or category, shape (n_rows, n_latents), in nats. Without a closed form, the
        KL is the mean of log q(z|x) - log p(z) over the draws.
        """
        raise NotImplementedError


#: Every posterior that has a name: ``{"gaussian": Gaussian, ...}``.
POSTERIORS = Part.families["posterior"]
