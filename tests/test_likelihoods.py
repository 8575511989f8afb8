"""Likelihoods p(x|z) against scipy's distributions, numerical integrals and the laws of densities.

Of real values and of values in [0, 1]; those of categories and counts are in test_discrete.py, those of whole
tables in test_mixed.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, special, stats
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError

from vae_anomaly import likelihoods
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.data.scaling import scaler_for
from vae_anomaly.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Laplace,
    Likelihood,
    LocationScale,
    Mixed,
    PixelGaussian,
    StudentT,
    UnitGaussian,
    base,
)

FLOAT32_EPS = float(np.finfo(np.float32).eps)

LOCATION_SCALE = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "pixel_gaussian": PixelGaussian,
    "student_t": StudentT,
    "unit_gaussian": UnitGaussian,
}
REAL = [name for name in LOCATION_SCALE if name != "unit_gaussian"]
UNIT_INTERVAL = {"bernoulli": Bernoulli, "continuous_bernoulli": ContinuousBernoulli}
FAMILIES: dict[str, type[Likelihood]] = {**LOCATION_SCALE, **UNIT_INTERVAL}
# Where the other likelihoods have their references.
ELSEWHERE = {"categorical": "test_discrete.py", "count": "test_discrete.py", "mixed": "test_mixed.py"}

# Where `ContinuousBernoulli` changes from the series around 0 to the closed form.
CUT = 0.1
AROUND_THE_CUT = [np.nextafter(CUT, 0), CUT, np.nextafter(CUT, 1)]
LOGITS = sorted(
    {side * size for side in (-1, 1) for size in (0, 1e-6, 0.01, *AROUND_THE_CUT, 0.1, 0.2, 0.5, 3, 30)}
)


def continuous_bernoulli_log_density(x: Any, logit: Any, scale: Any = None) -> Any:
    """log(l e^(l x) / (e^l - 1)), which is 0 for l = 0."""
    x, logit = np.broadcast_arrays(x, np.asarray(logit, dtype=np.float64))
    integral = np.divide(np.expm1(logit), logit, out=np.ones_like(logit), where=logit != 0)
    return x * logit - np.log(integral)


def continuous_bernoulli_cdf(x: Any, logit: float) -> Any:
    return x if logit == 0 else np.expm1(logit * x) / math.expm1(logit)


def bernoulli_log_probability(x: Any, logit: Any, scale: Any = None) -> Any:
    """Log-probability of 0 and 1, from whichever of p and 1 - p is small."""
    low = stats.bernoulli.logpmf(x, special.expit(logit))
    high = stats.bernoulli.logpmf(1 - x, special.expit(-logit))
    return np.where(logit < 0, low, high)


class Reference(NamedTuple):
    """An independent account of a likelihood.

    ``log_density`` takes x, the location or the logit, and the scale where there is one; ``support``
    holds values of x at which it is defined.
    """

    log_density: Callable[..., Any]
    support: tuple[float, ...]


REFERENCES = {
    "gaussian": Reference(stats.norm.logpdf, (-40.0, -1.5, 0.0, 0.25, 3.0, 1e3)),
    "pixel_gaussian": Reference(stats.norm.logpdf, (-40.0, -1.5, 0.0, 0.25, 3.0, 1e3)),
    # The Laplace distribution by its other name: far out, scipy.stats.laplace.logpdf underflows to -inf.
    "laplace": Reference(
        lambda x, location, scale: stats.gennorm.logpdf(x, 1.0, location, scale),
        (-40.0, -1.5, 0.0, 0.25, 3.0, 1e3),
    ),
    "student_t": Reference(
        lambda x, location, scale: stats.t.logpdf(x, 4.0, location, scale),
        (-40.0, -1.5, 0.0, 0.25, 3.0, 1e3),
    ),
    "unit_gaussian": Reference(stats.norm.logpdf, (-40.0, -1.5, 0.0, 0.25, 3.0, 1e3)),
    "bernoulli": Reference(bernoulli_log_probability, (0.0, 1.0)),
    "continuous_bernoulli": Reference(continuous_bernoulli_log_density, (0.0, 1e-3, 0.25, 0.5, 1.0)),
}
# The unbounded numbers that a decoder may hand to a likelihood: locations or logits, one for each column.
FIRST = np.array([-30.0, -2.0, -0.2, -CUT, -1e-3, 0.0, 1e-3, CUT, 0.2, 2.0, 30.0])


def tensor(values: Any, dtype: Any = np.float64) -> Any:
    return tf.constant(np.asarray(values, dtype=dtype))


def as_parameters(likelihood: Likelihood, first: Any, raw_scale: Any, dtype: Any = np.float64) -> Any:
    """``first`` and ``raw_scale`` of shape (n_rows, n_features) as the tuple that a likelihood takes."""
    parameters = [first]
    if getattr(likelihood, "scale", None) == "per_row":
        parameters.append(raw_scale)
    if getattr(likelihood, "scale", None) == "per_feature":
        parameters.append(raw_scale[0])
    assert len(parameters) == likelihood.n_params + likelihood.n_shared
    return tuple(tensor(parameter, dtype) for parameter in parameters)


def expected_scale(likelihood: Likelihood, raw_scale: Any) -> Any:
    """The documented link log s_min + softplus(r - log s_min), written as s = s_min + e^r."""
    scale = getattr(likelihood, "scale", 1.0)
    if scale == "per_row":
        return likelihood.minimum_scale + np.exp(raw_scale)
    if scale == "per_feature":
        return likelihood.minimum_scale + np.exp(raw_scale[:1])
    return scale


# -- densities -----------------------------------------------------------------------------------------
def test_every_named_likelihood_has_a_reference() -> None:
    """The other tests walk the reference table; a likelihood that is in none would be untested."""
    assert set(REFERENCES) == set(FAMILIES)
    assert set(LIKELIHOODS) == {*REFERENCES, *ELSEWHERE}
    for name, likelihood in LIKELIHOODS.items():
        assert likelihood.name == name
    for name, file in ELSEWHERE.items():
        assert f"{LIKELIHOODS[name].__name__}(" in Path(__file__).with_name(file).read_text()


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scale", ["per_feature", "per_row", 0.3])
@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_every_location_scale_log_prob_equals_scipy(name: str, scale: Any, dtype: Any) -> None:
    likelihood = LOCATION_SCALE[name](scale=scale)
    log_density, support = REFERENCES[name]
    x = np.repeat(np.array(support, dtype=dtype)[:, None], len(FIRST), axis=1)
    location = np.broadcast_to(FIRST.astype(dtype), x.shape)
    raw_scale = np.random.RandomState(0).uniform(-6, 3, x.shape).astype(dtype)

    log_prob = likelihood.log_prob(
        tensor(x, dtype), as_parameters(likelihood, location, raw_scale, dtype)
    ).numpy()

    exact = [values.astype(np.float64) for values in (x, location, raw_scale)]
    expected = log_density(exact[0], exact[1], expected_scale(likelihood, exact[2]))
    assert log_prob.dtype == dtype
    hundred_roundings = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(log_prob, expected, rtol=hundred_roundings, atol=hundred_roundings)


@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_every_unit_interval_log_prob_equals_its_reference(name: str) -> None:
    log_density, support = REFERENCES[name]
    x, logits = np.meshgrid(support, FIRST, indexing="ij")
    log_prob = UNIT_INTERVAL[name]().log_prob(tensor(x), (tensor(logits),)).numpy()
    # The first term that the continuous Bernoulli's series leaves out: 31 l^6 / 90720.
    np.testing.assert_allclose(log_prob, log_density(x, logits), rtol=1e-13, atol=2 * 31 * CUT**6 / 90720)


@pytest.mark.parametrize("degrees_of_freedom", [0.5, 1.0, 2.5, 30.0, 1e6])
def test_student_t_log_prob_equals_scipy_for_any_degrees_of_freedom(degrees_of_freedom: float) -> None:
    x = np.array([[-1e3, -2.0, 0.0, 0.7, 5.0]])
    likelihood = StudentT(scale="per_row", minimum_scale=1.0, degrees_of_freedom=degrees_of_freedom)
    # Raw scale 0 is the scale minimum + 1.
    log_prob = likelihood.log_prob(
        tensor(x), (tensor(np.full_like(x, 0.5)), tensor(np.zeros_like(x)))
    ).numpy()
    # Both sides subtract log-gammas of the size nu log nu.
    tolerance = 1e-14 * (1 + degrees_of_freedom * math.log(1 + degrees_of_freedom))
    np.testing.assert_allclose(
        log_prob, stats.t.logpdf(x, degrees_of_freedom, 0.5, 2.0), rtol=1e-13, atol=tolerance
    )


@pytest.mark.parametrize("scale", [0.02, 1.0, 50.0])
@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_every_location_scale_density_integrates_to_one(name: str, scale: float) -> None:
    likelihood = LOCATION_SCALE[name](scale="per_row", minimum_scale=scale / 2)
    parameters = (tensor([[1.5]]), tensor([[math.log(scale / 2)]]))

    def density(residual: float) -> float:
        log_prob = likelihood.log_prob(tensor([[1.5 + scale * residual]]), parameters)
        return scale * math.exp(log_prob.numpy().item())

    below = integrate.quad(density, -np.inf, 0, epsabs=1e-9)[0]
    above = integrate.quad(density, 0, np.inf, epsabs=1e-9)[0]
    assert below == pytest.approx(0.5, abs=1e-8)
    assert above == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_bernoulli_probabilities_and_continuous_bernoulli_densities_sum_to_one(name: str) -> None:
    if name == "bernoulli":
        points, weights = np.array([0.0, 1.0]), np.ones(2)
    else:  # Gauss-Legendre: exact for these entire functions
        points, weights = np.polynomial.legendre.leggauss(100)
        points, weights = (points + 1) / 2, weights / 2
    x, logits = np.meshgrid(points, LOGITS, indexing="ij")
    density = np.exp(UNIT_INTERVAL[name]().log_prob(tensor(x), (tensor(logits),)).numpy())
    np.testing.assert_allclose(weights @ density, 1.0, rtol=1e-11)


@pytest.mark.parametrize("sign", [-1, 1])
def test_continuous_bernoulli_is_continuous_across_the_cut_of_its_series(sign: int) -> None:
    cut = np.float32(CUT)
    logits = sign * np.array([[np.nextafter(cut, np.float32(0)), np.nextafter(cut, np.float32(1))]])
    below, above = ContinuousBernoulli().log_prob(tensor(0.3, "f4"), (tensor(logits, "f4"),)).numpy()[0]
    # Four roundings of numbers around log(cut) = -3; the series itself is exact to 1e-11.
    assert abs(above - below) <= 4 * FLOAT32_EPS * abs(math.log(CUT))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_continuous_bernoulli_mean_equals_the_numeric_mean(dtype: Any) -> None:
    logits = np.array([LOGITS], dtype=dtype)
    points, weights = np.polynomial.legendre.leggauss(100)
    points, weights = (points[:, None] + 1) / 2, weights / 2
    expected = weights @ (points * np.exp(continuous_bernoulli_log_density(points, logits)))
    mean = ContinuousBernoulli().mean((tensor(logits, dtype),)).numpy()[0]
    # The series leaves out l^3 / 720; the closed form subtracts 1 / l from 1 / sinh(l), which costs
    # about 1 / l^2 roundings.
    tolerance = CUT**3 / 720 + np.finfo(dtype).eps / CUT**2
    np.testing.assert_allclose(mean, expected, rtol=0, atol=tolerance)


def test_bernoulli_mean_is_the_probability() -> None:
    mean = Bernoulli().mean((tensor([FIRST]),)).numpy()
    np.testing.assert_allclose(mean, special.expit([FIRST]), rtol=1e-14)


@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_location_scale_mean_is_the_location(name: str) -> None:
    likelihood = LOCATION_SCALE[name]()
    parameters = as_parameters(likelihood, FIRST[None], np.ones((1, len(FIRST))))
    np.testing.assert_array_equal(likelihood.mean(parameters).numpy(), FIRST[None])


# -- the scale -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scale", "n_params", "n_shared"),
    [("per_feature", 1, 1), ("per_row", 2, 0), ("per_member", 2, 2), (1.0, 1, 0)],
)
@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_scale_decides_who_computes_it(name: str, scale: Any, n_params: int, n_shared: int) -> None:
    likelihood = LOCATION_SCALE[name](scale=scale)
    assert (likelihood.n_params, likelihood.n_shared) == (n_params, n_shared)


@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_a_scale_per_member_is_that_of_the_row_or_of_the_feature(name: str) -> None:
    rng = np.random.RandomState(0)
    x, location, of_row = rng.normal(size=(3, 5, len(FIRST)))
    of_feature = rng.normal(size=len(FIRST))
    likelihood = LOCATION_SCALE[name](scale="per_member")
    for scale, own, is_per_row in (("per_row", of_row, 1), ("per_feature", of_feature, 0)):
        shared = [of_feature, np.full(len(FIRST), is_per_row)]
        parameters = tuple(map(tensor, [location, of_row, *shared]))
        expected = LOCATION_SCALE[name](scale=scale).log_prob(tensor(x), (tensor(location), tensor(own)))
        np.testing.assert_array_equal(likelihood.log_prob(tensor(x), parameters), expected)


@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_only_a_scale_that_is_learned_may_be_one_per_member(name: str) -> None:
    make = LOCATION_SCALE[name]
    assert make("per_feature", minimum_scale=0.3).per_member().get_params() == {
        **make("per_feature", minimum_scale=0.3).get_params(),
        "scale": "per_member",
    }
    for scale in ("per_row", "per_member"):
        assert make(scale).per_member().scale == scale
    assert make(0.5).per_member() is None

    class OwnDensity(make):
        def log_prob(self, x, parameters):
            location, raw_scale = parameters
            return super().log_prob(x, (location, raw_scale))

    assert OwnDensity().per_member() is None
    assert all(UNIT_INTERVAL[name]().per_member() is None for name in UNIT_INTERVAL)


def test_a_member_s_scale_is_known_by_its_shared_parameters() -> None:
    rows = np.random.RandomState(0).normal(size=(20, 3)).astype("f4")
    rows[:, 1] = 5
    rows[3, 2] = np.nan
    likelihood = Gaussian("per_member")
    shared = likelihood.initial_shared(rows)
    np.testing.assert_array_equal(shared, [*Gaussian().initial_shared(rows), [0, 0, 0]])
    of_row = likelihood.initial_shared_per_row(rows)
    np.testing.assert_array_equal(of_row, [shared[0], [1, 0, 1]])
    assert (likelihood.has_scale_per_row(shared), likelihood.has_scale_per_row(of_row)) == (False, True)
    mixed = Mixed([(Gaussian(), [2, 1]), (Laplace(0.5), [0])]).per_member()
    expected = [[0, *shared[0, 1:]], [0, 0, 1]]
    np.testing.assert_array_equal(mixed.initial_shared_per_row(rows), expected)
    assert mixed.has_scale_per_row(np.array(expected))
    assert Mixed([(Laplace(0.5), [1])], ignored=[0, 2]).per_member() is None


@pytest.mark.parametrize(("n_values", "expected"), [(2, 0), (10, 0), (11, 1), (500, 1)])
def test_columns_of_few_values_have_no_scale_per_row(n_values: int, expected: int) -> None:
    levels = np.arange(500, dtype="f4") % n_values
    rows = np.stack([levels, np.where(levels == 1, np.nan, levels)], axis=1) / 100
    found = Gaussian("per_member").initial_shared_per_row(rows)[1]
    np.testing.assert_array_equal(found, [expected, expected and n_values > 11])


def test_columns_with_gross_errors_have_no_scale_per_row() -> None:
    rows = np.random.RandomState(0).normal(size=(5_000, 3)).astype("f4")
    rows[[3, 4], [1, 2]] = np.nan, -1e6
    np.testing.assert_array_equal(Gaussian("per_member").initial_shared_per_row(rows)[1], [1, 1, 0])


@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_unit_interval_likelihoods_have_one_parameter(name: str) -> None:
    assert (UNIT_INTERVAL[name]().n_params, UNIT_INTERVAL[name]().n_shared) == (1, 0)


@pytest.mark.parametrize("minimum_scale", [1e-4, 0.01, 1.0, 3.0])
@pytest.mark.parametrize("scale", ["per_feature", "per_row"])
def test_log_scale_is_the_softplus_link_above_the_floor(scale: str, minimum_scale: float) -> None:
    likelihood = Gaussian(scale=scale, minimum_scale=minimum_scale)
    raw_scale = np.array([[-1000.0, -30.0, math.log(minimum_scale), 0.0, 1.0, 30.0, 600.0]])
    log_scale = likelihood.log_scale(as_parameters(likelihood, np.zeros_like(raw_scale), raw_scale)).numpy()
    np.testing.assert_allclose(
        log_scale.reshape(raw_scale.shape), np.log(minimum_scale + np.exp(raw_scale)), rtol=1e-13, atol=1e-13
    )


def test_no_learned_scale_falls_below_the_minimum() -> None:
    raw_scale = -np.logspace(-3, 30, 200, dtype=np.float32)[None]
    likelihood = Gaussian(scale="per_row", minimum_scale=0.02)
    log_scale = likelihood.log_scale(as_parameters(likelihood, raw_scale, raw_scale, np.float32)).numpy()
    assert (log_scale >= np.float32(math.log(0.02))).all()
    assert log_scale[0, -1] == np.float32(math.log(0.02))


def test_a_fixed_scale_may_lie_below_the_minimum() -> None:
    log_scale = Gaussian(scale=1e-3, minimum_scale=0.01).log_scale((tensor([[0.0]]),))
    assert float(log_scale) == math.log(1e-3)


def test_a_constant_feature_has_a_finite_density() -> None:
    likelihood = Gaussian(scale="per_feature", minimum_scale=0.01)
    parameters = as_parameters(likelihood, np.zeros((1, 1)), np.full((1, 1), -1e9), np.float32)
    log_prob = likelihood.log_prob(tensor([[0.0]], np.float32), parameters).numpy().item()
    assert log_prob == pytest.approx(stats.norm.logpdf(0, 0, 0.01), rel=10 * FLOAT32_EPS)


# -- gradients -----------------------------------------------------------------------------------------
EXTREMES = np.array([0.0, 1e-3, -1e-3, CUT, -CUT, 1.0, -1.0, 100.0, -100.0], dtype=np.float32)


@pytest.mark.parametrize("x", [0.0, 1e-3, 0.5, 1.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_gradient_is_finite(name: str, x: float) -> None:
    """At logits and locations around 0 and far out, at residual 0, at tiny and huge scales."""
    for scale in ("per_feature", "per_row", 0.5) if name in LOCATION_SCALE else (None,):
        likelihood = FAMILIES[name]() if scale is None else LOCATION_SCALE[name](scale=scale)
        first, raw_scale = np.meshgrid([*EXTREMES, np.float32(x)], EXTREMES, indexing="ij")
        parameters = as_parameters(likelihood, first, raw_scale, np.float32)
        rows = tf.fill(first.shape, tf.constant(x))
        with tf.GradientTape() as tape:
            tape.watch([rows, *parameters])
            log_prob = likelihood.log_prob(rows, parameters)
        assert np.isfinite(log_prob.numpy()).all()
        for gradient in tape.gradient(log_prob, [rows, *parameters]):
            assert np.isfinite(gradient.numpy()).all()


@pytest.mark.parametrize("name", ["gaussian", "student_t", "laplace"])
def test_gradient_vanishes_at_the_location(name: str) -> None:
    x = tensor([[0.0, 0.3, -7.0]], np.float32)
    location = tf.identity(x)
    with tf.GradientTape() as tape:
        tape.watch(location)
        log_prob = LOCATION_SCALE[name](scale=0.1).log_prob(x, (location,))
    np.testing.assert_array_equal(tape.gradient(log_prob, location).numpy(), 0.0)


@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_gradient_with_respect_to_the_logit_is_x_minus_the_mean(name: str, x: float) -> None:
    """The law of exponential families; it holds on both sides of the series' cut."""
    likelihood = UNIT_INTERVAL[name]()
    logits = tensor([LOGITS])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        log_prob = likelihood.log_prob(tensor(x), (logits,))
    expected = x - likelihood.mean((logits,)).numpy()
    # The series of the mean leaves out l^3 / 720.
    tolerance = CUT**3 / 720 if name == "continuous_bernoulli" else 1e-15
    np.testing.assert_allclose(tape.gradient(log_prob, logits).numpy(), expected, rtol=0, atol=tolerance)


# -- sampling ------------------------------------------------------------------------------------------
class Sampled(NamedTuple):
    """A likelihood of one number, its parameters and its distribution."""

    likelihood: Likelihood
    parameters: tuple[float, ...]
    cdf: Callable[[Any], Any]


# The floor of the scale is far below these, so that s = minimum + e^r is exact.
SAMPLED = {
    "gaussian-fixed": Sampled(Gaussian(scale=0.5), (2.0,), stats.norm(2, 0.5).cdf),
    "gaussian-per_row": Sampled(Gaussian(scale="per_row"), (-1.0, math.log(3 - 0.01)), stats.norm(-1, 3).cdf),
    "gaussian-per_feature": Sampled(
        Gaussian(minimum_scale=1.0), (0.0, math.log(1.5 - 1.0)), stats.norm(0, 1.5).cdf
    ),
    "laplace": Sampled(Laplace(scale=2.0), (1.0,), stats.laplace(1, 2).cdf),
    "student_t": Sampled(StudentT(scale=0.1), (-3.0,), stats.t(4, -3, 0.1).cdf),
    "student_t-heavy": Sampled(StudentT(scale=1.0, degrees_of_freedom=1.0), (0.0,), stats.cauchy(0, 1).cdf),
    **{
        f"continuous_bernoulli-{logit:g}": Sampled(
            ContinuousBernoulli(), (logit,), lambda x, logit=logit: continuous_bernoulli_cdf(x, logit)
        )
        for logit in (-200.0, -30.0, -1.0, -0.06, -0.01, 0.0, 0.01, 0.06, 2.0, 30.0, 200.0)
    },
}


def many_draws(likelihood: Likelihood, parameters: tuple[float, ...], n: int, seed: int = 0) -> Any:
    columns = as_parameters(
        likelihood, np.full((n, 1), parameters[0]), np.full((n, 1), parameters[-1]), np.float32
    )
    return likelihood.sample(columns, seed).numpy()


@pytest.mark.parametrize("case", SAMPLED.values(), ids=SAMPLED)
def test_samples_follow_the_density(case: Sampled) -> None:
    """Kolmogorov-Smirnov with a fixed seed: a right sampler fails one seed in a thousand."""
    drawn = many_draws(case.likelihood, case.parameters, 20_000)[:, 0]
    assert stats.kstest(drawn.astype(np.float64), case.cdf).pvalue > 1e-3


@pytest.mark.parametrize("logit", [-4.0, 0.0, 1.0])
def test_bernoulli_samples_are_ones_with_the_probability(logit: float) -> None:
    drawn = many_draws(Bernoulli(), (logit,), 20_000)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert stats.binomtest(int(drawn.sum()), drawn.size, special.expit(logit)).pvalue > 1e-3


AVERAGED = {
    **{name: case for name, case in SAMPLED.items() if name != "student_t-heavy"},
    **{f"bernoulli-{logit}": Sampled(Bernoulli(), (logit,), None) for logit in (-3.0, 0.0, 2.0)},
}


@pytest.mark.parametrize("case", AVERAGED.values(), ids=AVERAGED)
def test_samples_average_to_the_mean(case: Sampled) -> None:
    drawn = many_draws(case.likelihood, case.parameters, 20_000).astype(np.float64)
    mean = case.likelihood.mean(tuple(tensor([[parameter]]) for parameter in case.parameters)).numpy().item()
    standard_error = drawn.std() / math.sqrt(drawn.size)
    assert abs(drawn.mean() - mean) < 4 * standard_error


def test_samples_have_the_scale_of_their_row_and_feature() -> None:
    scales = np.array([[0.1, 1.0], [10.0, 100.0]])
    likelihood = Gaussian(scale="per_row", minimum_scale=1e-6)
    parameters = as_parameters(likelihood, np.zeros((2, 2)), np.log(scales), np.float32)
    drawn = np.stack([likelihood.sample(parameters, seed).numpy() for seed in range(400)])
    # The standard error of a standard deviation from n draws is s / sqrt(2 n).
    np.testing.assert_allclose(drawn.std(axis=0) / scales, 1.0, rtol=0, atol=4 / math.sqrt(2 * 400))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_sample_is_finite(name: str) -> None:
    """Over so many draws that a uniform generator returns its end points."""
    assert np.isfinite(many_draws(FAMILIES[name](), (0.5, 0.0), 2**22)).all()


@pytest.mark.parametrize("logit", [-1000.0, -30.0, -CUT, 0.0, CUT, 0.3, 30.0, 1000.0])
@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_every_sample_lies_in_the_unit_interval(name: str, logit: float) -> None:
    drawn = many_draws(UNIT_INTERVAL[name](), (logit,), 2**18)
    assert drawn.min() >= 0
    assert drawn.max() <= 1


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_reproducible_by_seed(name: str) -> None:
    likelihood = FAMILIES[name]()
    first, again, other = (many_draws(likelihood, (0.5, 0.0), 100, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_leaves_global_random_state_alone(name: str, draws_after: Any) -> None:
    sample = lambda: many_draws(FAMILIES[name](), (0.5, 0.0), 10)  # noqa: E731
    assert draws_after(sample) == draws_after(lambda: None)


# -- quantiles -----------------------------------------------------------------------------------------
SCIPY = {
    "gaussian": stats.norm,
    "laplace": stats.laplace,
    "student_t": lambda location, scale: stats.t(4.0, location, scale),
}
PROBABILITIES = [0.001, 0.05, 0.3, 0.5, 0.9, 0.999]


@pytest.mark.parametrize("scale", ["per_feature", "per_row", 0.3])
@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_every_location_scale_quantile_equals_scipy(name: str, scale: Any) -> None:
    likelihood = LOCATION_SCALE[name](scale=scale)
    location = np.repeat(FIRST[None], 4, axis=0)
    raw_scale = np.random.RandomState(0).uniform(-6, 3, location.shape)
    parameters = as_parameters(likelihood, location, raw_scale)
    distribution = SCIPY[name.removeprefix("unit_").removeprefix("pixel_")](
        location, expected_scale(likelihood, raw_scale)
    )
    for probability in PROBABILITIES:
        quantile = likelihood.quantile(probability, parameters).numpy()
        np.testing.assert_allclose(quantile, distribution.ppf(probability), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_continuous_bernoulli_quantile_inverts_the_distribution_function(probability: float) -> None:
    quantiles = ContinuousBernoulli().quantile(probability, (tensor([LOGITS]),)).numpy()[0]
    reached = [continuous_bernoulli_cdf(x, logit) for x, logit in zip(quantiles, LOGITS, strict=True)]
    # The series around 0 leaves out l^2 u (1 - u) (1 - 2 u) / 6, at most l^2 / 62.
    np.testing.assert_allclose(reached, probability, rtol=1e-9, atol=CUT**2 / 60)


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_bernoulli_quantile_is_one_above_the_share_of_zeros(probability: float) -> None:
    logits = np.array([[-4.0, -1.0, 0.5, 4.0]])
    quantile = Bernoulli().quantile(probability, (tensor(logits),)).numpy()
    np.testing.assert_array_equal(quantile, stats.bernoulli.ppf(probability, special.expit(logits)))


def test_a_likelihood_without_quantiles_says_what_to_add() -> None:
    with pytest.raises(NotImplementedError, match=r"give Likelihood a method quantile\(probability, param"):
        Likelihood().quantile(0.5, (tensor([[0.0]]),))
    with pytest.raises(NotImplementedError, match=r"give Logistic a method standard_quantile\(probability"):
        Logistic().quantile(0.5, (tensor([[0.0]]), tensor([0.0])))


# -- expectations: what a missing value counts ---------------------------------------------------------
class Logistic(LocationScale):
    """As README has it, but for the sampler; without a name, so that it is nobody else's."""

    def standard_log_prob(self, residual: Any) -> Any:
        return -residual - 2 * keras.ops.softplus(-residual)


@pytest.mark.parametrize("scale", ["per_feature", "per_row", 0.3])
@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_expectations_of_real_values_are_minus_the_entropy_and_the_variance(name: str, scale: Any) -> None:
    likelihood = LOCATION_SCALE[name](scale=scale)
    location = np.repeat(FIRST[None], 4, axis=0)
    raw_scale = np.random.RandomState(0).uniform(-6, 3, location.shape)
    parameters = as_parameters(likelihood, location, raw_scale)
    scales = np.broadcast_to(expected_scale(likelihood, raw_scale), location.shape)
    distribution = SCIPY[name.removeprefix("unit_").removeprefix("pixel_")]
    entropy = math.log(0.5) + distribution(0.0, 2.0).entropy() - np.log(1 / scales)
    log_prob, error = likelihood.expected_log_prob(parameters), likelihood.expected_error(parameters)
    np.testing.assert_allclose(log_prob.numpy(), -entropy, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(error.numpy(), distribution(location, scales).var(), rtol=1e-12)


@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_expectations_of_the_unit_interval_are_numerical_integrals(name: str) -> None:
    if name == "bernoulli":
        points, weights = np.array([0.0, 1.0]), np.ones(2)
    else:  # Gauss-Legendre: exact for these entire functions
        points, weights = np.polynomial.legendre.leggauss(100)
        points, weights = (points + 1) / 2, weights / 2
    likelihood, parameters = UNIT_INTERVAL[name](), (tensor([LOGITS]),)
    x, logits = np.meshgrid(points, LOGITS, indexing="ij")
    log_density = REFERENCES[name].log_density(x, logits)
    cross_entropy = -x * special.log_expit(logits) - (1 - x) * special.log_expit(-logits)
    for expected, values in (
        (likelihood.expected_log_prob(parameters), log_density),
        (likelihood.expected_error(parameters), cross_entropy),
    ):
        integral = weights @ (np.exp(log_density) * values)
        # The series of the mean, off by l^3 / 720, times the logit.
        np.testing.assert_allclose(expected.numpy()[0], integral, rtol=1e-11, atol=CUT**4 / 720)


LAW = {name: case for name, case in SAMPLED.items() if name != "student_t-heavy" and "200" not in name}


@pytest.mark.parametrize("case", LAW.values(), ids=LAW)
def test_expectations_are_means_over_samples(case: Sampled) -> None:
    likelihood, n = case.likelihood, 100_000
    parameters = as_parameters(
        likelihood, np.full((n, 1), case.parameters[0]), np.full((n, 1), case.parameters[-1]), np.float32
    )
    x = likelihood.sample(parameters, 0)
    for drawn, expected in (
        (likelihood.log_prob(x, parameters), likelihood.expected_log_prob(parameters)),
        (likelihood.error(x, parameters), likelihood.expected_error(parameters)),
    ):
        values = drawn.numpy().astype(np.float64)
        tolerance = 4 * values.std() / math.sqrt(n) + 100 * FLOAT32_EPS * abs(values).max()
        assert values.mean() == pytest.approx(float(expected.numpy()[0, 0]), abs=tolerance)


@pytest.mark.parametrize("degrees_of_freedom", [0.5, 1.0, 2.0])
def test_an_error_without_a_mean_is_expected_at_its_median(degrees_of_freedom: float) -> None:
    likelihood = StudentT(scale=2.0, degrees_of_freedom=degrees_of_freedom)
    expected = float(likelihood.expected_error((tensor([[5.0]]),)).numpy()[0, 0])
    nearer = 1 - 2 * stats.t.sf(math.sqrt(expected), degrees_of_freedom, scale=2.0)
    assert nearer == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("likelihood", "entropy", "mean_square"),
    [
        (Logistic(), 2.0, math.pi**2 / 3),
        (Gaussian(), stats.norm.entropy(), 1.0),
        (Laplace(), stats.laplace.entropy(), 2.0),
    ],
    ids=["logistic", "gaussian", "laplace"],
)
def test_quadrature_knows_the_moments_of_a_density_that_does_not_say_them(
    likelihood: LocationScale, entropy: float, mean_square: float
) -> None:
    by_quadrature = [float(moment) for moment in LocationScale.standard_moments(likelihood)]
    # A grid of steps h is off by about h^2 / 12 at a kink, 1e-5.
    assert by_quadrature == pytest.approx([entropy, mean_square], rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scale", ["per_feature", "per_row", 0.3])
def test_a_density_of_ones_own_has_expectations_in_every_dtype(scale: Any, dtype: Any) -> None:
    likelihood = Logistic(scale=scale)
    raw_scale = np.array([[0.5, -1.0]])
    parameters = as_parameters(likelihood, np.array([[3.0, -2.0]]), raw_scale, dtype)
    scales = np.broadcast_to(expected_scale(likelihood, raw_scale), (1, 2))
    log_prob, error = likelihood.expected_log_prob(parameters), likelihood.expected_error(parameters)
    assert log_prob.dtype == error.dtype == dtype
    np.testing.assert_allclose(log_prob.numpy(), -2 - np.log(scales), rtol=1e-4)
    np.testing.assert_allclose(error.numpy(), scales**2 * math.pi**2 / 3, rtol=1e-4)


# -- errors and support --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_error_of_real_values_is_the_squared_distance_to_the_mean(name: str) -> None:
    x, location = np.array([[0.0, 3.0, -2.5]]), np.array([[1.0, 3.0, 2.5]])
    likelihood = LOCATION_SCALE[name]()
    error = likelihood.error(tensor(x), as_parameters(likelihood, location, np.ones_like(x))).numpy()
    np.testing.assert_array_equal(error, [[1.0, 0.0, 25.0]])


@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_error_of_values_in_the_unit_interval_is_the_cross_entropy(name: str) -> None:
    x, logits = np.meshgrid([0.0, 0.3, 1.0], FIRST)
    error = UNIT_INTERVAL[name]().error(tensor(x), (tensor(logits),)).numpy()
    expected = -x * special.log_expit(logits) - (1 - x) * special.log_expit(-logits)
    np.testing.assert_allclose(error, expected, rtol=1e-13, atol=1e-14)


def test_bernoulli_scores_values_in_between_by_the_cross_entropy() -> None:
    x, logits = np.meshgrid([0.1, 0.5, 0.9], FIRST)
    log_prob = Bernoulli().log_prob(tensor(x), (tensor(logits),)).numpy()
    expected = x * special.log_expit(logits) + (1 - x) * special.log_expit(-logits)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("value", [-0.5, 1.5, 255.0])
@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_values_outside_the_unit_interval_are_refused_by_column_and_value(name: str, value: float) -> None:
    X = np.full((4, 3), 0.5)
    X[2, 1] = value
    with pytest.raises(
        ValueError,
        match=rf"^likelihood '{name}' needs values in \[0, 1\] after scaling.*MinMaxScaler.*"
        rf"; column 1 holds {value:g} in row 2\.$",
    ):
        UNIT_INTERVAL[name]().check_support(X)


COLUMN_NAMES = {
    "scikit-learn's object array": np.array(["red", "green", "blue"], dtype=object),
    "list": ["red", "green", "blue"],
    "array of str": np.array(["red", "green", "blue"]),
    "pandas index": pd.Index(["red", "green", "blue"]),
}


@pytest.mark.parametrize("names", COLUMN_NAMES.values(), ids=COLUMN_NAMES)
def test_values_outside_the_unit_interval_are_refused_by_the_name_of_the_column(names: Any) -> None:
    with pytest.raises(ValueError, match="column 'blue' holds -3 in row 0"):
        Bernoulli().check_support(np.array([[0.0, 1.0, -3.0]]), names)


@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_the_unit_interval_is_closed_and_accepts_rounding(name: str) -> None:
    UNIT_INTERVAL[name]().check_support(np.array([[0.0, 1.0, -1e-7, 1 + 1e-7]]))


@pytest.mark.parametrize("name", REAL)
def test_likelihoods_of_real_values_accept_every_one(name: str) -> None:
    LOCATION_SCALE[name]().check_support(np.array([[-1e30, 0.0, 1e30]]))


def test_real_values_are_standardized_and_the_unit_interval_is_left_alone() -> None:
    assert all(isinstance(scaler_for(LOCATION_SCALE[name](), "auto"), StandardScaler) for name in REAL)
    assert all(scaler_for(likelihood(), "auto") is None for likelihood in UNIT_INTERVAL.values())
    assert scaler_for(UnitGaussian(), "auto") is None


@pytest.mark.parametrize("n_pixels", [1, 64, 784, 3072])
@pytest.mark.parametrize(("likelihood", "of_784"), [(UnitGaussian(), 0.3), (PixelGaussian(), 1.0)], ids=str)
def test_pixels_of_an_image_count_together_as_784_of_one_scale(
    likelihood: Likelihood, of_784: float, n_pixels: int
) -> None:
    location = np.random.RandomState(0).uniform(size=(3, n_pixels))
    x, scale = location + 0.1, of_784 * math.sqrt(n_pixels / 784)
    log_prob = likelihood.log_prob(tensor(x), (tensor(location),))
    np.testing.assert_allclose(log_prob, stats.norm.logpdf(x, location, scale), rtol=1e-6, atol=1e-6)
    share = n_pixels / 784 * (x - location) ** 2 / (2 * scale**2)
    np.testing.assert_allclose(share, 0.1**2 / (2 * of_784**2))


def test_the_gaussian_of_the_unit_interval_differs_in_its_scale_its_support_and_its_values() -> None:
    np.testing.assert_array_equal(UnitGaussian().values(np.array([-0.1, 0.2, 1.3])), [0, 0.2, 1])
    assert UnitGaussian().get_params() == {**Gaussian().get_params(), "scale": "auto"}
    UnitGaussian().check_support(np.array([[0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"'unit_gaussian' needs values in \[0, 1\].*column 1 holds 1.5"):
        UnitGaussian().check_support(np.array([[0.0, 1.5]]))


# -- names ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_resolve_takes_a_name(name: str) -> None:
    assert type(likelihoods.resolve(name)) is LIKELIHOODS[name]


def test_resolve_returns_an_instance_itself() -> None:
    likelihood = StudentT(degrees_of_freedom=3.0)
    assert likelihoods.resolve(likelihood) is likelihood


def test_resolve_lists_the_choices_for_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="received 'normal'") as raised:
        likelihoods.resolve("normal")
    assert all(repr(name) in str(raised.value) for name in ["auto", *LIKELIHOODS])


def test_a_subclass_with_a_name_registers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LIKELIHOODS", dict(LIKELIHOODS))

    class Cauchy(StudentT):
        name = "cauchy"

    assert base.LIKELIHOODS["cauchy"] is Cauchy
    assert type(likelihoods.resolve("cauchy")) is Cauchy


def test_a_subclass_without_a_name_of_its_own_takes_nobodys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LIKELIHOODS", dict(LIKELIHOODS))

    class Anonymous(Gaussian):
        pass

    assert base.LIKELIHOODS == LIKELIHOODS
    assert Anonymous not in base.LIKELIHOODS.values()


# -- parameter objects ---------------------------------------------------------------------------------
SPECIFICATIONS = {
    "Gaussian()": Gaussian(),
    "Gaussian(scale='per_row')": Gaussian(scale="per_row"),
    "Laplace(scale=0.5)": Laplace(scale=0.5),
    "Laplace(minimum_scale=0.2)": Laplace(minimum_scale=0.2),
    "StudentT(degrees_of_freedom=2.5)": StudentT(degrees_of_freedom=2.5),
    "Bernoulli()": Bernoulli(),
    "ContinuousBernoulli()": ContinuousBernoulli(),
}


@pytest.mark.parametrize("written", SPECIFICATIONS)
def test_a_specification_prints_as_the_call_that_makes_it(written: str) -> None:
    assert repr(SPECIFICATIONS[written]) == written


@pytest.mark.parametrize("specification", SPECIFICATIONS.values(), ids=SPECIFICATIONS)
def test_a_clone_is_a_new_object_with_equal_parameters(specification: Likelihood) -> None:
    copy = clone(specification)
    assert copy is not specification
    assert type(copy) is type(specification)
    assert copy.get_params() == specification.get_params()
    assert copy.architecture_key() == specification.architecture_key()


def test_set_params_changes_what_get_params_returns() -> None:
    likelihood = StudentT().set_params(scale=2.0, degrees_of_freedom=3.0)
    assert likelihood.get_params() == {"scale": 2.0, "minimum_scale": 0.1, "degrees_of_freedom": 3.0}


def test_different_specifications_have_different_architecture_keys() -> None:
    keys = [specification.architecture_key() for specification in SPECIFICATIONS.values()]
    assert len(set(keys)) == len(SPECIFICATIONS)


@pytest.mark.parametrize(("size", "change"), [(3, 1e-12), (2000, 1.0)], ids=["last digits", "many numbers"])
def test_every_digit_of_an_array_parameter_counts_in_the_architecture_key(size: int, change: float) -> None:
    class Weighted(Gaussian):
        def __init__(self, weights: Any = None) -> None:
            super().__init__()
            self.weights = weights

    weights, others = np.ones(size), np.ones(size)
    others[size // 2] += change
    key, equal, different = (Weighted(w).architecture_key() for w in (weights, weights.copy(), others))
    assert key == equal
    assert key != different


@pytest.mark.parametrize("logit", [-0.099, 0.05, 0.099])
def test_continuous_bernoulli_samples_have_their_mean_near_logit_zero_too(logit: float) -> None:
    likelihood, parameters = ContinuousBernoulli(), (tf.fill((1000, 1000), tf.constant(logit)),)
    drawn = np.asarray(likelihood.sample(parameters, 0).numpy(), dtype=np.float64)
    # A million draws with a standard deviation of 0.29.
    assert drawn.mean() == pytest.approx(0.5 + logit / 12, abs=5 * 0.29 / 1000)


INVALID = {
    "unknown scale": (Gaussian(scale="row"), "scale"),
    "no scale": (Laplace(scale=None), "scale"),
    "zero scale": (Gaussian(scale=0.0), "scale"),
    "negative scale": (StudentT(scale=-1.0), "scale"),
    "scale that is not a number": (Gaussian(scale=math.nan), "scale"),
    "infinite scale": (Gaussian(scale=math.inf), "scale"),
    "zero minimum": (Gaussian(minimum_scale=0.0), "minimum_scale"),
    "named minimum": (Laplace(minimum_scale="small"), "minimum_scale"),
    "negative minimum": (StudentT(minimum_scale=-0.1), "minimum_scale"),
    "no degrees of freedom": (StudentT(degrees_of_freedom=0), "degrees_of_freedom"),
    "named degrees of freedom": (StudentT(degrees_of_freedom="many"), "degrees_of_freedom"),
}


@pytest.mark.parametrize(("likelihood", "parameter"), INVALID.values(), ids=INVALID)
def test_invalid_parameters_are_named(likelihood: Likelihood, parameter: str) -> None:
    with pytest.raises(
        InvalidParameterError, match=f"'{parameter}' parameter of {type(likelihood).__name__}"
    ):
        likelihood._validate_params()


@pytest.mark.parametrize("specification", SPECIFICATIONS.values(), ids=SPECIFICATIONS)
def test_valid_parameters_pass(specification: Likelihood) -> None:
    specification._validate_params()
