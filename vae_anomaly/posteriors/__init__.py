"""Posteriors q(z|x): how z is drawn from what the encoder says of a row, and how probable a draw is.

To add one: subclass `Posterior`, give it a ``name``, and write ``sample``. It can then be passed as
``posterior=`` as an instance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vae_anomaly.posteriors.base import POSTERIORS, Context, Posterior
from vae_anomaly.posteriors.categorical import Categorical
from vae_anomaly.posteriors.flow import Flow
from vae_anomaly.posteriors.gaussian import Gaussian
from vae_anomaly.posteriors.implicit import Implicit

__all__ = ["POSTERIORS", "Categorical", "Context", "Flow", "Gaussian", "Implicit", "Posterior"]

#: Posteriors by the names that the detector's parameter takes.
NAMED: dict[str, Callable[[], Posterior]] = {
    "gaussian": Gaussian,
    "planar": partial(Flow, "planar"),
    "realnvp": partial(Flow, "realnvp"),
    "iaf": partial(Flow, "autoregressive"),
    "spline": partial(Flow, "spline"),
    "categorical": Categorical,
    "implicit": Implicit,
}


def resolve(posterior: str | Posterior) -> Posterior:
    """The posterior with this name, or the instance itself."""
    return Posterior.resolve(posterior, NAMED)
