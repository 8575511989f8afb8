"""Transforms one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from vae_anomaly.core.types import Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows.base import Transform

__all__ = ["Chain", "Transforms"]

Transforms: TypeAlias = Sequence[Transform]


class Chain(NamedTuple):
    """Transforms one after the other, as one.

    Every second one meets the latent dimensions in reverse order, so that those which one leaves alone, or
    sees first, are those which the next one changes most.
    """

    transforms: tuple[Transform, ...]

    @property
    def fewest_latents(self) -> int:
        """Latent dimensions that all transforms need to do anything."""
        return max(transform.fewest_latents for transform in self.transforms)

    def check(self, latent_dim: int) -> None:
        """Raise a ValueError if some transform needs more latent dimensions."""
        if latent_dim < self.fewest_latents:
            raise ValueError(
                "a flow that changes some latent dimensions by what others are needs at least "
                f"{self.fewest_latents} of them; received latent_dim={latent_dim}. One of Planar() needs one."
            )

    def weights(self, latent_dim: int, n_context: int) -> dict[str, Weight]:
        """What all of them learn."""
        return {
            f"{position}_{name}": weight
            for position, transform in enumerate(self.transforms)
            for name, weight in transform.weights(latent_dim, n_context).items()
        }

    def forward(self, z: Tensor, weights: Weights, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The image of z, (..., latent_dim), and the log of the determinant there, (...)."""
        total = 0.0
        for position, transform in enumerate(self.transforms):
            z, log_det = transform.forward(_turn(z, position), _own(weights, position), context)
            z, total = _turn(z, position), total + log_det
        return z, total

    def inverse(self, image: Tensor, weights: Weights, context: Tensor | None = None) -> Tensor:
        """The z that has this image."""
        for position, transform in reversed([*enumerate(self.transforms)]):
            z = transform.inverse(_turn(image, position), _own(weights, position), context)
            image = _turn(z, position)
        return image


def _turn(z: Tensor, position: int) -> Tensor:
    return z[..., ::-1] if position % 2 else z


def _own(weights: Weights, position: int) -> Weights:
    start = f"{position}_"
    return {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
