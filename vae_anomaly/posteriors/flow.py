"""The posterior that a flow makes of the Gaussian one."""

from __future__ import annotations

from numbers import Integral
from typing import ClassVar

from sklearn.utils._param_validation import Interval

from vae_anomaly import flows
from vae_anomaly.core.types import Constraints, Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows import Chain, Transforms
from vae_anomaly.posteriors.base import Context
from vae_anomaly.posteriors.gaussian import GaussianBased

__all__ = ["Flow"]


class Flow(GaussianBased):
    r"""The image of a Gaussian posterior under a flow (Rezende & Mohamed 2015).

    .. math:: z = f_x(z_0), \quad z_0 \sim N(z_{mean}, e^{z_{log\,var}}), \qquad
        \log q(z|x) = \log N(z_0) - \log |\det f_x'(z_0)|

    The transforms depend on the row: the encoder returns ``n_context`` numbers more, which they see. A flow
    starts as the identity, where the posterior is the Gaussian one. Its KL has no closed form, and is the
    mean of log q - log p over the draws.

    Parameters
    ----------
    transforms : {"planar", "realnvp", "autoregressive", "spline"} or list of Transform, default="realnvp"
        Eight planar transforms, four affine couplings, two autoregressive transforms or two spline couplings;
        or those of a list, see `vae_anomaly.flows`. All but planar ones need two latent dimensions.
    n_context : int, default=16
        Numbers that the encoder returns for the transforms.

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.flows import Autoregressive, Planar
    >>> from vae_anomaly.posteriors import Flow
    >>> detector = VAEDetector(posterior=Flow([Planar(), Autoregressive(n_units=64)]))
    """

    name = "flow"
    center_name = "image of z_mean"
    _parameter_constraints: ClassVar[Constraints] = {
        "transforms": [str, list, tuple],
        "n_context": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, transforms: str | Transforms = "realnvp", n_context: int = 16) -> None:
        self.transforms = transforms
        self.n_context = n_context

    @property
    def _chain(self) -> Chain:
        return flows.resolve(self.transforms)

    def fewest_latents(self) -> int:
        return self._chain.fewest_latents

    def check(self, latent_dim: int) -> None:
        self._chain.check(latent_dim)

    def weights(self, latent_dim: int) -> dict[str, Weight]:
        return self._chain.weights(latent_dim, int(self.n_context))

    def sample(
        self, context: Context, noise: Tensor, weights: Weights, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        *base, seen, shift = context
        z, log_q = self.base.sample(tuple(base), noise, {}, training)
        image, log_det = self._chain.forward(z, weights, seen)
        return image + shift, log_q - log_det

    def center(self, context: Context, weights: Weights) -> Tensor:
        """The image of z_mean."""
        z_mean, _, seen, shift = context
        return self._chain.forward(z_mean, weights, seen)[0] + shift
