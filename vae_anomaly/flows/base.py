"""What every transform has."""

from __future__ import annotations

from typing import ClassVar

from vae_anomaly.core.spec import Part
from vae_anomaly.core.types import Tensor
from vae_anomaly.core.weights import Weight, Weights

__all__ = ["TRANSFORMS", "Transform"]


class Transform(Part, family="transform"):
    """Base class of the transforms: invertible maps of z whose determinant is known.

    With the weights that it starts with, a transform is the identity.

    Attributes
    ----------
    name : str
        What model files call it. A subclass with a name registers itself.
    fewest_latents : int
        Latent dimensions that it needs to do anything.
    """

    fewest_latents: ClassVar[int] = 1

    def weights(self, latent_dim: int, n_context: int) -> dict[str, Weight]:
        """What it learns; ``n_context`` is the width of the context, 0 if there is none."""
        raise self._lacks("weights")

    def forward(self, z: Tensor, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The image of z, and the log of the determinant there.

        Parameters
        ----------
        z : tensor of shape (..., latent_dim)
        weights : values of `weights`
        context : tensor of shape (n_rows, n_context), which broadcasts against z, or None

        Returns
        -------
        image : tensor of shape (..., latent_dim)
        log_det : tensor of shape (...), the log of the absolute value of the determinant, in nats
        """
        raise self._lacks("forward")

    def inverse(self, image: Tensor, weights: Weights, context: Tensor | None) -> Tensor:
        """The z that has this image."""
        raise self._lacks("inverse")


#: Every transform that has a name: ``{"planar": Planar, ...}``.
TRANSFORMS = Part.families["transform"]
