"""`Mixed` against its parts, and the scaler of some columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.preprocessing import MinMaxScaler, Normalizer, RobustScaler, StandardScaler

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.core.columns import take_columns
from vae_anomaly.data.scaling import ScalerOfColumns, fit_scaler, scaler_for, unscale
from vae_anomaly.likelihoods import (
    Bernoulli,
    Categorical,
    Count,
    Gaussian,
    Laplace,
    Mixed,
    StudentT,
    from_config,
)
from vae_anomaly.model.vae import VAE

N_ROWS = 6
TABLES = {
    "in order": Mixed([(Gaussian(), [0, 1]), (Categorical(3), [2]), (Bernoulli(), [3]), (Count(), [4])]),
    "out of order": Mixed([(Count(), [3]), (Categorical(4), [4, 0]), (Gaussian(scale=0.5), [2, 1])]),
    "interleaved": Mixed([(Bernoulli(), [5, 1]), (Laplace("per_row"), [2, 0]), (Count(), [4, 3])]),
    "equal likelihoods apart": Mixed([(StudentT(), [2]), (Categorical(2), [1]), (StudentT(), [0])]),
    "without shared parameters": Mixed(
        [(Categorical(5), [1]), (Gaussian(scale=1.0), [2]), (Bernoulli(), [0])]
    ),
    "one part": Mixed([(Categorical(3), [1, 0])]),
}
EVERY_TABLE = pytest.mark.parametrize("mixed", TABLES.values(), ids=TABLES)


def width(mixed: Mixed) -> int:
    return sum(len(columns) for _, columns in mixed.parts)


def rows_of(mixed: Mixed, n_rows: int = N_ROWS, seed: int = 0) -> Any:
    """Rows in the support of each part."""
    rng = np.random.RandomState(seed)
    rows = np.empty((n_rows, width(mixed)), dtype=np.float32)
    for likelihood, columns in mixed.parts:
        shape = n_rows, len(columns)
        if isinstance(likelihood, Categorical):
            rows[:, columns] = rng.randint(likelihood.n_categories + 1, size=shape)
        elif isinstance(likelihood, Bernoulli):
            rows[:, columns] = rng.randint(2, size=shape)
        elif isinstance(likelihood, Count):
            rows[:, columns] = rng.poisson(5, size=shape)
        else:
            rows[:, columns] = rng.normal(size=shape)
    return rows


def outputs_and_shared(mixed: Mixed, n_draws: int = 2) -> Any:
    rng = np.random.RandomState(1)
    outputs = rng.normal(size=(n_draws, N_ROWS, mixed.n_outputs(width(mixed)))).astype(np.float32)
    shared = rng.normal(size=(mixed.n_shared, width(mixed))).astype(np.float32)
    return tf.constant(outputs), [tf.constant(values) for values in shared]


def parts_of(mixed: Mixed, outputs: Any, shared: Any) -> Any:
    """Each part with its columns and its own parameters, cut out of the table's by hand."""
    start = 0
    for likelihood, columns in mixed.parts:
        size = likelihood.n_outputs(len(columns))
        own_shared = [tf.constant(values.numpy()[columns]) for values in shared[: likelihood.n_shared]]
        yield likelihood, columns, likelihood.parameters(outputs[..., start : start + size], own_shared)
        start += size


# -- the distribution ----------------------------------------------------------------------------------
FUNCTIONS = {
    "log_prob": lambda likelihood, x, parameters: likelihood.log_prob(x, parameters),
    "mean": lambda likelihood, x, parameters: likelihood.mean(parameters),
    "error": lambda likelihood, x, parameters: likelihood.error(x, parameters),
    "expected_log_prob": lambda likelihood, x, parameters: likelihood.expected_log_prob(parameters),
    "expected_error": lambda likelihood, x, parameters: likelihood.expected_error(parameters),
    "quantile": lambda likelihood, x, parameters: likelihood.quantile(0.3, parameters),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@EVERY_TABLE
def test_every_column_is_its_parts(mixed: Mixed, name: str) -> None:
    function, x = FUNCTIONS[name], rows_of(mixed)
    outputs, shared = outputs_and_shared(mixed)
    values = function(mixed, tf.constant(x), mixed.parameters(outputs, shared)).numpy()
    assert values.shape == (2, N_ROWS, width(mixed))
    for likelihood, columns, parameters in parts_of(mixed, outputs, shared):
        expected = function(likelihood, tf.constant(x[:, columns]), parameters).numpy()
        np.testing.assert_array_equal(
            values[..., columns], np.broadcast_to(expected, values[..., columns].shape)
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ignored_columns_count_nothing_and_nothing_is_expected_of_them(name: str) -> None:
    with_ignored = Mixed([(Gaussian(), [3]), (Categorical(3), [1])], ignored=[0, 2])
    without = Mixed([(Gaussian(), [1]), (Categorical(3), [0])])
    with_ignored.check_columns(4)
    function, x = FUNCTIONS[name], rows_of(without)
    outputs, shared = outputs_and_shared(without)
    expected = function(without, tf.constant(x), without.parameters(outputs, shared)).numpy()
    wide_x = np.insert(x, [0, 1], 7.0, axis=1)
    wide_shared = [tf.constant(np.insert(values.numpy(), [0, 1], 1.0)) for values in shared]
    found = function(with_ignored, tf.constant(wide_x), with_ignored.parameters(outputs, wide_shared)).numpy()
    np.testing.assert_array_equal(found[..., [1, 3]], np.broadcast_to(expected, found[..., [1, 3]].shape))
    assert np.array_equal(
        np.unique(found[..., [0, 2]]), [np.nan if name in ("mean", "quantile") else 0], True
    )


def test_ignored_columns_are_no_input_and_no_output() -> None:
    mixed = Mixed([(Gaussian(), [3]), (Categorical(3), [1])], ignored=[0, 2])
    assert (mixed.n_inputs(4), mixed.n_outputs(4)) == (4, 4)
    assert mixed.origins(4) == [3, 1, 1, 1]
    assert not mixed.outside_support(np.full((1, 4), 0.5))[:, [0, 2]].any()
    assert np.isnan(mixed.values(np.ones((1, 4)))).tolist() == [[True, False, True, False]]
    assert from_config(mixed.config()).config() == mixed.config()
    with pytest.raises(ValueError, match=r"received columns \[0, 1, 2, 3\]"):
        mixed.check_columns(5)


@EVERY_TABLE
def test_every_sample_lies_in_its_columns_support(mixed: Mixed) -> None:
    drawn = mixed.sample(mixed.parameters(*outputs_and_shared(mixed)), seed=0).numpy()
    assert drawn.shape == (2, N_ROWS, width(mixed))
    mixed.check_support(drawn.reshape(-1, width(mixed)))


@EVERY_TABLE
def test_a_sample_is_the_mean_where_the_decoder_is_certain(mixed: Mixed) -> None:
    outputs, _ = outputs_and_shared(mixed)
    shared = [tf.zeros(width(mixed))] * mixed.n_shared
    certain = []
    for (likelihood, columns), piece in zip(mixed.parts, _pieces(mixed, outputs), strict=True):
        if isinstance(likelihood, (Categorical, Bernoulli)):
            piece = 1e6 * piece
        elif isinstance(likelihood, Count):
            piece = piece - 1e3
        certain.append(piece)
        assert likelihood.n_outputs(len(columns)) == piece.shape[-1]
    parameters = mixed.parameters(tf.concat(certain, axis=-1), shared)
    drawn, mean = mixed.sample(parameters, seed=0).numpy(), mixed.mean(parameters).numpy()
    for likelihood, columns in mixed.parts:
        if isinstance(likelihood, (Categorical, Bernoulli, Count)):
            np.testing.assert_array_equal(drawn[..., columns], mean[..., columns])
        else:
            assert (drawn[..., columns] != mean[..., columns]).all()


def _pieces(mixed: Mixed, outputs: Any) -> Any:
    start = 0
    for likelihood, columns in mixed.parts:
        size = likelihood.n_outputs(len(columns))
        yield outputs[..., start : start + size]
        start += size


def test_samples_of_a_column_follow_its_parts_distribution() -> None:
    n, mixed = 20_000, Mixed([(Gaussian(scale=2.0), [2]), (Categorical(3), [0]), (Laplace(scale=0.5), [1])])
    outputs = np.broadcast_to(np.float32([5.0, 0.0, 1.0, -1.0, -3.0]), (n, 5))
    drawn = mixed.sample(mixed.parameters(tf.constant(outputs)), seed=0).numpy().astype(np.float64)
    assert stats.kstest(drawn[:, 2], stats.norm(5, 2).cdf).pvalue > 1e-3
    assert stats.kstest(drawn[:, 1], stats.laplace(-3, 0.5).cdf).pvalue > 1e-3
    shares = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    assert stats.chisquare(np.bincount(drawn[:, 0].astype(int)), n * shares).pvalue > 1e-3


def test_equal_likelihoods_of_different_columns_draw_different_noise() -> None:
    mixed = Mixed([(Gaussian(scale=1.0), [0]), (Gaussian(scale=1.0), [1])])
    drawn = mixed.sample(mixed.parameters(tf.zeros((1000, 2))), seed=0).numpy()
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 4 / np.sqrt(1000)


@EVERY_TABLE
def test_samples_are_reproducible_by_seed(mixed: Mixed) -> None:
    parameters = mixed.parameters(*outputs_and_shared(mixed))
    drawn, again, other = (mixed.sample(parameters, seed).numpy() for seed in (3, 3, 4))
    np.testing.assert_array_equal(drawn, again)
    assert (drawn != other).any()


# -- what the networks see -----------------------------------------------------------------------------
@EVERY_TABLE
def test_the_encoder_sees_the_inputs_of_the_parts(mixed: Mixed) -> None:
    x, (outputs, shared) = rows_of(mixed), outputs_and_shared(mixed)
    inputs = mixed.inputs(tf.constant(x), shared).numpy()
    origins = mixed.origins(width(mixed))
    expected, columns_of_inputs = [], []
    for likelihood, columns, _ in parts_of(mixed, outputs, shared):
        own_shared = [tf.constant(values.numpy()[columns]) for values in shared[: likelihood.n_shared]]
        expected.append(likelihood.inputs(tf.constant(x[:, columns]), own_shared).numpy())
        columns_of_inputs += [columns[position] for position in likelihood.origins(len(columns))]
    np.testing.assert_array_equal(inputs, np.concatenate(expected, axis=-1))
    assert origins == columns_of_inputs
    assert sorted(set(origins)) == list(range(width(mixed)))


@EVERY_TABLE
def test_expected_inputs_and_expectations_lie_where_the_inputs_do(mixed: Mixed) -> None:
    outputs, shared = outputs_and_shared(mixed)
    parameters = mixed.parameters(outputs, shared)
    for name in ("expected_inputs", "expectations"):
        expected = [
            getattr(likelihood, name)(own).numpy() for likelihood, _, own in parts_of(mixed, outputs, shared)
        ]
        np.testing.assert_array_equal(getattr(mixed, name)(parameters), np.concatenate(expected, axis=-1))


@EVERY_TABLE
def test_values_are_in_the_order_of_the_columns(mixed: Mixed) -> None:
    outputs, shared = outputs_and_shared(mixed)
    values = mixed.values(mixed.expectations(mixed.parameters(outputs, shared)).numpy())
    for likelihood, columns, parameters in parts_of(mixed, outputs, shared):
        own = likelihood.values(likelihood.expectations(parameters).numpy())
        np.testing.assert_array_equal(values[..., columns], own)


@EVERY_TABLE
def test_constants_of_a_column_are_its_parts(mixed: Mixed) -> None:
    rows = rows_of(mixed, 50)
    shared = mixed.initial_shared(rows)
    input_range = mixed.input_range(rows)
    assert shared.shape == (mixed.n_shared, width(mixed))
    start = 0
    for likelihood, columns in mixed.parts:
        own = likelihood.initial_shared(rows[:, columns])
        np.testing.assert_array_equal(shared[: likelihood.n_shared, columns], own)
        assert not shared[likelihood.n_shared :, columns].any()
        stop = start + len(likelihood.origins(len(columns)))
        np.testing.assert_array_equal(input_range[:, start:stop], likelihood.input_range(rows[:, columns]))
        start = stop
    assert start == input_range.shape[1]


@EVERY_TABLE
def test_every_shared_parameter_reaches_its_own_column_only(mixed: Mixed) -> None:
    outputs, shared = outputs_and_shared(mixed)
    x = tf.constant(np.minimum(rows_of(mixed), 1))
    with tf.GradientTape() as tape:
        tape.watch(shared)
        log_prob = mixed.log_prob(x, mixed.parameters(outputs, shared))
    gradients = tape.gradient(log_prob, shared, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    learned = np.array([gradient.numpy() != 0 for gradient in gradients]).reshape(-1, width(mixed))
    for likelihood, columns in mixed.parts:
        # Of a count's three, level and spread stay as they are.
        n_learned = min(likelihood.n_shared, 1)
        assert learned[:n_learned, columns].all()
        assert not learned[n_learned:, columns].any()


# -- in a model ----------------------------------------------------------------------------------------
def make(mixed: Mixed) -> VAE:
    n_inputs, n_outputs = len(mixed.origins(width(mixed))), mixed.n_outputs(width(mixed))
    encoder, _ = DenseNetwork((8,)).build(n_inputs, 2, 1)
    _, decoder = DenseNetwork((8,)).build(n_outputs, 2, 1)
    return VAE(encoder, decoder, mixed, n_features=width(mixed), latent_dim=2)


def assert_equal_parts(first: Any, second: Mixed) -> None:
    assert type(first) is Mixed
    for (one, its_columns), (other, columns) in zip(first.parts, second.parts, strict=True):
        assert type(one) is type(other)
        assert one.get_params() == other.get_params()
        assert list(its_columns) == list(columns)


@EVERY_TABLE
def test_a_config_keeps_the_parts(mixed: Mixed) -> None:
    assert_equal_parts(from_config(mixed.config()), mixed)
    vae = make(mixed)
    copy = VAE.from_config(vae.get_config())
    assert_equal_parts(copy.likelihood, mixed)
    assert [v.shape for v in copy.variables] == [v.shape for v in vae.variables]


@pytest.mark.parametrize("name", ["out of order", "interleaved"])
def test_a_saved_model_computes_the_same(name: str, tmp_path: Path) -> None:
    mixed = TABLES[name]
    vae, x = make(mixed), rows_of(mixed)
    if mixed.n_shared:
        vae.shared.assign(0.1 * np.random.RandomState(0).normal(size=vae.shared.shape))
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert_equal_parts(loaded.likelihood, mixed)
    z, _ = vae.encode(x)
    np.testing.assert_array_equal(loaded.encode(x)[0], z)
    log_prob = mixed.log_prob(tf.constant(x), vae.decode(z))
    np.testing.assert_array_equal(loaded.likelihood.log_prob(tf.constant(x), loaded.decode(z)), log_prob)
    np.testing.assert_array_equal(loaded.sample(3, seed=0), vae.sample(3, seed=0))


# -- support and names ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, 0.5, "'count' needs whole numbers.*column 'visits' holds 0.5 in row 2"),
        (2, 7.0, "'categorical' needs codes from 0 to 2; column 'city' holds 7 in row 2"),
        (3, -1.0, r"'bernoulli' needs values in \[0, 1\].*column 'member' holds -1 in row 2"),
    ],
)
def test_values_outside_a_parts_support_are_refused_by_the_tables_column(
    column: int, value: float, message: str
) -> None:
    mixed = Mixed([(Bernoulli(), [3]), (Gaussian(), [0]), (Categorical(3), [2]), (Count(), [1])])
    X = np.ones((4, 4))
    mixed.check_support(X)
    X[2, column] = value
    with pytest.raises(ValueError, match=message):
        mixed.check_support(X, ["amount", "visits", "city", "member"])
    with pytest.raises(ValueError, match=f"column {column} holds {value:g} in row 2"):
        mixed.check_support(X)


UNCOVERED = {
    "a column left out": Mixed([(Gaussian(), [0])]),
    "a column twice": Mixed([(Gaussian(), [0, 1]), (Laplace(), [1])]),
    "a column that X lacks": Mixed([(Gaussian(), [0]), (Laplace(), [1, 5])]),
    "no column at all": Mixed(),
}


@pytest.mark.parametrize("mixed", UNCOVERED.values(), ids=UNCOVERED)
def test_every_column_belongs_to_one_part_or_is_named(mixed: Mixed) -> None:
    with pytest.raises(ValueError, match="column"):
        VAEDetector(likelihood=mixed, epochs=1).fit(np.random.RandomState(0).normal(size=(20, 2)))


def test_an_invalid_part_is_named() -> None:
    mixed = Mixed([(Gaussian(scale=-1.0), [0]), (Laplace(), [1])])
    with pytest.raises(ValueError, match="'scale' parameter of Gaussian"):
        VAEDetector(likelihood=mixed, epochs=1).fit(np.ones((20, 2)))


def test_a_clone_and_a_copy_have_the_same_architecture() -> None:
    for mixed in TABLES.values():
        assert clone(mixed).architecture_key() == mixed.architecture_key()
        assert mixed.snapshot().architecture_key() == mixed.architecture_key()


def test_different_tables_have_different_architectures() -> None:
    mixed = [
        *TABLES.values(),
        Mixed([(Gaussian(), [0]), (Laplace(), [1])]),
        Mixed([(Gaussian(), [1]), (Laplace(), [0])]),
        Mixed([(Laplace(), [1]), (Gaussian(), [0])]),
        Mixed([(Gaussian(scale=2.0), [0]), (Laplace(), [1])]),
    ]
    assert len({likelihood.architecture_key() for likelihood in mixed}) == len(mixed)


def test_a_snapshot_is_out_of_reach_of_its_parts() -> None:
    gaussian = Gaussian()
    snapshot = Mixed([(gaussian, [0])]).snapshot()
    gaussian.set_params(scale=7.0)
    assert snapshot.parts[0][0].scale == "per_feature"


# -- scaling -------------------------------------------------------------------------------------------
def test_columns_of_real_values_are_standardized_and_the_others_left_alone() -> None:
    mixed = Mixed([(Count(), [0]), (Gaussian(), [3]), (Categorical(2), [1]), (Laplace(), [2])])
    scaler = scaler_for(mixed, "auto")
    assert isinstance(scaler.scaler, StandardScaler)
    assert list(scaler.columns) == [2, 3]
    assert scaler_for(TABLES["one part"], "auto") is None


def test_a_scaler_of_ones_own_is_for_the_columns_of_real_values() -> None:
    mixed = Mixed([(Count(), [0]), (Gaussian(), [1])])
    scaler = scaler_for(mixed, RobustScaler())
    assert isinstance(scaler.scaler, RobustScaler)
    assert list(scaler.columns) == [1]
    assert scaler_for(mixed, None) is None
    assert scaler_for(TABLES["one part"], RobustScaler()) is None
    own = RobustScaler()
    assert scaler_for(Gaussian(), own) is own


def test_the_remedy_for_values_outside_the_unit_interval_works_in_a_table() -> None:
    """The error says: scale the data to [0, 1], for example by MinMaxScaler(clip=True)."""
    X = np.random.RandomState(0).uniform(0, 255, size=(20, 2))
    detector = VAEDetector(likelihood={0: "continuous_bernoulli", 1: "gaussian"}, epochs=1)
    with pytest.raises(ValueError, match="MinMaxScaler"):
        detector.fit(X)
    X = MinMaxScaler(clip=True).fit_transform(X)
    assert np.isfinite(detector.fit(X).score_samples(X)).all()


@pytest.fixture
def X() -> Any:
    return np.random.RandomState(0).normal(5, 3, size=(30, 4))


@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler(), RobustScaler()])
def test_chosen_columns_are_scaled_and_the_others_stay(X: Any, scaler: Any) -> None:
    before = X.copy()
    of_columns = ScalerOfColumns(scaler, [3, 1]).fit(X)
    result = of_columns.transform(X)
    np.testing.assert_allclose(result[:, [3, 1]], clone(scaler).fit_transform(X[:, [3, 1]]), rtol=1e-12)
    np.testing.assert_array_equal(result[:, [0, 2]], X[:, [0, 2]])
    np.testing.assert_allclose(of_columns.inverse_transform(result), X, rtol=1e-12)
    np.testing.assert_array_equal(X, before)
    assert not hasattr(scaler, "n_features_in_")


def test_rows_are_scaled_alike_alone_and_together(X: Any) -> None:
    scaler = fit_scaler(ScalerOfColumns(StandardScaler(), [0, 2]), X)
    whole = scaler.transform(X)
    for row in range(5):
        np.testing.assert_array_equal(scaler.transform(X[row : row + 1])[0], whole[row])


def test_missing_values_stay_missing(X: Any) -> None:
    X[3, 1] = X[4, 0] = np.nan
    result = ScalerOfColumns(StandardScaler(), [1, 2]).fit(X).transform(X)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(X))
    np.testing.assert_allclose(np.nanmean(result[:, 1]), 0, atol=1e-12)


def test_columns_keep_their_names(X: Any) -> None:
    names = np.array(list("abcd"), dtype=object)
    scaler = ScalerOfColumns(StandardScaler(), [1]).fit(X)
    np.testing.assert_array_equal(scaler.get_feature_names_out(names), names)
    assert scaler.n_features_in_ == 4


def test_a_scaler_of_columns_is_cloned_with_its_scaler(X: Any) -> None:
    scaler = ScalerOfColumns(MinMaxScaler((0, 2)), [1]).fit(X)
    copy = clone(scaler)
    assert copy.scaler is not scaler.scaler
    assert copy.scaler.feature_range == (0, 2)
    assert not hasattr(copy, "scaler_")


def test_a_scaler_that_makes_other_columns_is_refused(X: Any) -> None:
    scaler = ScalerOfColumns(PCA(1), [0, 1]).fit(X)
    with pytest.raises(ValueError, match="must keep its 2 numeric columns; PCA makes 1 of them"):
        scaler.transform(X)


def test_a_scaler_without_a_way_back_is_named(X: Any) -> None:
    scaler = ScalerOfColumns(Normalizer(), [0, 1]).fit(X)
    with pytest.raises(TypeError, match="inverse_transform; Normalizer has none"):
        unscale(scaler.transform(X), scaler)


@pytest.mark.parametrize("columns", [[2, 0, 1], [3, 1], [0]])
def test_columns_and_their_gradient_are_those_of_keras(columns: list[int]) -> None:
    x = tf.constant(np.random.RandomState(0).normal(size=(2, 3, 4)), tf.float32)
    weights = np.random.RandomState(1).normal(size=(2, 3, len(columns))).astype("f4")
    found = []
    for take in (take_columns, lambda x, columns: keras.ops.take(x, np.array(columns), axis=-1)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            taken = take(x, columns)
            total = tf.reduce_sum(weights * taken)
        found.append((taken, tape.gradient(total, x)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")  # of scikit-learn
def test_a_column_without_a_value_is_no_constant() -> None:
    X = np.c_[np.full(5, 6.0), np.full(5, np.nan)]
    fitted = fit_scaler(StandardScaler(), X)
    assert (fitted.mean_[0], fitted.scale_[0]) == (6.0, 2.0)
    assert not np.isinf([*fitted.mean_, *fitted.scale_]).any()
