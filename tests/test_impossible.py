"""A value that no row can have costs its row, not the batch."""

import numpy as np
import pandas as pd
import pytest
from conftest import stars
from scipy.special import logit
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import FunctionTransformer, PowerTransformer

from vae_anomaly import DenseNetwork, VAEDetector

COLUMNS = ["size", "visits", "member", "city"]
IMPOSSIBLE = {
    "an infinite number": ("size", np.inf),
    "minus infinity": ("size", -np.inf),
    "a negative count": ("visits", -1.0),
    "half a count": ("visits", 2.5),
    "a boolean of 2": ("member", 2.0),
}
OF_EACH_KIND = stars(IMPOSSIBLE, {"an infinite number", "half a count"})


@pytest.fixture(scope="module")
def frame():
    rng = np.random.RandomState(0)
    return pd.DataFrame(
        {
            "size": rng.normal(size=80),
            "visits": rng.poisson(3, 80),
            "member": rng.uniform(size=80) > 0.5,
            "city": rng.choice(["Bern", "Genf"], 80),
        }
    )


@pytest.fixture(scope="module")
def fitted(frame):
    return VAEDetector(DenseNetwork((8,)), epochs=3, random_state=0).fit(frame)


def with_value(frame, column, value, row=1):
    changed = frame[:6].astype({"visits": float, "member": float})
    changed.loc[row, column] = value
    return changed


@pytest.mark.parametrize(("column", "value"), OF_EACH_KIND)
def test_its_row_is_maximally_surprising_and_the_others_are_as_before(fitted, frame, column, value):
    changed = with_value(frame, column, value)
    expected = fitted.score_samples(frame[:6])
    expected[1] = -1e30
    np.testing.assert_array_equal(fitted.score_samples(changed), expected)
    assert fitted.predict(changed)[1] == -1
    assert fitted.confidence(changed)[1] == 1


@pytest.mark.parametrize(("column", "value"), OF_EACH_KIND)
def test_explanations_and_reports_name_the_cell(fitted, frame, column, value):
    changed = with_value(frame, column, value)
    shares = fitted.explain(changed)
    assert (shares == 1e30).sum().sum() == 1
    assert shares.loc[1, column] == 1e30
    first = fitted.report(changed, n_rows=1, n_columns=1).iloc[0]
    assert (first["row"], first["column"], float(first["value"])) == (1, column, value)


@pytest.mark.wide
def test_it_is_missing_for_what_is_expected_of_the_row(fitted, frame):
    changed = with_value(frame, "size", np.inf)
    missing = with_value(frame, "size", np.nan)
    for method in (fitted.encode, fitted.reconstruct):
        np.testing.assert_array_equal(np.asarray(method(changed)), np.asarray(method(missing)))


def test_each_such_value_counts(fitted, frame):
    changed = with_value(frame, "size", np.inf)
    changed.loc[1, "visits"] = -1
    assert fitted.score_samples(changed)[1] == -2e30


@pytest.mark.parametrize(("column", "value"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_raising_names_the_row_the_column_and_the_value(fitted, frame, column, value):
    strict = VAEDetector(DenseNetwork((8,)), epochs=3, invalid="raise", random_state=0).fit(frame)
    np.testing.assert_array_equal(strict.score_samples(frame), fitted.score_samples(frame))
    with pytest.raises(ValueError, match=rf"column '{column}' holds {value:g} in row 1"):
        strict.predict(with_value(frame, column, value))


@pytest.mark.parametrize(("column", "value"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_training_rows_with_it_are_refused_or_say_that_it_is_possible(frame, column, value):
    """Numbers with -1 or 2.5 among them are not counts, and a column with 2 is not one of booleans."""
    changed = with_value(frame, column, value)
    detector = VAEDetector(DenseNetwork((8,)), epochs=1)
    if np.isinf(value):
        with pytest.raises(
            ValueError, match=f"Input X contains infinity: column 'size' holds {value} in row 1"
        ):
            detector.fit(changed)
    else:
        assert np.abs(detector.fit(changed).score_samples(changed)).max() < 1e30


@pytest.mark.parametrize("row", range(6))
def test_rows_that_a_calibration_holds_out_are_training_rows_in_this(row):
    """Of six rows, some lie in each half."""
    X = np.random.RandomState(0).uniform(size=(60, 2))
    X[row, 1] = 1.5
    settings = {"threshold": "conformal", "calibration": 0.5, "likelihood": "bernoulli", "epochs": 1}
    with pytest.raises(ValueError, match="column 1 holds 1.5"):
        VAEDetector(DenseNetwork((8,)), random_state=0, **settings).fit(X)


def test_a_scaler_that_swaps_columns_does_not_move_the_blame():
    X = np.random.RandomState(0).normal(size=(60, 3))
    swap = ColumnTransformer([("last", "passthrough", [2]), ("others", "passthrough", [0, 1])])
    detector = VAEDetector(DenseNetwork((8,)), scaler=swap, epochs=1, random_state=0).fit(X)
    row = X[:1].copy()
    row[0, 2] = np.inf
    assert detector.score_samples(row)[0] == -1e30


@pytest.mark.parametrize(
    "scaler", [FunctionTransformer(np.log), PowerTransformer("box-cox"), FunctionTransformer(logit)]
)
def test_a_scaler_that_does_not_take_every_number_takes_rows_with_infinite_values(scaler):
    X = np.random.RandomState(0).uniform(0.1, 0.9, size=(60, 3))
    detector = VAEDetector(DenseNetwork((8,)), scaler=scaler, epochs=1, random_state=0).fit(X)
    expected = detector.score_samples(X[:3])
    expected[1] = -1e30
    X[1, 2] = np.inf
    np.testing.assert_array_equal(detector.score_samples(X[:3]), expected)


@pytest.mark.parametrize("scaler", [PCA(2), SimpleImputer()])
def test_a_scaler_that_cannot_keep_an_infinite_value_apart_gets_an_error(scaler):
    X = np.random.RandomState(0).normal(size=(60, 3))
    detector = VAEDetector(DenseNetwork((8,)), scaler=scaler, epochs=1, random_state=0).fit(X)
    row = X[:1].copy()
    row[0, 1] = np.inf
    with pytest.raises(ValueError, match="NaN"):
        detector.predict(row)
