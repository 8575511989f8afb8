"""What a score is: two functions that TensorFlow traces, and the parts that scores are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import KerasModel, Tensor

#: Nats that a value counts which no row can have: more than any value that one can.
IMPOSSIBLE = 1e30

__all__ = [
    "IMPOSSIBLE",
    "Score",
    "error",
    "feature_error",
    "feature_log_likelihood",
    "log_likelihood",
    "log_weight_of_draw",
]


class Score(NamedTuple):
    """How a score is computed.

    Attributes
    ----------
    per_draw : callable ``(vae, x, inferred) -> (n_draws, n_rows)``
    combine : callable ``(values, kl) -> (n_rows,)``
        Takes the values of all draws, (n_draws, n_rows), and the KL of each row, in closed form where there
        is one, else the mean of log q(z|x) - log p(z) over the same draws.
    per_feature : callable ``(vae, x, inferred) -> (n_draws, n_rows, n_features)``, or None
        What each feature adds to the value of ``per_draw``; None if that is not a sum over features. Only
        explanations ask for it.
    slope : float or None, default=None
        If ``combine`` is a multiple of the mean over the draws, plus what does not depend on them: the
        factor. Explanations then take half as long, and where z has few values, the mean is an exact sum over
        them (see `posteriors.Categorical`).
    density : {None, "kl", "draws"}, default=None
        What of the density q(z|x) it rests on: nothing, the KL, or the density of each draw, by which draws
        are weighed. With a posterior that estimates its density, a score of "kl" is an estimate, and `fit`
        refuses one of "draws".

    All are traced by TensorFlow: write them in ``keras.ops``.

    Examples
    --------
    The worst explained feature of a row, in nats, averaged over the draws:

    >>> import keras
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.scoring import Score
    >>> def worst_feature(vae, x, inferred):
    ...     return -keras.ops.min(vae.likelihood.log_prob(x, inferred.parameters), axis=-1)
    >>> detector = VAEDetector(score=Score(worst_feature, lambda values, kl: keras.ops.mean(values, axis=0)))
    """

    per_draw: Callable[[Tensor, Tensor, Tensor], Tensor]
    combine: Callable[[Tensor, Tensor], Tensor]
    per_feature: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    slope: float | None = None
    density: str | None = None


def feature_log_likelihood(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
    """Log p(x|z) of each feature: shape (n_draws, n_rows, n_features)."""
    return transformed_feature_log_likelihood(vae, x, inferred) + vae.log_derivative(x)


def log_likelihood(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
    """Log p(x|z) of each row: shape (n_draws, n_rows)."""
    return keras.ops.sum(feature_log_likelihood(vae, x, inferred), axis=-1)


def transformed_feature_log_likelihood(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
    """Log p(t(x)|z) of each feature as the model transforms it, see `model.column_transform`."""
    return vae.likelihood.log_prob(x, inferred.parameters)


def transformed_log_likelihood(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
    """Log p(t(x)|z) of each row."""
    return keras.ops.sum(transformed_feature_log_likelihood(vae, x, inferred), axis=-1)


def log_weight_of_draw(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
    """Log p(x, z) - log q(z|x) of each row: shape (n_draws, n_rows)."""
    return log_likelihood(vae, x, inferred) + inferred.log_ratio


def feature_error(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
    """Reconstruction error of each feature: shape (n_draws, n_rows, n_features)."""
    return vae.likelihood.error(x, inferred.parameters)


def error(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
    """Reconstruction error of each row: shape (n_draws, n_rows)."""
    return keras.ops.sum(feature_error(vae, x, inferred), axis=-1)
