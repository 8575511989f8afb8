"""Objectives: which bound on log p(x) training maximizes, out of the log-weights of several draws.

To add one: subclass `Objective`, give it a ``name``, and write ``bound``. It can then be passed as
``objective=`` as an instance.
"""

from vae_anomaly.objectives.base import OBJECTIVES, LossTerms, Objective, loss_terms
from vae_anomaly.objectives.renyi import ELBO as ELBO
from vae_anomaly.objectives.renyi import NAMED, Chi, Renyi

__all__ = ["OBJECTIVES", "Chi", "LossTerms", "Objective", "Renyi", "loss_terms"]


def resolve(objective: str | Objective) -> Objective:
    """The objective with this name, or the instance itself."""
    return Objective.resolve(objective, NAMED)
