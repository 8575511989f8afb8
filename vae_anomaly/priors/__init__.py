"""Priors p(z): what z is before a row is seen.

To add one: subclass `Prior`, give it a ``name``, and write ``log_prob`` and ``sample``. It can then be passed
as ``prior=`` as an instance.
"""

from __future__ import annotations

from collections.abc import Callable

from vae_anomaly.priors.base import PRIORS, Prior
from vae_anomaly.priors.flow import Flow
from vae_anomaly.priors.mixture import AggregatePosterior, Mixture, VampPrior
from vae_anomaly.priors.standard import Standard

__all__ = ["PRIORS", "AggregatePosterior", "Flow", "Mixture", "Prior", "Standard", "VampPrior"]

#: Priors by the names that the detector's parameter takes.
NAMED: dict[str, Callable[[], Prior]] = {
    "standard": Standard,
    "mixture": Mixture,
    "vamp": VampPrior,
    "flow": Flow,
    "aggregate": AggregatePosterior,
}


def resolve(prior: str | Prior) -> Prior:
    """The prior with this name, or the instance itself."""
    return Prior.resolve(prior, NAMED)
