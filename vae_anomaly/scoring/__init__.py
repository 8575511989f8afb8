"""Scores: (models, rows, draws) -> float64 numbers for each model and row, larger = more anomalous, in nats.

A score is two steps. ``per_draw`` turns one pass through the VAE into a number for each draw and row;
``combine`` turns the numbers of all draws into one for each row (`passes` says how rows and draws are
processed). Here are the scores that have a name.

To add one: write the two functions and add a row to `SCORES`. A score of images is a function from their
shape to a `Score`, in `IMAGE_SCORES`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Shape
from vae_anomaly.objectives import Objective
from vae_anomaly.objectives.renyi import importance_weighted_bound
from vae_anomaly.posteriors import Posterior
from vae_anomaly.scoring.images import ImageShape, unexplained_variance
from vae_anomaly.scoring.score import (
    Score,
    error,
    feature_error,
    feature_log_likelihood,
    log_likelihood,
    log_weight_of_draw,
    transformed_feature_log_likelihood,
    transformed_log_likelihood,
)

__all__ = ["IMAGE_SCORES", "SCORES", "ImageShape", "Score", "bound", "unexplained_variance"]

# Chosen on four suites of tables (`benchmarks/results/trials.md`): more costs detection, less costs agreement
# between seeds where columns are independent.
_SCORE_BETA = 0.1

#: Every score by name. "elbo": the negative evidence lower bound, KL - E_q log p(x|z). "iwae": the
#: negative importance-weighted bound, closer to -log p(x). "reconstruction_probability": -E_q log p(x|z)
#: (An & Cho 2015). "beta_elbo": 0.1 KL - E_q log p(x|z), with a β as in Higgins et al. (2017): some of the KL
#: tells rows apart where columns are independent, and each network reconstructs others of them. It is of the
#: columns as each member transforms them; the others are of the scaled columns.
#: "reconstruction_error": E_q of the squared error, or of the binary cross-entropy.
SCORES: dict[str, Score] = {
    "elbo": Score(
        log_likelihood,
        lambda values, kl: kl - keras.ops.mean(values, axis=0),
        feature_log_likelihood,
        slope=-1.0,
        density="kl",
    ),
    "iwae": Score(
        log_weight_of_draw,
        lambda values, _: -importance_weighted_bound(values),
        feature_log_likelihood,
        density="draws",
    ),
    "reconstruction_probability": Score(
        log_likelihood,
        lambda values, _: -keras.ops.mean(values, axis=0),
        feature_log_likelihood,
        slope=-1.0,
    ),
    "beta_elbo": Score(
        transformed_log_likelihood,
        lambda values, kl: _SCORE_BETA * kl - keras.ops.mean(values, axis=0),
        transformed_feature_log_likelihood,
        slope=-1.0,
        density="kl",
    ),
    "reconstruction_error": Score(
        error, lambda values, _: keras.ops.mean(values, axis=0), feature_error, slope=1.0
    ),
}

#: Scores of images by name: functions from (height, width, channels) to a `Score`.
IMAGE_SCORES: dict[str, Callable[[Any], Score]] = {"unexplained_variance": unexplained_variance}


@functools.cache  # programs are compiled for a score: equal ones are to be one
def bound(objective: Objective) -> Score:
    r"""The score that is minus an objective's bound on log p(x), by all draws of the detector.

    ``bound(Renyi(0.0))`` is "iwae". Of an objective whose ``side`` is "upper", such as ``Chi(2)``, it is
    minus an estimate of an upper bound, which the draws see from below: no bound itself.

    Parameters
    ----------
    objective : Objective

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.objectives import Renyi
    >>> from vae_anomaly.scoring import bound
    >>> detector = VAEDetector(score=bound(Renyi(0.5)), n_draws=50)
    """
    return Score(
        log_weight_of_draw,
        lambda values, _: -objective.bound(values),
        feature_log_likelihood,
        density="kl" if objective.is_elbo else "draws",
    )


def density_of(score: str | Score) -> str | None:
    """What of the density q(z|x) a score rests on, see `Score`."""
    found = SCORES.get(score) if isinstance(score, str) else score
    return None if found is None else found.density


def is_estimate(score: str | Score, posterior: Posterior) -> bool:
    """Whether a score rests on a density that this posterior estimates: then it is no bound."""
    return not posterior.has_density and density_of(score) is not None


def resolve_name(score: str | Score, n_members: int, image_shape: Shape | None) -> str | Score:
    """What "auto" means for so many models of images or tables; any other score is checked and returned."""
    if score == "auto":
        if image_shape is not None:
            return "unexplained_variance"
        return "elbo" if n_members == 1 else "beta_elbo"
    resolve(score, image_shape)
    return score


def resolve(score: str | Score, image_shape: Shape | None) -> Score:
    """The score with this name, of images of this shape or of tables (None), or the instance itself."""
    if isinstance(score, Score):
        return score
    if score in SCORES:
        return SCORES[score]
    if score not in IMAGE_SCORES:
        names = ["auto", *SCORES, *IMAGE_SCORES]
        raise ValueError(f"score must be one of {names} or a Score; received {score!r}.")
    if image_shape is None:
        raise ValueError(
            f"score={score!r} is one of images: hand in images, or flat rows with "
            "network=ConvNetwork(image_shape=...), or choose another score."
        )
    return IMAGE_SCORES[score](image_shape)
