r"""Rényi's family of bounds, from the ELBO over the importance-weighted bound to upper bounds."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import Interval

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Constraints
from vae_anomaly.objectives.base import Objective

__all__ = ["ELBO", "IWAE", "NAMED", "Chi", "Renyi", "importance_weighted_bound"]

# Nearer to 1, the logarithm of a mean of powers near 1 keeps too few digits.
_NEAR_ONE = 0.01
_LARGEST_EXPONENT = 50.0


class Renyi(Objective):
    r"""The variational Rényi bound of order ``alpha`` (Li & Turner 2016).

    .. math:: L_\alpha = \frac{1}{1-\alpha} \log \mathrm E_{q(z|x)}
        \left(\frac{p(x, z)}{q(z|x)}\right)^{1-\alpha}
        = \log p(x) - D_\alpha(q(z|x) \,\|\, p(z|x))

    in nats, by the mean over ``n_training_draws`` draws. It falls with alpha: ``Renyi(1)``, taken as the
    limit, is the ELBO (``objective="elbo"``); ``Renyi(0)`` by K draws is the importance-weighted bound
    (``objective="iwae"``, Burda et al. 2016), and with ever more draws log p(x) itself. For alpha < 0 it is
    an upper bound; K draws estimate that from below, and training maximizes the estimate, as Li & Turner
    do: see `Chi`. By a single draw, every alpha is the ELBO's estimate. Where the expectation does not
    exist, neither does the bound: for Gaussian q and posterior of precisions S⁻¹ and Λ, it exists while
    α S⁻¹ + (1 - α) Λ is positive definite.

    Parameters
    ----------
    alpha : float, default=0.5
        The order, a finite number.

    References
    ----------
    Li & Turner 2016, "Rényi divergence variational inference".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.objectives import Renyi
    >>> detector = VAEDetector(objective=Renyi(0.5), n_training_draws=8)
    >>> float(Renyi(0.0).bound([[0.0], [0.0]])[0])
    0.0
    """

    name = "renyi"

    _parameter_constraints: ClassVar[Constraints] = {"alpha": [Interval(Real, None, None, closed="neither")]}

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = alpha

    @property
    def is_elbo(self) -> bool:  # type: ignore[override]
        return bool(self.alpha == 1)

    @property
    def side(self) -> str:
        return "upper" if self.alpha < 0 else "lower"

    def bound(self, log_weights: Any) -> Any:
        """The bound by these draws, in nats: (n_draws, n_rows) -> (n_rows,)."""
        log_weights = keras.ops.convert_to_tensor(log_weights)
        if self.alpha == 1:
            return keras.ops.mean(log_weights, axis=0)
        if self.alpha == 0:
            return importance_weighted_bound(log_weights)
        power = 1.0 - self.alpha
        if abs(power) >= _NEAR_ONE:
            return importance_weighted_bound(power * log_weights) / power
        mean = keras.ops.mean(log_weights, axis=0)
        exponents = power * (log_weights - mean)
        # The mean exponent is 0: some power is 1 or more, and the sum below keeps its digits.
        bounded = keras.ops.minimum(exponents, _LARGEST_EXPONENT)
        log_mean = keras.ops.log1p(keras.ops.mean(keras.ops.expm1(bounded), axis=0))
        largest = keras.ops.max(exponents, axis=0)
        far = importance_weighted_bound(exponents)
        return mean + keras.ops.where(largest < _LARGEST_EXPONENT, log_mean, far) / power


class Chi(Objective):
    r"""The χ upper bound of order ``n`` (Dieng et al. 2017), which is ``Renyi(1 - n)``.

    .. math:: \mathrm{CUBO}_n = \frac1n \log \mathrm E_{q(z|x)}
        \left(\frac{p(x, z)}{q(z|x)}\right)^n \ge \log p(x)

    in nats. The bound is of the expectation: its estimate by ``n_training_draws`` draws lies below it on
    average, and may lie below log p(x). Training maximizes that estimate, as Li & Turner 2016 do for
    negative orders; it makes the model care for the best of its draws, more so the larger n. A loss of
    training is then minus an estimate of an upper bound, and no bound from below.

    Parameters
    ----------
    n : float, default=2
        The order, at least 1.

    References
    ----------
    Dieng et al. 2017, "Variational inference via χ upper bound minimization".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.objectives import Chi
    >>> detector = VAEDetector(objective=Chi(2), n_training_draws=8)
    """

    name = "chi"

    _parameter_constraints: ClassVar[Constraints] = {"n": [Interval(Real, 1, None, closed="left")]}

    def __init__(self, n: float = 2) -> None:
        self.n = n

    @property
    def side(self) -> str:
        return "upper"

    def bound(self, log_weights: Any) -> Any:
        """The bound by these draws, in nats: (n_draws, n_rows) -> (n_rows,)."""
        return Renyi(1.0 - self.n).bound(log_weights)


def importance_weighted_bound(log_weights: Any) -> Any:
    """Log of the mean weight over the draws: (n_draws, n_rows) -> (n_rows,).

    At least the ELBO, at most log p(x), and tighter with every draw (Burda, Grosse & Salakhutdinov
    2016, "Importance weighted autoencoders").
    """
    n_draws = keras.ops.cast(keras.ops.shape(log_weights)[0], log_weights.dtype)
    return keras.ops.logsumexp(log_weights, axis=0) - keras.ops.log(n_draws)


ELBO, IWAE = Renyi(1.0), Renyi(0.0)
#: Objectives by name.
NAMED: dict[str, Callable[[], Objective]] = {"elbo": lambda: ELBO, "iwae": lambda: IWAE}
