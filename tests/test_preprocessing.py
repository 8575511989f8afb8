"""Dates and times as numbers that a detector can learn from."""

import datetime
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.explanations import explain
from vae_anomaly.persistence import SKOPS_TRUSTED
from vae_anomaly.preprocessing import DatetimeFeatures

N_ROWS = 400
WHEN = pd.date_range("2023-01-02", periods=N_ROWS, freq="25h")


def features(values, **parameters):
    return DatetimeFeatures(**parameters).fit_transform(pd.DataFrame({"when": values}))


def angle(table, period):
    sine, cosine = table[f"when_{period}_sin"], table[f"when_{period}_cos"]
    np.testing.assert_allclose(sine**2 + cosine**2, 1)
    return np.arctan2(sine, cosine).to_numpy() / (2 * np.pi) % 1


def test_times_are_angles_in_the_day_the_week_and_the_year():
    found = features(WHEN)
    assert list(found) == [
        f"when_{part}_{wave}" for part in ("day", "week", "year") for wave in ("sin", "cos")
    ]
    hours = WHEN.hour + WHEN.minute / 60
    np.testing.assert_allclose(angle(found, "day"), hours / 24, atol=1e-9)
    np.testing.assert_allclose(angle(found, "week"), (WHEN.day_of_week + hours / 24) / 7, atol=1e-9)
    np.testing.assert_allclose(
        angle(found, "year"), (WHEN.day_of_year - 1) / (365 + WHEN.is_leap_year), atol=1e-9
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.date_range("2023-01-01", periods=50, freq="D"), ["week"]),
        (pd.date_range("2023-01-01", periods=400, freq="D"), ["week", "year"]),
        (pd.date_range("2023-01-01", periods=50, freq="h"), ["day"]),
        (pd.date_range("2023-01-01", periods=3, freq="D"), []),
        (pd.period_range("2000-01", periods=50, freq="M"), ["week", "year"]),
        ([datetime.time(i % 24, 30) for i in range(50)], ["day"]),
        ([datetime.date(2023, 1 + i % 12, 1) for i in range(50)], ["week"]),
        ([f"2023-01-{1 + i % 28:02d}T{i % 24:02d}:00" for i in range(50)], ["day", "week"]),
    ],
    ids=[
        "dates",
        "dates of years",
        "two days",
        "three dates",
        "months",
        "times of the day",
        "objects",
        "texts",
    ],
)
def test_periods_that_the_rows_do_not_span_are_left_out(values, expected):
    found = features(values)
    assert list(found) == [f"when_{period}_{wave}" for period in expected for wave in ("sin", "cos")]


@pytest.mark.parametrize(
    "values",
    [pd.to_timedelta([36, 12, None], unit="h"), [datetime.timedelta(1.5), datetime.timedelta(0.5), None]],
)
def test_durations_are_days(values):
    pd.testing.assert_frame_equal(features(values), pd.DataFrame({"when_days": [1.5, 0.5, np.nan]}))


def test_elapsed_days_are_counted_from_the_first_training_row():
    fitted = DatetimeFeatures(elapsed=True).fit(pd.DataFrame({"when": WHEN}))
    later = fitted.transform(pd.DataFrame({"when": WHEN + pd.Timedelta(36, "h")}))
    np.testing.assert_allclose(later["when_days"], np.arange(N_ROWS) * 25 / 24 + 1.5)


@pytest.mark.parametrize(
    "form",
    [
        lambda when: when.tz_localize("Asia/Tokyo"),
        lambda when: when.astype(str),
        lambda when: when.to_pydatetime().astype(object),
        lambda when: when.as_unit("s"),
    ],
    ids=["of a zone", "texts", "objects", "seconds"],
)
def test_every_form_of_a_date_gives_the_same_numbers(form):
    pd.testing.assert_frame_equal(features(form(WHEN)), features(WHEN))


def test_texts_of_several_forms_are_what_the_clock_showed_at_each():
    texts = [
        "2024-03-30",
        "2024-03-31T03:30+02:00",
        " 2024-03-31 01:30:00.5+01:00",
        "2024-04-01T12:00Z",
        None,
    ]
    expected = ["2024-03-30", "2024-03-31T03:30", "2024-03-31T01:30:00.500", "2024-04-01T12:00", None]
    index = [1, 1, 2, 3, 4]
    fitted = DatetimeFeatures().fit(pd.DataFrame({"when": WHEN}))
    found = fitted.transform(pd.DataFrame({"when": texts}, index=index))
    times = pd.Series(np.array(expected, dtype="datetime64[ns]"), index)
    pd.testing.assert_frame_equal(found, fitted.transform(pd.DataFrame({"when": times})))


def of_pyarrow(when, dtype):
    pytest.importorskip("pyarrow", exc_type=ImportError)
    return when.astype(f"{dtype}[pyarrow]")


@pytest.mark.parametrize(
    "form",
    [
        lambda when: of_pyarrow(when.tz_localize("Asia/Tokyo"), "timestamp[us, tz=Asia/Tokyo]"),
        lambda when: of_pyarrow(when, "timestamp[us]"),
        lambda when: pd.Series(list(when.to_numpy()), dtype=object),
        lambda when: pd.Series([when[0].to_pydatetime(), *map(str, when[1:])], dtype=object),
    ],
    ids=["pyarrow, of a zone", "pyarrow", "numpy's", "objects and texts"],
)
def test_every_library_s_dates_give_the_same_numbers(form):
    pd.testing.assert_frame_equal(features(form(WHEN)), features(WHEN))


def test_days_durations_and_times_of_the_day_may_be_those_of_pyarrow():
    pa = pytest.importorskip("pyarrow", exc_type=ImportError)
    forms = {
        "date32[pyarrow]": [datetime.date(2023, 1, 1 + i) for i in range(30)],
        "time64[us][pyarrow]": [datetime.time(i % 24, 30, 15) for i in range(30)],
        "duration[us][pyarrow]": [datetime.timedelta(hours=i) for i in range(30)],
    }
    for dtype, values in forms.items():
        column = pd.Series(pa.array(values), dtype=dtype)
        pd.testing.assert_frame_equal(features(column), features(values))


def test_durations_may_be_numpy_s_objects():
    durations = pd.Series([np.timedelta64(36, "h"), np.timedelta64(12, "h")], dtype=object)
    assert features(durations)["when_days"].tolist() == [1.5, 0.5]


def test_a_text_that_is_written_like_a_date_and_is_none_is_refused():
    with pytest.raises(ValueError, match="'when' holds '2023-02-31', which is not a date"):
        features(["2023-02-01", "2023-02-31"])


def test_a_missing_time_gives_missing_numbers_and_rows_keep_their_index():
    X = pd.DataFrame({"size": [1.0, 2.0], "when": [pd.NaT, WHEN[0]]}, index=["a", "b"])
    found = DatetimeFeatures().fit(pd.DataFrame({"size": np.zeros(N_ROWS), "when": WHEN})).transform(X)
    assert list(found.index) == ["a", "b"]
    assert found.loc["a"].isna().sum() == 6
    assert found["size"].tolist() == [1.0, 2.0]
    assert found.loc["b"].notna().all()


def test_columns_stand_where_they_stood():
    X = pd.DataFrame({"a": range(N_ROWS), "when": WHEN, "b": "text"})
    fitted = DatetimeFeatures().fit(X)
    assert list(fitted.transform(X))[:2] == ["a", "when_day_sin"]
    assert list(fitted.transform(X))[-1] == "b"
    assert list(fitted.get_feature_names_out()) == list(fitted.transform(X))
    assert fitted.feature_origins_ == [0, *[1] * 6, 2]


def test_texts_that_are_no_iso_dates_are_refused():
    with pytest.raises(
        ValueError, match="'when' holds '1.12.2023', which is not a date as ISO 8601.*to_datetime"
    ):
        features(["1.12.2023", "2.12.2023"])


@pytest.mark.parametrize(
    ("value", "message"),
    [(5, r"received 5 \(no time\)"), (pd.Timedelta(1, "h"), r"received Timedelta.*\(duration\)")],
)
def test_other_values_where_dates_were_are_refused(value, message):
    fitted = DatetimeFeatures().fit(pd.DataFrame({"when": WHEN}))
    with pytest.raises(ValueError, match=f"column 'when' held values of the kind 'date' in fit; {message}"):
        fitted.transform(pd.DataFrame({"when": [value]}))


@pytest.mark.parametrize(
    "values", [WHEN, WHEN - WHEN[0], [datetime.time(1)] * N_ROWS], ids=["dates", "durations", "times"]
)
def test_a_column_without_any_time_gives_missing_numbers(values):
    fitted = DatetimeFeatures(elapsed=True).fit(pd.DataFrame({"when": values}))
    found = fitted.transform(pd.DataFrame({"when": [None, None]}))
    assert list(found) == list(fitted.get_feature_names_out())
    assert found.isna().all(axis=None)


@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        pytest.param(estimator, check, id=getattr(check, "func", check).__name__)
        for estimator, check in estimator_checks_generator(DatetimeFeatures(), mark=None)
        if getattr(check, "func", check).__name__ != "check_array_api_input"  # needs SCIPY_ARRAY_API
    ],
)
def test_passes_the_estimator_check(estimator, check):
    check(estimator)


def test_copies_and_clones_are_as_the_original():
    X = pd.DataFrame({"when": WHEN})
    fitted = DatetimeFeatures(elapsed=True).fit(X)
    for copied in (pickle.loads(pickle.dumps(fitted)), clone(fitted).fit(X)):
        pd.testing.assert_frame_equal(copied.transform(X), fitted.transform(X))


def test_skops_stores_it(tmp_path):
    skops_io = pytest.importorskip("skops.io")
    X = pd.DataFrame({"when": WHEN})
    fitted = DatetimeFeatures(elapsed=True).fit(X)
    skops_io.dump(fitted, tmp_path / "features.skops")
    again = skops_io.load(tmp_path / "features.skops", trusted=SKOPS_TRUSTED)
    pd.testing.assert_frame_equal(again.transform(X), fitted.transform(X))


# -- before a detector ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def visits():
    """Visits that come by day on weekdays."""
    rng = np.random.RandomState(0)
    days = pd.to_datetime("2023-01-02") + pd.to_timedelta(
        7 * rng.randint(0, 30, 600) + rng.randint(0, 5, 600), "D"
    )
    when = days + pd.to_timedelta(rng.normal(12, 1.5, 600), "h")
    return pd.DataFrame({"when": when, "size": rng.normal(size=600)})


@pytest.fixture(scope="module")
def fitted(visits):
    detector = VAEDetector(DenseNetwork((32,)), epochs=60, random_state=0)
    return make_pipeline(DatetimeFeatures(), detector).fit(visits)


def test_a_row_at_an_unusual_time_is_anomalous_and_a_later_one_is_not(visits, fitted):
    at_night = visits.assign(when=visits["when"].dt.normalize() + pd.Timedelta(2, "h"))
    next_year = visits.assign(when=visits["when"] + pd.Timedelta(52 * 7, "D"))
    assert (fitted.predict(at_night[:100]) == -1).mean() > 0.9
    assert (fitted.predict(next_year) == -1).mean() < 0.15


def test_explanations_are_of_the_column_of_times(visits, fitted):
    at_night = visits[:20].assign(when=visits["when"].dt.normalize() + pd.Timedelta(2, "h"))
    shares = explain(fitted, at_night)
    assert list(shares) == ["when", "size"]
    assert (shares["when"] > shares["size"]).all()


def test_it_is_a_step_of_a_column_transformer_too(visits):
    made = make_column_transformer((DatetimeFeatures(), ["when"]), remainder="passthrough")
    expected = DatetimeFeatures().fit_transform(visits)
    np.testing.assert_array_equal(made.fit_transform(visits), expected)


def test_tables_of_polars_are_taken():
    polars = pytest.importorskip("polars")
    found = DatetimeFeatures().fit_transform(polars.DataFrame({"when": WHEN.to_numpy()}))
    np.testing.assert_array_equal(found, features(WHEN))
