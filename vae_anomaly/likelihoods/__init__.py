r"""Likelihoods p(x|z): what the decoder's outputs mean, and what the encoder sees of x.

A likelihood turns *parameters* into log-densities. Parameters are a tuple of arrays that broadcast
against ``x`` of shape ``(n_rows, n_features)``: first ``n_params`` arrays that the decoder computes
for each row, then ``n_shared`` arrays of shape ``(n_features,)`` that are learned with the model and
shared by all rows. Each likelihood owns the link from these unbounded numbers to its own parameters.

To add one: subclass `Likelihood`, give it a ``name``, write ``log_prob``, ``mean`` and ``sample``.
It can then be passed as ``likelihood=`` by that name or as an instance. ``expected_log_prob`` and
``expected_error`` say what a missing cell counts, ``quantile`` serves intervals; the defaults do for most.
"""

from vae_anomaly.likelihoods.base import LIKELIHOODS, Likelihood, Parameters
from vae_anomaly.likelihoods.base import LikelihoodLike as LikelihoodLike
from vae_anomaly.likelihoods.base import from_config as from_config
from vae_anomaly.likelihoods.base import resolve as resolve
from vae_anomaly.likelihoods.discrete import Categorical, Count
from vae_anomaly.likelihoods.location_scale import (
    Gaussian,
    Laplace,
    LocationScale,
    PixelGaussian,
    StudentT,
)
from vae_anomaly.likelihoods.mixed import Mixed
from vae_anomaly.likelihoods.unit_interval import (
    Bernoulli,
    ContinuousBernoulli,
    UnitGaussian,
    UnitInterval,
)

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Count",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LocationScale",
    "Mixed",
    "Parameters",
    "PixelGaussian",
    "StudentT",
    "UnitGaussian",
    "UnitInterval",
]
