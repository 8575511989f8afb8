"""What a column is taken for where nobody has said it, and what a detector does with it."""

import datetime
import decimal
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import RobustScaler

from vae_anomaly import DenseNetwork, VAEDetector, load
from vae_anomaly.data.recognition import kind_of, kinds_of, numbers_of_texts, recognize, serial_numbers

N_ROWS = 120
RNG = np.random.RandomState(0)
VALUES = RNG.lognormal(5, 1, N_ROWS)

IDENTIFIERS = {
    "texts that all differ": [f"C{i:05d}" for i in RNG.permutation(N_ROWS)],
    "universally unique ones": [f"{RNG.randint(2**31):08x}-{i:04x}" for i in range(N_ROWS)],
    "a category of each row": pd.Categorical([f"row {i}" for i in range(N_ROWS)]),
    "mostly texts of one row": [f"comment {max(i, 30)}" for i in range(N_ROWS)],
    "running numbers": np.arange(1000, 1000 + N_ROWS),
    "running numbers in another order": RNG.permutation(N_ROWS),
    "running numbers with gaps": pd.array([*range(N_ROWS - 1), None], dtype="Int64"),
    "running numbers as text": [str(100_000 + i) for i in range(N_ROWS)],
    "with leading zeros": [f"{i:08d}" for i in RNG.permutation(10**6)[:N_ROWS]],
}
OTHERS = {
    "measurements": (VALUES, "gaussian"),
    "whole measurements": ((100 * VALUES).astype(int), "gaussian"),
    "counts": (RNG.poisson(3, N_ROWS), "count"),
    "ages": (RNG.normal(40, 10, N_ROWS).astype(int), "gaussian"),
    "booleans": (RNG.uniform(size=N_ROWS) < 0.5, "bernoulli"),
    "texts": (RNG.choice(["Bern", "Genf"], N_ROWS), "categorical"),
    "many texts, each often": ([f"shop {i % 40}" for i in range(N_ROWS)], "categorical"),
    "hours as text": ([str(i % 24) for i in range(240)], "categorical"),
    "few numbers as text": ([str(i % 5) for i in range(N_ROWS)], "categorical"),
    "postal codes": ([str(3000 + i % 50) for i in range(N_ROWS)], "categorical"),
    "codes with leading zeros": ([f"{i % 50:03d}" for i in range(N_ROWS)], "categorical"),
    "a dtype of categories": (pd.Categorical([str(i / 2) for i in range(60)] * 2), "categorical"),
}
NUMBERS = {
    "text": [f"{value:.2f}" for value in VALUES],
    "dollars": [f"${value:,.2f}" for value in VALUES],
    "euros": [f" {value:.2f} €" for value in VALUES],
    "percent": [f"{value:.2f}%" for value in VALUES],
    "exponents": [f"{value:.6e}" for value in VALUES],
    "signs": [f"-{value:.2f}" for value in VALUES],
    "dollars below zero": [f"-${value:.2f}" for value in VALUES],
    "decimals": [decimal.Decimal(f"{value:.2f}") for value in VALUES],
    "decimals of databases and a float": [0.5, *(decimal.Decimal(f"{value:.2f}") for value in VALUES[1:])],
    "with gaps": [None, *(f"{value:.2f}" for value in VALUES[1:])],
}
TIMES = {
    "datetimes": pd.date_range("2024-01-01", periods=N_ROWS, freq="7h"),
    "of a zone": pd.date_range("2024-01-01", periods=N_ROWS, freq="7h", tz="Europe/Zurich"),
    "durations": pd.to_timedelta(np.arange(N_ROWS), unit="h"),
    "periods": pd.period_range("2000-01", periods=N_ROWS, freq="M"),
    "dates": [datetime.date(2024, 1, 1 + i % 28) for i in range(N_ROWS)],
    "times": [datetime.time(i % 24) for i in range(N_ROWS)],
    "objects of durations": pd.Series([datetime.timedelta(hours=i) for i in range(N_ROWS)], dtype=object),
    "texts": [f"2024-01-{1 + i % 28:02d}" for i in range(N_ROWS)],
    "texts with times": [f"2024-01-{1 + i % 28:02d}T12:30:00" for i in range(N_ROWS)],
    "texts of another order": [f"{1 + i % 28}.01.2024" for i in range(N_ROWS)],
}


def column(values):
    return values if isinstance(values, pd.Series) else pd.Series(values)


def fit(X, **settings):
    quick = {"network": DenseNetwork((8,)), "members": 1, "epochs": 2, "random_state": 0}
    return VAEDetector(**{**quick, **settings}).fit(X)


@pytest.fixture(scope="module")
def table():
    rng = np.random.RandomState(1)
    return pd.DataFrame({"size": rng.normal(size=N_ROWS), "city": rng.choice(["Bern", "Genf"], N_ROWS)})


@pytest.mark.parametrize("values", IDENTIFIERS.values(), ids=IDENTIFIERS)
def test_identifiers_are_left_out(values):
    assert recognize(column(values), "x").likelihood == "ignored"


@pytest.mark.parametrize("name", ["id", "ID", "customer_id", "customerId", "order ID", "user.uuid"])
def test_whole_numbers_that_all_differ_are_identifiers_by_their_name(name):
    values = pd.Series(RNG.permutation(10**6)[:N_ROWS])
    assert serial_numbers(values, name)
    assert not serial_numbers(values, "paid")
    assert not serial_numbers(values % 50, name)


@pytest.mark.parametrize(("values", "likelihood"), OTHERS.values(), ids=OTHERS)
def test_other_columns_have_a_likelihood_and_no_warning(values, likelihood):
    assert recognize(column(values), "x") == (likelihood, None)


def test_a_few_rows_that_all_differ_say_nothing():
    assert recognize(pd.Series(list("abcdefgh")), "x").likelihood == "categorical"
    assert recognize(pd.Series(range(8)), "id").likelihood == "count"


@pytest.mark.parametrize("values", NUMBERS.values(), ids=NUMBERS)
def test_numbers_as_text_or_objects_are_recognized(values):
    assert recognize(column(values), "x").likelihood == "gaussian"
    np.testing.assert_allclose(
        np.abs(numbers_of_texts(column(values)))[1:], VALUES[1:], atol=0.006, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12.5", 12.5),
        ("-3e5", -3e5),
        ("$1,234.50", 1234.5),
        ("-$5", -5.0),
        ("$ -5", -5.0),
        ("€7", 7.0),
        ("7 €", 7.0),
        ("7 %", 7.0),
        ("+.5", 0.5),
        (" 5. ", 5.0),
        ("1,2,3", None),
        ("1,23", None),
        ("5 kg", None),
        ("", None),
        ("-", None),
        ("e5", None),
        ("nan", None),
        ("1_000", None),
    ],
)
def test_texts_are_read_as_the_numbers_that_they_write(text, number):
    found = numbers_of_texts(pd.Series([text, None]))
    assert found is None if number is None else found[0] == number and np.isnan(found[1])


def test_a_model_of_numbers_as_text_is_the_one_of_the_numbers(table):
    with pytest.warns(UserWarning, match="column 'price': the numbers are texts.*'price': 'gaussian'"):
        of_texts = fit(table.assign(price=NUMBERS["dollars"]))
    of_numbers = fit(table.assign(price=VALUES.round(2)))
    X = table.assign(price=VALUES.round(2))
    np.testing.assert_array_equal(
        of_texts.score_samples(table.assign(price=NUMBERS["dollars"])), of_numbers.score_samples(X)
    )
    np.testing.assert_array_equal(of_texts.score_samples(X), of_numbers.score_samples(X))
    with pytest.raises(ValueError, match="column 'price' holds 'much' in row 0"):
        of_texts.score_samples(table.assign(price="much"))


def test_a_choice_is_followed_without_a_warning(table):
    X = table.assign(price=NUMBERS["text"], customer=IDENTIFIERS["texts that all differ"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = fit(X, likelihood={"price": "gaussian", "customer": "ignored"})
        modeled = fit(X, likelihood={"price": "gaussian", "customer": "categorical"})
    assert detector.columns_ignored_ == ["customer"]
    assert modeled.columns_ignored_ == []


@pytest.mark.parametrize("values", TIMES.values(), ids=TIMES)
def test_times_are_refused_with_the_ways_out(values, table):
    with pytest.raises(TypeError, match="'when' holds dates or times.*DatetimeFeatures.*'when': 'ignored'"):
        fit(table.assign(when=values))
    assert fit(table.assign(when=values), likelihood={"when": "ignored"}).columns_ignored_ == ["when"]


# -- columns that are left out --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def with_identifiers(table):
    return table.assign(customer=IDENTIFIERS["texts that all differ"], row=np.arange(N_ROWS))


@pytest.fixture(scope="module")
def without_them(with_identifiers):
    with pytest.warns(UserWarning, match="columns 'customer', 'row': .* the model leaves it out") as caught:
        detector = fit(with_identifiers)
    assert [warning.filename for warning in caught] == [__file__]
    return detector


def test_a_column_that_is_left_out_changes_nothing(table, with_identifiers, without_them):
    expected = fit(table)
    found = without_them.score_samples(with_identifiers)
    np.testing.assert_array_equal(found, expected.score_samples(table))
    np.testing.assert_array_equal(without_them.predict(with_identifiers), expected.predict(table))


def test_whatever_stands_in_it_changes_no_score(with_identifiers, without_them):
    expected = without_them.score_samples(with_identifiers)
    others = with_identifiers.assign(customer=None, row=-1.5)
    np.testing.assert_array_equal(without_them.score_samples(others), expected)


def test_it_is_named_and_has_no_share_and_no_expected_value(with_identifiers, without_them):
    assert without_them.columns_ignored_ == ["customer", "row"]
    shares = without_them.explain(with_identifiers)
    assert (shares[["customer", "row"]] == 0).all(axis=None)
    np.testing.assert_allclose(shares.sum(axis=1), -without_them.score_samples(with_identifiers), rtol=1e-5)
    for table in (
        without_them.reconstruct(with_identifiers),
        without_them.expected(with_identifiers[:3]),
        without_them.sample(3),
    ):
        assert table[["customer", "row"]].isna().all(axis=None)
        assert table[["size", "city"]].notna().all(axis=None)
    assert not set(without_them.report(with_identifiers, n_columns=2)["column"]) & {"customer", "row"}


def test_what_columns_were_taken_for_is_told(with_identifiers, without_them):
    facts = without_them.describe_columns()
    assert facts["likelihood"].to_dict() == {
        "size": "gaussian",
        "city": "categorical",
        "customer": "ignored",
        "row": "ignored",
    }
    assert facts.loc["city", "categories"] == 2
    assert facts.loc["row", "dtype"] == "int64"
    assert without_them.model_card()["data"]["likelihoods"] == {"gaussian": 1, "categorical": 1, "ignored": 2}
    of_numbers = fit(np.random.RandomState(0).normal(size=(50, 2))).describe_columns()
    assert of_numbers["likelihood"].to_dict() == {0: "gaussian", 1: "gaussian"}


def test_a_notebook_shows_it_too(without_them):
    page = without_them._html_repr()
    assert "<summary>4 columns, 2 of them ignored</summary>" in page
    assert "<th>customer</th>" in page
    assert "<summary>4 columns" not in VAEDetector()._html_repr()


def test_units_that_the_model_sees_real_values_in_are_told(table):
    X = table[["size", "city"]].astype({"size": "float64"})
    facts = fit(X).describe_columns()
    assert facts["center"].to_dict() == pytest.approx({"size": X["size"].mean(), "city": np.nan}, nan_ok=True)
    assert facts.loc["size", "scale"] == pytest.approx(X["size"].std(ddof=0))
    numbers = X[["size"]].assign(error=np.where(np.arange(N_ROWS) == 3, 1e9, X["size"]))
    of_numbers = fit(numbers).describe_columns()
    # The unit of a column with a gross error is that of its central values.
    assert of_numbers.loc["error", "scale"] == pytest.approx(X["size"].std(), rel=0.5)
    assert of_numbers.loc["error", "center"] == numbers["error"].median()
    unknown = fit(numbers, scaler=RobustScaler()).describe_columns()
    assert unknown[["center", "scale"]].isna().all(axis=None)
    as_they_are = fit(numbers[["size"]], scaler=None).describe_columns()
    assert as_they_are.loc["size", ["center", "scale"]].tolist() == [0, 1]


@pytest.mark.parametrize("stored", ["file", "pickle"])
def test_it_stays_left_out_in_files(stored, with_identifiers, without_them, tmp_path):
    if stored == "file":
        without_them.save(tmp_path / "detector.vae")
        again = load(tmp_path / "detector.vae")
    else:
        again = pickle.loads(pickle.dumps(without_them))
    assert again.columns_ignored_ == ["customer", "row"]
    np.testing.assert_array_equal(
        again.score_samples(with_identifiers), without_them.score_samples(with_identifiers)
    )


def test_running_numbers_are_left_out_of_a_table_of_numbers_too(table):
    X = pd.DataFrame({"row": np.arange(N_ROWS), "size": table["size"], "weight": VALUES})
    with pytest.warns(UserWarning, match="column 'row': "):
        detector = fit(X)
    assert detector.columns_ignored_ == ["row"]
    assert detector.describe_columns()["likelihood"].tolist() == ["ignored", "gaussian", "gaussian"]
    expected = fit(X[["size", "weight"]]).score_samples(X[["size", "weight"]])
    np.testing.assert_array_equal(detector.score_samples(X), expected)
    # An array has no names: its columns are what they are said to be.
    assert fit(X.to_numpy()).columns_ignored_ == []


ROWS = np.arange(N_ROWS)
WITHOUT_GAPS = {
    "identifiers": (pd.Series(1000 + ROWS), "ignored"),
    "counts": (pd.Series(RNG.poisson(2, N_ROWS)), "count"),
    "ratings": (pd.Series(ROWS % 5 + 1), "categorical"),
    "years": (pd.Series(RNG.normal(1990, 20, N_ROWS).astype(int)), "gaussian"),
    "booleans": (pd.Series(ROWS % 3 == 0), "bernoulli"),
    "measurements": (pd.Series(VALUES), "gaussian"),
}


@pytest.mark.parametrize("as_type", [None, object, "nullable"])
@pytest.mark.parametrize(("values", "likelihood"), WITHOUT_GAPS.values(), ids=WITHOUT_GAPS)
def test_a_missing_cell_does_not_change_what_a_column_is_taken_for(values, likelihood, as_type):
    gaps = values.where(ROWS != 7, other=None)
    assert gaps.isna().sum() == 1
    gaps = gaps.convert_dtypes() if as_type == "nullable" else gaps.astype(as_type or gaps.dtype)
    for column in (values, gaps):
        assert recognize(column, "a column").likelihood == likelihood
        assert serial_numbers(column, "a column") == (likelihood == "ignored")


def test_the_same_rows_make_the_same_model_however_pandas_writes_gaps():
    kinds = {name: values for name, (values, likelihood) in WITHOUT_GAPS.items() if likelihood != "ignored"}
    X = pd.DataFrame(kinds).convert_dtypes()
    X.iloc[7] = pd.NA
    floats = X.astype({name: object if name == "booleans" else float for name in X}).replace({pd.NA: None})
    detector = fit(X)
    assert detector.describe_columns()["likelihood"].to_dict() == {name: WITHOUT_GAPS[name][1] for name in X}
    np.testing.assert_array_equal(fit(floats).score_samples(X), detector.score_samples(X))
    assert {type(value) for value in fit(floats).reconstruct(floats)["booleans"]} == {bool}


def test_a_value_that_is_no_number_is_named_and_not_texts_of_numbers_before_it(table):
    X = table[["size", "city"]].assign(price=[f"${row}.5" for row in range(N_ROWS)])
    detector = fit(X, likelihood={"price": "gaussian"})
    wrong = X.iloc[:4].assign(price=["$1.5", "$2.5", "none", "$4.5"])
    with pytest.raises(ValueError, match="column 'price' holds 'none' in row 2"):
        detector.predict(wrong)
    with pytest.raises(ValueError, match="column 'size' holds 'none' in row 2"):
        detector.predict(X.iloc[:4].assign(size=["1.5", "2.5", "none", "4"]))


def test_columns_named_by_tuples_are_told_too():
    X = pd.DataFrame({("a", "x"): VALUES, ("a", "y"): RNG.choice(["Bern", "Genf"], N_ROWS)})
    facts = fit(X).describe_columns()
    assert facts["likelihood"].to_dict() == {("a", "x"): "gaussian", ("a", "y"): "categorical"}


def test_a_table_of_nothing_else_is_refused():
    X = pd.DataFrame({"customer": IDENTIFIERS["texts that all differ"]})
    with pytest.raises(ValueError, match="every column is left out"):
        fit(X)


def test_images_have_no_columns():
    detector = fit(np.random.RandomState(0).uniform(size=(20, 4, 4)), network="auto", epochs=1)
    with pytest.raises(ValueError, match="fitted on images"):
        detector.describe_columns()


# -- whole numbers with a ceiling -----------------------------------------------------------------------
CEILINGS = {
    "months": RNG.randint(1, 13, 500),
    "hours": RNG.randint(0, 24, 500),
    "ratings": RNG.choice([1, 2, 3, 4, 5], 500, p=[0.05, 0.1, 0.2, 0.35, 0.3]),
    "zeros and ones": RNG.randint(0, 2, 500),
    "shares of three": RNG.binomial(3, 0.5, 500),
}
COUNTS = {
    "Poisson": RNG.poisson(3, 500),
    "few": RNG.poisson(0.3, 500),
    "of a few rows": RNG.poisson(3, 40),
    "geometric": RNG.geometric(0.5, 500),
    "rare events": (RNG.uniform(size=500) < 0.05).astype(int),
}


@pytest.mark.parametrize("values", CEILINGS.values(), ids=CEILINGS)
def test_whole_numbers_that_end_where_many_are_are_categories(values):
    assert recognize(pd.Series(values), "x") == ("categorical", None)


@pytest.mark.parametrize("values", COUNTS.values(), ids=COUNTS)
def test_whole_numbers_that_become_rare_are_counts(values):
    assert recognize(pd.Series(values), "x") == ("count", None)


def test_a_thirteenth_month_is_anomalous():
    rng = np.random.RandomState(0)
    X = pd.DataFrame({"month": rng.randint(1, 13, 500), "kind": rng.choice(["a", "b"], 500)})
    detector = fit(X, epochs=20)
    scores = detector.score_samples(X)
    assert (detector.score_samples(X.assign(month=13)) < scores.min()).all()
    assert (detector.predict(X.assign(month=13)) == -1).all()


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        ["a", np.str_("b")],
        [True, np.bool_(False)],
        [True, 1],
        [1, 2.5],
        [1, np.int8(2)],
        [1.5, "a"],
        [decimal.Decimal("1.5"), 2],
        [b"a", "a"],
        [None, "a"],
        [datetime.date(2026, 1, 1), "a"],
        [],
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [object, "category"])
def test_the_kinds_of_a_column_are_those_of_its_values(values, dtype):
    column = pd.Series(values, dtype=object).dropna().astype(dtype)
    assert kinds_of(column) == {kind_of(value) for value in column}


def test_categories_without_a_row_are_of_no_kind():
    assert kinds_of(pd.Series(pd.Categorical(["a"], categories=["a", 1]))) == {"str"}
