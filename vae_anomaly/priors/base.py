"""What every prior has."""

from __future__ import annotations

from vae_anomaly.core.spec import Part
from vae_anomaly.core.types import KerasModel, Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.posteriors import Posterior

__all__ = ["PRIORS", "Prior"]


class Prior(Part, family="prior"):
    """Base class of the priors p(z).

    Attributes
    ----------
    name : str
        What model files call it. A subclass with a name registers itself.
    """

    def weights(self, latent_dim: int, n_inputs: int) -> dict[str, Weight]:
        """What the prior learns, or keeps; ``n_inputs`` is the width of what the encoder sees of a row."""
        return {}

    def fewest_latents(self) -> int:
        """The latent dimensions that it needs; ``latent_dim="auto"`` is at least as many."""
        return 1

    def check(self, posterior: Posterior, latent_dim: int) -> None:
        """Raise a ValueError if it is no prior for the z of this posterior."""
        if posterior.latents != "real":
            raise ValueError(
                f"prior={self!r} is a density of real z, and those of posterior={posterior!r} are "
                "categories: set prior='standard', under which all are equally probable."
            )

    def in_training(self) -> Prior:
        """The prior that training takes: this one, unless it is made of what the training leaves."""
        return self

    def has_closed_kl(self, posterior: Posterior) -> bool:
        """Whether there is a `Posterior.kl`, and it is the divergence from this prior."""
        return False

    def log_prob(self, z: Tensor, weights: Weights, vae: KerasModel) -> Tensor:
        """Log p(z), in nats: (..., latent_dim) -> (...).

        ``vae`` is the model that the prior is part of, whose encoder some priors ask.
        """
        raise self._lacks("log_prob")

    def sample(self, n_samples: int, seed: int, weights: Weights, vae: KerasModel) -> Tensor:
        """Draws of z, of shape (n_samples, latent_dim)."""
        raise self._lacks("sample")


#: Every prior that has a name: ``{"standard": Standard, ...}``.
PRIORS = Part.families["prior"]
