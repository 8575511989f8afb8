"""Likelihoods of categories and of counts against scipy's distributions and the laws of probabilities."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import special, stats
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError

from vae_anomaly import DenseNetwork
from vae_anomaly.core.backend import tf
from vae_anomaly.data.scaling import scaler_for
from vae_anomaly.likelihoods import Categorical, Count, Likelihood
from vae_anomaly.model.vae import VAE

FLOAT32_EPS = float(np.finfo(np.float32).eps)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def tensor(values: Any, dtype: Any = np.float64) -> Any:
    return tf.constant(np.asarray(values, dtype=dtype))


# -- categories: probabilities -------------------------------------------------------------------------
CATEGORICAL = {
    "one": Categorical(1),
    "two": Categorical(2),
    "five": Categorical(5),
    "five, unseen ones likely": Categorical(5, unseen_probability=0.3),
    "two hundred": Categorical(200),
}
EVERY_CATEGORICAL = pytest.mark.parametrize("likelihood", CATEGORICAL.values(), ids=CATEGORICAL)


def random_logits(likelihood: Categorical, n_rows: int = 7, n_features: int = 3) -> Any:
    shape = n_rows, n_features, likelihood.n_categories
    return 3 * np.random.RandomState(0).normal(size=shape)


def every_code(likelihood: Categorical) -> Any:
    """All codes, that of the unseen category last, as rows of one feature."""
    return np.arange(likelihood.n_categories + 1.0)[:, None]


def reference_probabilities(likelihood: Categorical, logits: Any) -> Any:
    """Of the known categories."""
    unseen = likelihood.unseen_probability
    return (1 - unseen) * special.softmax(logits, axis=-1) + unseen / (likelihood.n_categories + 1)


@DTYPES
@EVERY_CATEGORICAL
def test_a_categorys_probability_is_its_softmax_and_an_equal_part_of_the_unseen(
    likelihood: Categorical, dtype: Any
) -> None:
    logits = random_logits(likelihood).astype(dtype)
    codes = np.random.RandomState(1).randint(likelihood.n_categories, size=(7, 3))
    log_prob = likelihood.log_prob(tensor(codes, dtype), (tensor(logits, dtype),)).numpy()
    probabilities = reference_probabilities(likelihood, logits.astype(np.float64))
    expected = np.log(np.take_along_axis(probabilities, codes[..., None], axis=-1)[..., 0])
    assert log_prob.dtype == dtype
    hundred_roundings = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(log_prob, expected, rtol=hundred_roundings, atol=hundred_roundings)


@EVERY_CATEGORICAL
def test_probabilities_of_known_and_unseen_categories_sum_to_one(likelihood: Categorical) -> None:
    logits = random_logits(likelihood, n_rows=1, n_features=4)
    codes = np.repeat(every_code(likelihood), 4, axis=1)
    probabilities = np.exp(likelihood.log_prob(tensor(codes), (tensor(logits),)).numpy())
    unseen = likelihood.unseen_probability / (likelihood.n_categories + 1)
    np.testing.assert_allclose(probabilities[:-1].sum(axis=0), 1 - unseen, rtol=1e-12)
    np.testing.assert_allclose(probabilities[-1], unseen, rtol=1e-12)


@DTYPES
@pytest.mark.parametrize("size", [0.0, 3.0, 50.0, 1e4])
@EVERY_CATEGORICAL
def test_no_category_is_less_probable_than_an_unseen_one(
    likelihood: Categorical, size: float, dtype: Any
) -> None:
    logits = size * random_logits(likelihood, n_rows=1, n_features=20)
    codes = np.repeat(every_code(likelihood), 20, axis=1)
    log_prob = likelihood.log_prob(tensor(codes, dtype), (tensor(logits, dtype),)).numpy()
    # One rounding: the last elements of an array take another logarithm than those before.
    assert (log_prob[-1] <= log_prob + np.spacing(np.abs(log_prob))).all()
    least = math.log(likelihood.unseen_probability / (likelihood.n_categories + 1))
    np.testing.assert_allclose(log_prob[-1], least, rtol=1e-6)


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_gradients_of_categories_are_finite_at_extreme_logits(code: int) -> None:
    sizes = [0.0, 1e-3, 1.0, 100.0, 1e4, 1e30]
    logits = tensor([[[size, -size, 0.0]] for size in sizes], np.float32)
    x = tf.fill((len(sizes), 1), np.float32(code))
    likelihood = Categorical(3)
    for function in (
        lambda logits: likelihood.log_prob(x, (logits,)),
        lambda logits: likelihood.expected_log_prob((logits,)),
    ):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            log_prob = function(logits)
        assert np.isfinite(log_prob.numpy()).all()
        assert np.isfinite(tape.gradient(log_prob, logits).numpy()).all()


# -- categories: what the networks see -----------------------------------------------------------------
def test_the_decoder_computes_a_logit_for_each_category() -> None:
    likelihood = Categorical(3)
    assert (likelihood.n_params, likelihood.n_shared, likelihood.n_outputs(4)) == (3, 0, 12)
    outputs = np.arange(2.0 * 5 * 6).reshape(2, 5, 6)
    (logits,) = likelihood.parameters(tensor(outputs))
    np.testing.assert_array_equal(logits.numpy(), outputs.reshape(2, 5, 2, 3))


@DTYPES
def test_the_encoder_sees_indicators_and_none_of_an_unseen_category(dtype: Any) -> None:
    likelihood = Categorical(3)
    inputs = likelihood.inputs(tensor([[0, 2], [1, 3]], dtype)).numpy()
    np.testing.assert_array_equal(inputs, [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]])
    assert inputs.dtype == dtype
    assert likelihood.origins(2) == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(likelihood.input_range(np.zeros((4, 2), "f4")), [[0] * 6, [1] * 6])


def test_categories_need_no_scaler_and_have_no_order() -> None:
    likelihood = Categorical(3)
    assert scaler_for(likelihood, "auto") is None
    assert np.isnan(likelihood.quantile(0.5, (tensor(random_logits(likelihood)),)).numpy()).all()


@EVERY_CATEGORICAL
def test_expectations_are_probabilities_and_stand_for_the_most_probable(likelihood: Categorical) -> None:
    logits = random_logits(likelihood)
    expectations = likelihood.expectations((tensor(logits),)).numpy()
    np.testing.assert_allclose(
        expectations, reference_probabilities(likelihood, logits).reshape(7, -1), rtol=1e-12
    )
    np.testing.assert_array_equal(likelihood.expected_inputs((tensor(logits),)), expectations)
    np.testing.assert_array_equal(likelihood.values(expectations), logits.argmax(axis=-1))
    np.testing.assert_array_equal(likelihood.mean((tensor(logits),)), logits.argmax(axis=-1))


def test_a_mean_of_expectations_stands_for_what_is_most_probable_on_average() -> None:
    # Two draws are for 0, by a little; the third is sure of 2.
    expectations = np.array([[0.5, 0.1, 0.4], [0.5, 0.1, 0.4], [0.0, 0.0, 1.0]])
    likelihood = Categorical(3)
    np.testing.assert_array_equal(likelihood.values(expectations), [[0], [0], [2]])
    np.testing.assert_array_equal(likelihood.values(expectations.mean(axis=0)), [2])


def test_values_are_the_codes_that_the_inputs_came_from() -> None:
    codes = np.random.RandomState(0).randint(5, size=(4, 6, 3)).astype(np.float32)
    likelihood = Categorical(5)
    np.testing.assert_array_equal(likelihood.values(likelihood.inputs(tf.constant(codes)).numpy()), codes)


# -- categories: sampling and expectations -------------------------------------------------------------
def test_samples_have_the_frequencies_of_the_known_categories() -> None:
    likelihood, n = Categorical(4), 50_000
    logits = np.array([[2.0, 0.0, -1.0, 1.0], [0.0, 0.0, 0.0, -2.0]])
    drawn = likelihood.sample((tensor(np.broadcast_to(logits, (n, 2, 4)), np.float32),), 0).numpy()
    assert drawn.shape == (n, 2)
    for codes, probabilities in zip(drawn.T, special.softmax(logits, axis=-1), strict=True):
        counts = np.bincount(codes.astype(int), minlength=4)
        assert stats.chisquare(counts, n * probabilities).pvalue > 1e-3


SAMPLERS = {
    "categorical": (Categorical(3), tensor([[[0.0, 0.3, -0.2]]] * 100, np.float32)),
    "count": (Count(), tensor([[0.5]] * 100, np.float32)),
}
EVERY_SAMPLER = pytest.mark.parametrize(("likelihood", "first"), SAMPLERS.values(), ids=SAMPLERS)


def with_shared(likelihood: Likelihood, first: Any) -> Any:
    return (first, *(tensor([0.0], np.float32) for _ in range(likelihood.n_shared)))


@EVERY_SAMPLER
def test_samples_are_reproducible_by_seed(likelihood: Likelihood, first: Any) -> None:
    parameters = with_shared(likelihood, first)
    drawn, again, other = (likelihood.sample(parameters, seed).numpy() for seed in (3, 3, 4))
    np.testing.assert_array_equal(drawn, again)
    assert (drawn != other).any()


@EVERY_SAMPLER
def test_sampling_leaves_global_random_state_alone(
    likelihood: Likelihood, first: Any, draws_after: Any
) -> None:
    parameters = with_shared(likelihood, first)
    assert draws_after(lambda: likelihood.sample(parameters, 0)) == draws_after(lambda: None)


@EVERY_CATEGORICAL
def test_a_missing_category_counts_minus_the_entropy_of_the_known_ones(likelihood: Categorical) -> None:
    logits = random_logits(likelihood)
    probabilities = reference_probabilities(likelihood, logits)
    expected = likelihood.expected_log_prob((tensor(logits),)).numpy()
    np.testing.assert_allclose(expected, -special.entr(probabilities).sum(axis=-1), rtol=1e-9, atol=1e-12)
    error = likelihood.expected_error((tensor(logits),)).numpy()
    np.testing.assert_array_equal(error, -expected)


def test_what_a_missing_category_counts_is_the_mean_over_samples() -> None:
    likelihood, n = Categorical(4), 100_000
    parameters = (tensor(np.broadcast_to([[2.0, 0.0, -1.0, 1.0]], (n, 1, 4)), np.float32),)
    log_prob = likelihood.log_prob(likelihood.sample(parameters, 0), parameters).numpy().astype(np.float64)
    expected = float(likelihood.expected_log_prob(parameters).numpy()[0, 0])
    # Samples are of known categories only, which are 1 - eps of the probability.
    tolerance = 4 * log_prob.std() / math.sqrt(n) + 10 * likelihood.unseen_probability
    assert log_prob.mean() == pytest.approx(expected, abs=tolerance)


def test_error_of_a_category_is_the_cross_entropy() -> None:
    likelihood = Categorical(5)
    parameters, codes = (tensor(random_logits(likelihood)),), tensor(np.full((7, 3), 2.0))
    np.testing.assert_array_equal(
        likelihood.error(codes, parameters), -likelihood.log_prob(codes, parameters).numpy()
    )


# -- categories: support -------------------------------------------------------------------------------
@pytest.mark.parametrize("code", [-1.0, 4.0, 0.5, 1e30])
def test_codes_out_of_range_are_refused_by_column_and_value(code: float) -> None:
    X = np.zeros((3, 2))
    X[2, 1] = code
    with pytest.raises(
        ValueError,
        match=rf"'categorical' needs codes from 0 to 2; column 'b' holds {re.escape(f'{code:g}')} in row 2",
    ):
        Categorical(3).check_support(X, ["a", "b"])


def test_unseen_and_missing_categories_are_supported() -> None:
    Categorical(3).check_support(np.array([[0.0, 2.0, 3.0, np.nan]]))


# -- counts: probabilities -----------------------------------------------------------------------------
class CountCase:
    """Parameters of a count of one feature, and scipy's account of them.

    Parameters
    ----------
    location, scale, level, spread : float
        m, s, c and w.
    """

    def __init__(self, location: float, scale: float, level: float, spread: float) -> None:
        self.location, self.scale, self.level, self.spread = location, scale, level, spread

    def parameters(self, n_rows: int = 1, dtype: Any = np.float64) -> Any:
        raw_scale = math.log(self.scale - Count._minimum_scale)  # s = minimum + e^r
        shared = ([value] for value in (raw_scale, self.level, math.log(self.spread)))
        location = np.full((n_rows, 1), self.location)
        return tuple(tensor(value, dtype) for value in (location, *shared))

    @property
    def continuous(self) -> Any:
        """The distribution of x + 1 before rounding: log-logistic."""
        return stats.fisk(
            1 / (self.scale * self.spread), scale=math.exp(self.level + self.spread * self.location)
        )

    def log_probability(self, x: Any) -> Any:
        """log(F(x + 1) - F(x)), from whichever tail is short."""
        low = self.continuous.cdf(x + 1) - self.continuous.cdf(x)
        high = self.continuous.sf(x) - self.continuous.sf(x + 1)
        return np.log(np.where(x < self.continuous.median(), low, high))


COUNTS = {
    "mostly zero": CountCase(-2.0, 0.5, 0.0, 1.0),
    "few": CountCase(0.3, 0.4, 1.0, 0.7),
    "hundreds": CountCase(-0.5, 0.3, 5.5, 0.4),
    "heavy tail": CountCase(0.0, 1.5, 1.0, 1.0),
    "nearly certain": CountCase(0.0, 0.11, 3.0, 0.05),
}
EVERY_COUNT = pytest.mark.parametrize("case", COUNTS.values(), ids=COUNTS)


@EVERY_COUNT
def test_a_counts_probability_is_a_difference_of_log_logistic_distribution_functions(case: CountCase) -> None:
    x = np.unique(case.continuous.ppf(np.linspace(0.001, 0.999, 200)).round())[:, None]
    log_prob = Count().log_prob(tensor(x), case.parameters(len(x))).numpy()
    np.testing.assert_allclose(log_prob, case.log_probability(x), rtol=1e-9, atol=1e-9)


@EVERY_COUNT
def test_a_counts_probability_is_a_difference_of_logistic_distribution_functions_of_logarithms(
    case: CountCase,
) -> None:
    x = np.arange(1.0, 40.0)[:, None]
    upper, lower = (
        stats.logistic.cdf((np.log(k) - case.level) / case.spread, case.location, case.scale)
        for k in (x + 1, x)
    )
    probability = np.exp(Count().log_prob(tensor(x), case.parameters(len(x))).numpy())
    np.testing.assert_allclose(probability, upper - lower, rtol=1e-9, atol=1e-14)


@EVERY_COUNT
def test_probabilities_of_counts_sum_to_one(case: CountCase) -> None:
    x = np.arange(20_000.0)[:, None]
    total = np.exp(Count().log_prob(tensor(x), case.parameters(len(x))).numpy()).sum()
    with np.errstate(divide="ignore"):  # of scipy's logarithm of nothing
        beyond = case.continuous.sf(20_000)
    assert total + beyond == pytest.approx(1, rel=1e-10)
    assert beyond < (0.05 if case is COUNTS["heavy tail"] else 1e-6)


def test_large_counts_keep_their_digits_in_float32() -> None:
    x = np.array([[1e5], [999_999.0], [1e6], [1_000_001.0], [3e6]])
    case = CountCase(0.5, 0.3, 13.0, 1.5)
    log_prob = Count().log_prob(tensor(x, np.float32), case.parameters(len(x), np.float32)).numpy()
    # The logarithm, 14, is rounded, then divided by w s.
    tolerance = 14 * FLOAT32_EPS / (0.3 * 1.5) + 4 * FLOAT32_EPS * 20
    np.testing.assert_allclose(log_prob, case.log_probability(x), rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("spread", [math.exp(-8), 1.0, 20.0])
def test_gradients_of_counts_are_finite(spread: float) -> None:
    """From 0 to as far as rows reach, at tiny and huge locations, scales and spreads."""
    x, location, raw_scale = np.meshgrid(
        [0.0, 1.0, 2.0, 1e6, 1e14], [-1e3, -1.0, 0.0, 1.0, 1e3], [-50.0, 0.0, 5.0, 50.0]
    )
    x, location, raw_scale = (
        tensor(values.reshape(1, -1), np.float32) for values in (x, location, raw_scale)
    )
    constants = [tf.fill(x.shape[1:], np.float32(value)) for value in (3.0, math.log(spread))]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, location, raw_scale, *constants])
        log_prob = Count().log_prob(x, (location, raw_scale[0], *constants))
    assert np.isfinite(log_prob.numpy()).all()
    assert (log_prob.numpy() <= 0).all()
    for gradient in tape.gradient(log_prob, [x, location, raw_scale]):
        assert np.isfinite(gradient.numpy()).all()
    # Level and spread are the table's, nothing to learn.
    assert tape.gradient(log_prob, constants) == [None, None]


def test_no_scale_of_counts_falls_below_the_minimum() -> None:
    at_minimum = CountCase(0.2, 0.1 + 1e-12, 1.0, 0.7)
    x = np.arange(10.0)[:, None]
    location, _, *constants = at_minimum.parameters(len(x))
    log_prob = Count().log_prob(tensor(x), (location, tensor([-1e6]), *constants)).numpy()
    np.testing.assert_allclose(log_prob, Count().log_prob(tensor(x), at_minimum.parameters(len(x))))


# -- counts: quantiles and samples ---------------------------------------------------------------------
@pytest.mark.parametrize("probability", [1e-4, 0.05, 0.3, 0.5, 0.9, 0.999])
@EVERY_COUNT
def test_a_quantile_is_the_smallest_count_that_reaches_the_probability(
    case: CountCase, probability: float
) -> None:
    (quantile,) = Count().quantile(probability, case.parameters()).numpy()[0]
    assert quantile == round(quantile)
    assert quantile >= 0
    assert case.continuous.cdf(quantile + 1) >= probability * (1 - 1e-9)
    assert case.continuous.cdf(quantile) <= probability * (1 + 1e-9)


def test_the_mean_of_a_count_is_its_median() -> None:
    for case in COUNTS.values():
        expected = np.ceil(case.continuous.median()) - 1
        assert Count().mean(case.parameters()).numpy().item() == max(expected, 0)


@EVERY_COUNT
def test_samples_of_counts_have_their_probabilities(case: CountCase) -> None:
    n = 50_000
    drawn = Count().sample(case.parameters(n, np.float32), 0).numpy()[:, 0].astype(np.float64)
    np.testing.assert_array_equal(drawn, drawn.round())
    assert drawn.min() >= 0
    # A count is below an edge if x + 1 before rounding is not above it.
    edges = np.unique(np.ceil(case.continuous.ppf(np.linspace(0, 1, 30)[1:-1])))
    expected = n * np.diff([0, *case.continuous.cdf(edges), 1])
    observed = np.bincount(np.searchsorted(edges, drawn, side="right"), minlength=len(expected))
    assert len(expected) > 1
    assert expected.min() > 5
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_no_sample_is_infinite() -> None:
    far = tuple(tensor(value, np.float32) for value in ([[50.0]] * 10_000, [10.0], [20.0], [3.0]))
    drawn = Count().sample(far, 0).numpy()
    assert np.isfinite(drawn).all()
    assert drawn.max() <= 1e14


# -- counts: what the networks see ---------------------------------------------------------------------
def test_level_and_spread_are_those_of_the_logarithms() -> None:
    rows = np.random.RandomState(0).negative_binomial(2, [0.5, 0.01], size=(500, 2)).astype(np.float32)
    likelihood = Count()
    assert (likelihood.n_params, likelihood.n_shared) == (1, 3)
    _, level, log_spread = likelihood.initial_shared(rows)
    logarithms = np.log(rows.astype(np.float64) + 0.5)
    np.testing.assert_allclose(level, logarithms.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_spread), logarithms.std(axis=0), rtol=1e-6)


def test_the_encoder_sees_standardized_logarithms() -> None:
    rows = np.random.RandomState(0).negative_binomial(2, [0.5, 0.01, 1e-5], size=(500, 3)).astype(np.float32)
    likelihood = Count()
    shared = [tf.constant(values) for values in likelihood.initial_shared(rows)]
    inputs = likelihood.inputs(tf.constant(rows), shared).numpy().astype(np.float64)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0), 1, rtol=1e-5)
    low, high = likelihood.input_range(rows)
    np.testing.assert_allclose(low, inputs.min(axis=0), rtol=1e-5)
    assert (high <= inputs.max(axis=0) + 1e-5).all()
    assert (high > 1).all()


def test_missing_counts_have_no_part_in_level_and_spread() -> None:
    rows = np.random.RandomState(0).poisson(3, size=(50, 1)).astype(np.float32)
    with_gaps = np.concatenate([rows, np.full((20, 1), np.nan, dtype=np.float32)])
    np.testing.assert_array_equal(Count().initial_shared(with_gaps), Count().initial_shared(rows))
    np.testing.assert_array_equal(Count().input_range(with_gaps), Count().input_range(rows))


def test_a_column_of_counts_that_is_missing_in_all_rows_has_finite_constants() -> None:
    """It may be, among those rows that a member trains on."""
    rows = np.array([[np.nan, 3.0], [np.nan, 5.0]], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared, input_range = Count().initial_shared(rows), Count().input_range(rows)
    assert np.isfinite(shared).all()
    assert np.isfinite(input_range).all()


@pytest.mark.parametrize("constant", [0.0, 1.0, 7.0, 1e6])
def test_a_constant_column_has_finite_probabilities(constant: float) -> None:
    rows = np.full((20, 1), constant, dtype=np.float32)
    likelihood = Count()
    shared = [tf.constant(values) for values in likelihood.initial_shared(rows)]
    np.testing.assert_allclose(likelihood.inputs(tf.constant(rows), shared).numpy(), 0, atol=1e-5)
    assert np.isfinite(likelihood.input_range(rows)).all()
    x = tensor([[constant], [0.0], [constant + 1], [1e9]], np.float32)
    log_prob = likelihood.log_prob(x, (tf.zeros((4, 1)), *shared)).numpy()[:, 0]
    assert np.isfinite(log_prob).all()
    assert log_prob[0] > log_prob[3]


def test_counts_need_no_scaler() -> None:
    assert scaler_for(Count(), "auto") is None


# -- counts: errors and expectations -------------------------------------------------------------------
def test_error_of_a_count_is_the_squared_distance_from_the_location_in_standardized_logarithms() -> None:
    case = CountCase(0.4, 0.5, 2.0, 0.7)
    x = np.arange(10.0)[:, None]
    error = Count().error(tensor(x), case.parameters(len(x))).numpy()
    np.testing.assert_allclose(error, ((np.log(x + 0.5) - 2.0) / 0.7 - 0.4) ** 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [(COUNTS["hundreds"], 0.01), (CountCase(0.0, 1.0, 8.0, 1.0), 0.01), (COUNTS["few"], 0.15)],
    ids=["hundreds", "thousands", "few"],
)
def test_what_a_missing_count_counts_is_nearly_the_mean_over_samples(
    case: CountCase, tolerance: float
) -> None:
    likelihood, n = Count(), 50_000
    parameters = case.parameters(n, np.float32)
    x = likelihood.sample(parameters, 0)
    for drawn, expected in (
        (likelihood.log_prob(x, parameters), likelihood.expected_log_prob(parameters)),
        (likelihood.error(x, parameters), likelihood.expected_error(parameters)),
    ):
        values = drawn.numpy().astype(np.float64)
        chance = 4 * values.std() / math.sqrt(n)
        assert values.mean() == pytest.approx(expected.numpy()[0, 0], rel=tolerance, abs=chance)


def test_a_certain_count_that_is_missing_counts_nothing() -> None:
    certain = CountCase(-30.0, 0.2, 0.0, 1.0)
    assert Count().expected_log_prob(certain.parameters()).numpy().item() == pytest.approx(0, abs=1e-6)


# -- counts: support -----------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [-1.0, 0.5, -1000.0])
def test_numbers_that_are_no_counts_are_refused_by_column_and_value(value: float) -> None:
    X = np.ones((3, 2))
    X[2, 1] = value
    with pytest.raises(
        ValueError,
        match="'count' needs whole numbers from 0 on; choose 'gaussian' for others; "
        rf"column 'b' holds {value:g} in row 2",
    ):
        Count().check_support(X, ["a", "b"])


def test_every_count_and_missing_ones_are_supported() -> None:
    Count().check_support(np.array([[0.0, 1.0, 1e14, np.nan]]))


# -- parameter objects ---------------------------------------------------------------------------------
SPECIFICATIONS = {
    "Categorical()": Categorical(),
    "Categorical(n_categories=7)": Categorical(7),
    "Categorical(unseen_probability=0.01)": Categorical(unseen_probability=0.01),
    "Categorical(unseen='raise')": Categorical(unseen="raise"),
    "Count()": Count(),
}


@pytest.mark.parametrize("written", SPECIFICATIONS)
def test_a_specification_prints_as_the_call_that_makes_it(written: str) -> None:
    assert repr(SPECIFICATIONS[written]) == written


@pytest.mark.parametrize("specification", SPECIFICATIONS.values(), ids=SPECIFICATIONS)
def test_a_clone_has_equal_parameters_and_the_same_architecture(specification: Likelihood) -> None:
    copy = clone(specification)
    assert copy.get_params() == specification.get_params()
    assert copy.architecture_key() == specification.architecture_key()


def test_different_specifications_have_different_architecture_keys() -> None:
    keys = {specification.architecture_key() for specification in SPECIFICATIONS.values()}
    assert len(keys) == len(SPECIFICATIONS)


@pytest.mark.parametrize("specification", SPECIFICATIONS.values(), ids=SPECIFICATIONS)
def test_a_model_keeps_the_parameters_of_its_likelihood(specification: Likelihood) -> None:
    n_inputs, n_outputs = len(specification.origins(3)), specification.n_outputs(3)
    encoder, _ = DenseNetwork((8,)).build(n_inputs, 2, 1)
    _, decoder = DenseNetwork((8,)).build(n_outputs, 2, 1)
    vae = VAE(encoder, decoder, specification, n_features=3, latent_dim=2)
    copy = VAE.from_config(vae.get_config())
    assert type(copy.likelihood) is type(specification)
    assert copy.likelihood.get_params() == specification.get_params()
    assert [v.shape for v in copy.variables] == [v.shape for v in vae.variables]
    assert copy(np.ones((4, 3), "float32")).shape == (4, 3)


INVALID = {
    "no category": (Categorical(0), "n_categories"),
    "half a category": (Categorical(2.5), "n_categories"),  # type: ignore[arg-type]
    "impossible unseen ones": (Categorical(unseen_probability=0.0), "unseen_probability"),
    "certain unseen ones": (Categorical(unseen_probability=1.0), "unseen_probability"),
    "unknown treatment": (Categorical(unseen="ignore"), "unseen"),
}


@pytest.mark.parametrize(("likelihood", "parameter"), INVALID.values(), ids=INVALID)
def test_invalid_parameters_are_named(likelihood: Likelihood, parameter: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"'{parameter}' parameter of Categorical"):
        likelihood._validate_params()


@pytest.mark.parametrize("specification", SPECIFICATIONS.values(), ids=SPECIFICATIONS)
def test_valid_parameters_pass(specification: Likelihood) -> None:
    specification._validate_params()
