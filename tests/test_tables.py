"""Tables of any columns: which likelihood a column gets, numbers and back, errors, and detectors on them."""

import copy
import datetime
import enum
import pickle

import numpy as np
import pandas as pd
import pytest
from conftest import stars
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer

from vae_anomaly import DenseNetwork, VAEDetector, explanations
from vae_anomaly.data.tables import Column, Table, table_of
from vae_anomaly.likelihoods import Bernoulli, Categorical, Count, Gaussian, Laplace, Mixed, StudentT


def column_of(values, likelihood="mixed"):
    """How a table of this one column understands it."""
    (column,) = table_of(pd.DataFrame({"a": values}), likelihood).columns
    return column


def objects(*values):
    return pd.Series(values, dtype=object)


# -- which likelihood a column gets --------------------------------------------------------------------
BY_DTYPE = {
    "bool": ([True, False], Bernoulli),
    "boolean": (pd.array([True, None], dtype="boolean"), Bernoulli),
    "int": ([0, 3], Count),
    "uint8": (np.array([0, 200, 1], dtype="uint8"), Count),
    "whole numbers around 10": ([5, 10, 40], Gaussian),
    "Int64": (pd.array([0, None, 3], dtype="Int64"), Count),
    "negative int": ([-1, 3], Gaussian),
    "negative Int64": (pd.array([-1, None], dtype="Int64"), Gaussian),
    "float": ([1.0, 2.0], Gaussian),
    "float32": (np.array([1.5, 2], dtype="float32"), Gaussian),
    "Float64": (pd.array([1.5, None], dtype="Float64"), Gaussian),
    "objects that are numbers": (objects(1.5, None, 2), Gaussian),
    "str": (["a", "b"], Categorical),
    "string": (pd.array(["a", None], dtype="string"), Categorical),
    "category": (pd.Categorical(["a", "b"]), Categorical),
    "category of numbers": (pd.Categorical([3, 1]), Categorical),
    "objects that are strings": (objects("a", None), Categorical),
    "objects that are booleans": (objects(True, None, False), Bernoulli),
}


@pytest.mark.parametrize(("values", "expected"), BY_DTYPE.values(), ids=BY_DTYPE)
def test_a_columns_dtype_decides_its_likelihood(values, expected):
    assert type(column_of(values).likelihood) is expected


@pytest.fixture
def frame():
    return pd.DataFrame({"size": [1.5, 2.5], "visits": [3, 4], "city": ["x", "y"], "member": [True, False]})


def likelihoods_of(X, likelihood):
    return {column.name: type(column.likelihood) for column in table_of(X, likelihood).columns}


def test_auto_goes_by_dtype_if_some_column_is_no_number(frame):
    by_dtype = {"size": Gaussian, "visits": Count, "city": Categorical, "member": Bernoulli}
    assert likelihoods_of(frame, "auto") == likelihoods_of(frame, "mixed") == by_dtype
    assert table_of(frame[["size", "visits"]], "auto") is None
    assert table_of(frame[["size", "visits"]].to_numpy(), "auto") is None
    assert likelihoods_of(frame[["size", "visits"]], "mixed") == {"size": Gaussian, "visits": Count}


@pytest.mark.parametrize(
    "likelihood", ["gaussian", "bernoulli", Laplace(), Count(), Mixed([(Gaussian(), [0])])]
)
def test_one_likelihood_for_rows_of_numbers_needs_no_table(likelihood):
    assert table_of(pd.DataFrame({"a": [0.0, 1.0]}), likelihood) is None


def test_categorical_is_for_all_columns(frame):
    assert set(likelihoods_of(frame, "categorical").values()) == {Categorical}
    assert set(likelihoods_of(frame.to_numpy(), "categorical").values()) == {Categorical}
    rare = table_of(frame, Categorical(unseen_probability=0.01)).columns
    assert {column.likelihood.unseen_probability for column in rare} == {0.01}


def test_a_dict_gives_likelihoods_by_name_and_leaves_the_others_to_their_dtype(frame):
    likelihoods = {"size": "student_t", "visits": Laplace(scale=2.0), "member": "auto"}
    assert likelihoods_of(frame, likelihoods) == {
        "size": StudentT,
        "visits": Laplace,
        "city": Categorical,
        "member": Bernoulli,
    }
    assert table_of(frame, likelihoods).columns[1].likelihood.scale == 2.0


@pytest.mark.parametrize(
    "pairs",
    [
        [("student_t", ["size"]), ("categorical", ["visits", "member"])],
        (("student_t", "size"), ("categorical", pd.Index(["visits", "member"]))),
        [["student_t", ("size",)], [Categorical(), np.array(["visits", "member"])]],
    ],
)
def test_a_list_of_pairs_gives_likelihoods_to_columns(frame, pairs):
    expected = {"size": StudentT, "visits": Categorical, "city": Categorical, "member": Categorical}
    assert likelihoods_of(frame, pairs) == expected


@pytest.mark.parametrize(
    "likelihood", [{0: "laplace", 2: "categorical"}, [("laplace", 0), ("categorical", [2])]]
)
def test_columns_of_an_array_go_by_their_positions(likelihood):
    X = np.array([[1.5, 2.0, 3.0], [2.5, 3.0, 4.0]])
    assert likelihoods_of(X, likelihood) == {0: Laplace, 1: Gaussian, 2: Categorical}


@pytest.mark.parametrize("form", [lambda X: X, np.ndarray.tolist], ids=["array", "lists"])
def test_objects_in_rows_keep_the_types_that_they_have(form):
    X = np.array([["x", 1.5, 3], ["y", 2.5, 4]], dtype=object)
    assert likelihoods_of(form(X), "mixed") == {0: Categorical, 1: Gaussian, 2: Count}


def test_categories_are_counted_for_each_column_and_equal_likelihoods_joined():
    X = pd.DataFrame(
        {"a": ["x", "y"], "b": [1.5, 2.5], "c": ["v", "w"], "d": ["v", "v"], "e": [2.5, 0.5], "f": [1, 2]}
    )
    parts = table_of(X, "mixed").likelihood.parts
    assert [(repr(likelihood), list(columns)) for likelihood, columns in parts] == [
        ("Categorical()", [0, 2]),
        ("Gaussian()", [1, 4]),
        ("Categorical(n_categories=1)", [3]),
        ("Count()", [5]),
    ]


def test_a_table_keeps_likelihoods_of_its_own(frame):
    mine = Laplace()
    table = table_of(frame, {"size": mine})
    mine.set_params(scale=5.0)
    assert table.columns[0].likelihood.scale == "per_feature"
    given = Categorical()
    table_of(frame, {"city": given})
    assert given.n_categories == 2


# -- numbers and back ----------------------------------------------------------------------------------
ROUND_TRIPS = {
    "float": ([1.5, -2.5, np.nan], [1.5, -2.5, np.nan]),
    "float32": (pd.Series([1.5, -2.5], dtype="float32"), [1.5, -2.5]),
    "Float64": (pd.array([1.5, None], dtype="Float64"), [1.5, np.nan]),
    "int": ([3, 0, 7], [3, 0, 7]),
    "uint8": (np.array([3, 0, 200], dtype="uint8"), [3, 0, 200]),
    "Int64": (pd.array([3, None, 7], dtype="Int64"), [3, np.nan, 7]),
    "bool": ([True, False], [1, 0]),
    "boolean": (pd.array([True, None, False], dtype="boolean"), [1, np.nan, 0]),
    "str": (["b", "a", None, "b"], [1, 0, np.nan, 1]),
    "string": (pd.array(["b", None, "a"], dtype="string"), [1, np.nan, 0]),
    "category": (pd.Categorical(["b", "a", None, "c"], categories=["c", "b", "z", "a"]), [1, 0, np.nan, 2]),
    "ordered category": (pd.Categorical(["lo", "hi"], categories=["lo", "hi"], ordered=True), [1, 0]),
    "category of numbers": (pd.Categorical([30, 10, None], categories=[30, 20, 10]), [1, 0, np.nan]),
    "category of booleans": (pd.Categorical([True, False, None]), [1, 0, np.nan]),
    "objects": (objects("b", "a", None), [1, 0, np.nan]),
    "objects that are booleans": (objects(True, False, None), [1, 0, np.nan]),
}


@pytest.mark.parametrize(("values", "numbers"), ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_numbers_stand_for_the_values_that_they_came_from(values, numbers):
    X = pd.DataFrame({"a": values})
    table = table_of(X, "mixed")
    result = table.numbers(X)
    assert result["a"].dtype == np.float64
    np.testing.assert_array_equal(result["a"], numbers)
    back = table.frame(result.to_numpy())
    pd.testing.assert_frame_equal(back.where(back.notna(), None), X.where(X.notna(), None), check_dtype=False)
    assert back["a"].dtype == X["a"].dtype


def test_dates_are_categories_for_who_says_so():
    X = pd.DataFrame({"a": objects(datetime.date(2021, 1, 1), datetime.date(2020, 1, 1))})
    table = table_of(X, "categorical")
    assert table.numbers(X)["a"].tolist() == [1, 0]
    pd.testing.assert_frame_equal(table.frame(np.array([[1.0], [0.0]])), X)


@pytest.mark.parametrize("dtype", ["int64", "float64", "bool", "object"])
def test_numbers_as_categories_are_the_positions_of_their_values(dtype):
    X = pd.DataFrame({"a": np.array([1, 0, 1]).astype(dtype)})
    table = table_of(X, "categorical")
    np.testing.assert_array_equal(table.numbers(X)["a"], [1, 0, 1])
    pd.testing.assert_frame_equal(table.frame(np.array([[1.0], [0.0], [1.0]])), X)


@pytest.mark.parametrize("values", [[7, 9], [True, False], ["x", "y"], [7.5, 9.5]])
def test_a_missing_category_comes_back_as_missing_whatever_the_dtype(values):
    back = column_of(values, "categorical").values(np.array([0.0, np.nan]))
    assert list(back.isna()) == [False, True]


def test_frames_keep_the_order_of_columns_and_take_an_index():
    X = pd.DataFrame({"b": ["x", "y"], "a": [1.5, 2.5]}, index=["row 1", "row 2"])
    table = table_of(X, "auto")
    back = table.frame(table.numbers(X).to_numpy(), X.index)
    pd.testing.assert_frame_equal(back, X)
    assert list(table.frame(np.zeros((2, 2))).index) == [0, 1]


def test_an_array_is_read_as_the_columns_of_the_training_rows(frame):
    table = table_of(frame, "auto")
    np.testing.assert_array_equal(table.numbers(frame.to_numpy()), table.numbers(frame).to_numpy())
    np.testing.assert_array_equal(table.numbers(frame.to_numpy().tolist()), table.numbers(frame).to_numpy())


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=["None", "NaN", "NA"])
@pytest.mark.parametrize("kind", ["float", "int", "bool", "str", "category"])
def test_every_missing_value_is_nan_whatever_its_kind(missing, kind):
    values = {"float": [1.5, 2.5], "int": [1, 2], "bool": [True, False], "str": ["a", "b"]}
    column = column_of(pd.Categorical(["a", "b"]) if kind == "category" else values[kind])
    gap = pd.Series([missing, values.get(kind, ["a", "b"])[1]], dtype=object)
    np.testing.assert_array_equal(column.numbers(gap), [np.nan, column.numbers(gap[1:])[0]])
    assert np.isnan(column.numbers(objects(missing, missing))).all()


def test_not_a_time_is_missing_too():
    times = pd.Series(pd.to_datetime(["2020-01-01", None, "2021-01-01"]))
    column = column_of(times, "categorical")
    np.testing.assert_array_equal(column.numbers(times), [0, np.nan, 1])


@pytest.mark.parametrize(
    "values",
    [["a", "b"], pd.Categorical(["a", "b"]), pd.array(["a", "b"], dtype="string"), objects("a", "b")],
)
def test_a_category_that_was_not_trained_on_has_the_code_after_the_last(values):
    np.testing.assert_array_equal(column_of(values).numbers(objects("c", "a", None)), [2, 0, np.nan])


def test_a_category_that_no_training_row_holds_is_unseen():
    column = column_of(pd.Categorical(["a", "a"], categories=["a", "b"]))
    np.testing.assert_array_equal(column.numbers(pd.Series(pd.Categorical(["b", "a"]))), [1, 0])


def test_a_column_may_come_back_in_another_dtype_of_the_same_type():
    assert column_of(["a", "b"]).numbers(pd.Series(pd.Categorical(["b"]))) == [1]
    assert column_of([1, 2], "categorical").numbers(pd.Series([2.0])) == [1]
    assert column_of([True, False]).numbers(pd.Series([1])) == [1]
    assert column_of([1, 2]).numbers(pd.Series([5.0])) == [5]
    assert column_of([1.5, 2.5]).numbers(objects(3)) == [3]
    assert column_of(objects(*np.array(["a", "b"]))).numbers(objects("b")) == [1]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "Int64", "float64", "object"])
def test_a_count_too_large_for_its_dtype_stays_itself(dtype):
    """A model may draw a larger count than it was trained on."""
    column = Column("a", Count(), pd.Series([1], dtype=dtype).dtype, None)
    assert list(column.values(np.array([3.0, 5e9]))) == [3, 5_000_000_000]


def test_counts_are_rounded_and_booleans_decided():
    assert list(Column("a", Count(), np.dtype(int), None).values(np.array([2.4, 2.6, 0.0]))) == [2, 3, 0]
    assert list(Column("a", Bernoulli(), np.dtype(bool), None).values(np.array([0.4, 0.6]))) == [False, True]


def test_a_gap_among_counts_or_booleans_stays_one():
    for likelihood, dtype in ((Count(), int), (Bernoulli(), bool)):
        back = Column("a", likelihood, np.dtype(dtype), None).values(np.array([1.0, np.nan]))
        assert list(back.isna()) == [False, True]
        assert back[0] == 1


# -- errors: column, value, remedy ---------------------------------------------------------------------
class Shape(enum.Enum):
    ROUND = 1
    SQUARE = 2


REFUSED = {
    "unknown likelihood": ([1, 2], {"a": "normal"}, "column 'a': .* one of .*'count'.* received 'normal'"),
    "no likelihood": ([1, 2], {"a": 3}, "column 'a': likelihood must be a name or a Likelihood; received 3"),
    "a table for a column": ([1, 2], {"a": "mixed"}, "column 'a': .*'mixed'"),
    "unknown column": ([1, 2], {"b": "count"}, r"names column 'b', but X has the columns \['a'\]"),
    "no pair": ([1, 2], ["count", "a"], r"pairs \(likelihood, columns\).*\['city'\].*received 'count'"),
    "invalid parameter": (["x"], {"a": Categorical(unseen="ignore")}, "'unseen' parameter of Categorical"),
    "all missing": ([None, None], "mixed", "column 'a' holds no value in any of the 2 .*drop the column"),
    "all NaN": ([np.nan, np.nan], {"a": "laplace"}, "column 'a' holds no value in any of the 2"),
    "mixed types": (
        objects("x", 1.5, None),
        "mixed",
        r"column 'a' holds values of several types, 1.5 \(number\) and 'x' \(str\); convert",
    ),
    "numbers and booleans": (objects(True, 2), "categorical", r"column 'a'.*True \(bool\) and 2 \(number\)"),
    "dates": (pd.date_range("2020", periods=2), "mixed", "column 'a' holds dates or times"),
    "intervals": (pd.interval_range(0, 2), "mixed", "column 'a' has the dtype interval.*'a': 'ignored'"),
    "lists": (objects([1], [2]), "mixed", "column 'a'.*list"),
    "values without an order": (objects(*Shape), "mixed", "column 'a'.*Shape"),
}


@pytest.mark.parametrize(("values", "likelihood", "message"), REFUSED.values(), ids=REFUSED)
def test_a_table_that_cannot_be_is_refused_by_column(values, likelihood, message):
    with pytest.raises((ValueError, TypeError), match=message):
        table_of(pd.DataFrame({"a": values}), likelihood)


@pytest.mark.parametrize("likelihood", ["mixed", "categorical", {0: "count"}, [("count", [0])]])
def test_a_sparse_table_has_one_likelihood(likelihood):
    with pytest.raises(TypeError, match="sparse table have one likelihood; received likelihood=.*DataFrame"):
        table_of(sparse.eye(3, format="csr"), likelihood)


UNREADABLE = {
    "strings for a gaussian": (
        [1.5, 2.5],
        "mixed",
        ["x"],
        "'x' in row 7, but likelihood 'gaussian' needs num",
    ),
    "strings for a count": ([1, 2], "mixed", ["many"], "'many' in row 7, but likelihood 'count' needs"),
    "strings for a boolean": ([True, False], "mixed", ["yes"], "'yes' in row 7, but likelihood 'bernoulli'"),
    "dates for a gaussian": ([1.5, 2.5], "mixed", pd.to_datetime(["2020"]), "2020.*'gaussian' needs numbers"),
    "complex numbers": ([1.5, 2.5], "mixed", [1 + 2j], r"1\+2j.*'gaussian' needs numbers"),
    "numbers for strings": (
        ["x", "y"],
        "mixed",
        [3],
        r"categories such as 'x' \(str\); received 3 \(number\) in",
    ),
    "strings for numbers": (
        [1, 2],
        "categorical",
        ["1"],
        r"such as 1 \(number\); received '1' \(str\) in row 7",
    ),
    "booleans for numbers": ([1, 2], "categorical", [True], r"such as 1 \(number\); received True \(bool\)"),
    "an unseen category": (
        ["x", "y"],
        {"a": Categorical(unseen="raise")},
        ["z"],
        "'z' in row 7, which is not among the categories .*unseen='score'",
    ),
}


@pytest.mark.parametrize(
    ("trained_on", "likelihood", "values", "message"), UNREADABLE.values(), ids=UNREADABLE
)
def test_values_of_another_type_are_refused_by_column_value_and_row(trained_on, likelihood, values, message):
    table = table_of(pd.DataFrame({"a": trained_on}), likelihood)
    with pytest.raises((ValueError, TypeError), match=f"column 'a' .*{message}"):
        table.numbers(pd.DataFrame({"a": values}, index=[7]))


@pytest.mark.parametrize(
    "values", [pd.date_range("2020", periods=3), pd.to_timedelta([1, 2, 3]), np.array([1j, 2, 3]), ["x"] * 3]
)
def test_columns_that_are_no_numbers_are_refused_for_a_gaussian(values):
    X = pd.DataFrame({"a": values})
    with pytest.raises((ValueError, TypeError), match="column 'a'.*number"):
        table_of(X, {"a": "gaussian"}).numbers(X)


def test_a_missing_value_is_no_unseen_category():
    column = column_of(["x", "y"], {"a": Categorical(unseen="raise")})
    np.testing.assert_array_equal(column.numbers(objects("y", None)), [1, np.nan])


# -- detectors on tables -------------------------------------------------------------------------------
N_ROWS = 300
CITIES = ["Bern", "Genf", "Thun"]


@pytest.fixture(scope="module")
def customers():
    """Columns of every kind that depend on one another, with gaps, in rows that are named."""
    rng = np.random.RandomState(0)
    city = rng.randint(3, size=N_ROWS)
    X = pd.DataFrame(
        {
            "amount": 10.0 * city + rng.normal(size=N_ROWS),
            "city": np.array(CITIES)[city],
            "visits": rng.poisson(np.array([1, 5, 60])[city]),
            "member": rng.uniform(size=N_ROWS) < np.array([0.05, 0.5, 0.95])[city],
            "grade": pd.Categorical(np.array(["lo", "mid", "hi"])[city], categories=["lo", "mid", "hi"]),
            "age": pd.array(rng.poisson(40, size=N_ROWS), dtype="Int64"),
        },
        index=[f"customer {row}" for row in range(N_ROWS)],
    )
    X.loc[X.index[::17], "age"] = pd.NA
    X.loc[X.index[5::23], "city"] = None
    return X


@pytest.fixture(scope="module")
def fitted(customers):
    """Read only: all tests share it. Its score is a sum over the cells."""
    return VAEDetector(score="reconstruction_probability", epochs=100, random_state=0).fit(customers)


def test_a_detector_keeps_the_table_of_its_training_rows(fitted, customers):
    assert isinstance(fitted.table_, Table)
    assert [column.name for column in fitted.table_.columns] == list(customers.columns)
    assert list(fitted.feature_names_in_) == list(customers.columns)
    assert fitted.n_features_in_ == 6


def test_scores_and_labels_of_a_table_are_those_of_any_detector(fitted, customers):
    scores = fitted.score_samples(customers)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(fitted.decision_function(customers), scores - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(customers), np.where(scores < fitted.offset_, -1, 1))
    assert 0 < (fitted.predict(customers) == -1).sum() < 30
    assert isinstance(fitted.score(customers), float)
    assert fitted.encode(customers).shape == (N_ROWS, fitted.latent_dim_)


@pytest.mark.parametrize(
    ("column", "value"),
    [("amount", 1e4), ("amount", -1e4), ("city", "Thun"), ("visits", 10**9), ("grade", "hi"), ("age", 10**6)],
)
def test_a_cell_that_does_not_go_with_its_row_is_anomalous(fitted, customers, column, value):
    usual = customers[(customers["city"] == "Bern") & ~customers["member"]].dropna()[:20]
    odd = usual.copy()
    odd[column] = value
    assert (fitted.score_samples(odd) < fitted.score_samples(usual)).all()
    assert (fitted.predict(odd) == -1).mean() > 0.9
    # The other cells do not go with this one either.
    assert (fitted.explain(odd).to_numpy().argmax(axis=1) == list(odd.columns).index(column)).mean() > 0.5


@pytest.mark.parametrize(("column", "known"), [("city", CITIES), ("grade", ["lo", "mid", "hi"])])
def test_an_unseen_category_is_at_least_as_anomalous_as_every_known_one_in_its_cell(
    fitted, customers, column, known
):
    def shares(category):
        return fitted.explain(rows.assign(**{column: category}))[column]

    rows = customers[:50]
    unseen = shares("Atlantis")
    for category in known:
        assert (unseen >= shares(category) - 1e-5).all()
    rows = rows.dropna()
    np.testing.assert_allclose(shares("Atlantis"), -np.log(1e-4 / 4), rtol=1e-6)


def test_explanations_of_a_table_sum_to_the_score_in_its_columns(fitted, customers):
    shares = fitted.explain(customers[:40])
    assert list(shares.columns) == list(customers.columns)
    assert list(shares.index) == list(customers.index[:40])
    np.testing.assert_allclose(shares.sum(axis=1), -fitted.score_samples(customers[:40]), rtol=1e-12)


def test_a_reconstruction_is_a_table_of_the_same_kind_without_gaps(fitted, customers):
    expected = fitted.reconstruct(customers)
    assert list(expected.columns) == list(customers.columns)
    assert list(expected.index) == list(customers.index)
    assert expected.dtypes.to_dict() == customers.dtypes.to_dict()
    assert not expected.isna().any().any()
    whole = customers["city"].notna()
    assert (expected["city"] == customers["city"])[whole].mean() > 0.9
    assert (expected["grade"] == customers["grade"]).mean() > 0.9
    assert np.corrcoef(expected["amount"], customers["amount"])[0, 1] > 0.9
    assert np.corrcoef(np.log1p(expected["visits"]), np.log1p(customers["visits"]))[0, 1] > 0.9
    # What is missing is inferred from the rest of its row.
    by_grade = customers["grade"].map({"lo": "Bern", "mid": "Genf", "hi": "Thun"})
    assert (expected["city"] == by_grade.astype(object))[~whole].mean() > 0.9


def test_the_reconstruction_of_an_array_is_an_array(fitted, customers):
    with pytest.warns(UserWarning, match="valid feature names"):
        of_array = fitted.reconstruct(customers[:5].to_numpy())
    np.testing.assert_array_equal(of_array, fitted.reconstruct(customers[:5]).to_numpy())


def test_samples_are_rows_of_the_same_kind(fitted, customers):
    drawn = fitted.sample(200, random_state=0)
    assert list(drawn.columns) == list(customers.columns)
    assert drawn.dtypes.to_dict() == customers.dtypes.to_dict()
    assert len(drawn) == 200
    assert set(drawn["city"]) == set(CITIES)
    assert (drawn["visits"] >= 0).all()
    assert set(drawn["member"]) == {True, False}
    pd.testing.assert_frame_equal(drawn, fitted.sample(200, random_state=0))
    assert np.isfinite(fitted.score_samples(drawn)).all()
    # They depend on one another as the training rows do.
    agree = drawn["city"] == drawn["grade"].map({"lo": "Bern", "mid": "Genf", "hi": "Thun"}).astype(object)
    assert agree.mean() > 0.6


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=["None", "NaN", "NA"])
def test_every_kind_of_missing_value_has_the_same_score(fitted, customers, missing):
    gaps = customers[:10].astype(object)
    gaps[["amount", "city", "member"]] = missing
    expected = customers[:10].astype({"member": "boolean"})
    expected[["amount", "city", "member"]] = np.nan, None, pd.NA
    scores = fitted.score_samples(gaps)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, fitted.score_samples(expected))


@pytest.mark.narrow_tiles
def test_a_row_alone_has_the_bits_that_it_has_in_the_table(fitted, customers):
    whole = fitted.score_samples(customers)
    for row in (0, 17):
        assert fitted.score_samples(customers[row : row + 1])[0] == whole[row]
        assert fitted.predict(customers[row : row + 1]).shape == (1,)
    order = np.random.RandomState(0).permutation(N_ROWS)
    np.testing.assert_array_equal(fitted.score_samples(customers.iloc[order]), whole[order])
    np.testing.assert_array_equal(fitted.score_samples(customers[7:90]), whole[7:90])
    shares = fitted.explain(customers)
    pd.testing.assert_frame_equal(fitted.explain(customers[3:4]), shares[3:4], check_exact=True)
    pd.testing.assert_frame_equal(fitted.explain(customers[::-1]), shares[::-1], check_exact=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X[X.columns[::-1]], "Feature names must be in the same order"),
        (lambda X: X.drop(columns="city"), "seen at fit time, yet now missing"),
        (lambda X: X.assign(more=1), "Feature names unseen at fit time"),
        (lambda X: X.rename(columns={"city": "town"}), "Feature names unseen at fit time"),
    ],
    ids=["reordered", "missing", "additional", "renamed"],
)
def test_other_columns_are_refused_as_scikit_learn_does(fitted, customers, change, message):
    with pytest.raises(ValueError, match=message):
        fitted.score_samples(change(customers))


RENAMED = {
    "others": lambda X: X.set_axis(["a", "b"], axis=1),
    "reordered": lambda X: X[[1, 0]],
    "shifted": lambda X: X.set_axis([1, 2], axis=1),
}


@pytest.fixture(scope="module")
def numbered():
    """Rows whose columns are called 0 and 1, and a detector for them."""
    X = pd.DataFrame({0: ["x", "y"] * 20, 1: np.linspace(0, 1, 40)})
    return X, VAEDetector(epochs=1, random_state=0).fit(X)


@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED)
def test_columns_are_told_apart_by_names_that_are_no_strings_too(numbered, rename):
    """scikit-learn compares names only if they are strings."""
    X, detector = numbered
    with pytest.raises(ValueError, match="column"):
        detector.score_samples(rename(X))


@pytest.mark.filterwarnings("ignore:X has feature names")
def test_a_detector_fitted_on_an_array_takes_a_frame_by_its_positions():
    X = np.array([["x", 0.5], ["y", 1.5]] * 20, dtype=object)
    detector = VAEDetector(likelihood="mixed", epochs=1, random_state=0).fit(X)
    scores = detector.score_samples(X)
    assert len(np.unique(scores)) > 1
    np.testing.assert_array_equal(detector.score_samples(pd.DataFrame(X, columns=["a", "b"])), scores)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_an_array_of_another_width_is_refused(fitted, customers):
    with pytest.raises(ValueError, match="X has 5 features, but VAEDetector is expecting 6"):
        fitted.score_samples(customers.to_numpy()[:, :5])


def test_a_fit_that_is_refused_leaves_the_earlier_one(fitted, customers):
    detector = copy.deepcopy(fitted).set_params(likelihood={"town": "categorical"})
    with pytest.raises(ValueError, match="likelihood names column 'town'"):
        detector.fit(customers)
    np.testing.assert_array_equal(detector.score_samples(customers), fitted.score_samples(customers))


def test_a_pickle_has_the_same_bits(fitted, customers):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.score_samples(customers), fitted.score_samples(customers))
    pd.testing.assert_frame_equal(again.sample(5, random_state=0), fitted.sample(5, random_state=0))


@pytest.mark.parametrize(
    "likelihood",
    [{"amount": StudentT(), "visits": "gaussian"}, [("laplace", ["amount"])], "mixed", Categorical()],
    ids=["dict", "list", "mixed", "categorical"],
)
def test_a_clone_has_the_same_likelihoods(likelihood):
    detector = VAEDetector(likelihood=likelihood)
    assert repr(clone(detector)) == repr(detector)
    assert repr(clone(detector).likelihood) == repr(likelihood)


def test_the_same_seed_gives_the_same_bits(customers):
    detector = VAEDetector(epochs=2, random_state=0)
    first, second = (clone(detector).fit(customers).score_samples(customers) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_grid_search_and_a_pipeline_take_tables(customers):
    powers = make_column_transformer(
        (PowerTransformer(), ["amount"]), remainder="passthrough", verbose_feature_names_out=False
    ).set_output(transform="pandas")
    pipeline = make_pipeline(powers, VAEDetector(epochs=1, random_state=0))
    search = GridSearchCV(pipeline, {"vaedetector__beta": [1.0, 2.0]}, cv=2, error_score="raise")
    search.fit(customers)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert np.isfinite(best.score_samples(customers)).all()
    shares = explanations.explain(best, customers[:9])
    assert list(shares.columns) == list(customers.columns)
    np.testing.assert_allclose(shares.sum(axis=1), -best.score_samples(customers[:9]), rtol=1e-12)


@pytest.mark.parametrize("given", ["folds", 0.3])
def test_a_table_is_calibrated(customers, given):
    detector = VAEDetector(epochs=1, calibration=given, random_state=0).fit(customers)
    assert len(detector.calibration_scores_) == (N_ROWS if given == "folds" else 90)
    p_values = detector.p_values(customers)
    assert ((p_values > 0) & (p_values <= 1)).all()
    assert 0.2 < p_values.mean() < 0.8


ALONE = {"one category": ["city"], "booleans": ["member"], "counts": ["visits", "age"]}


@pytest.mark.parametrize("columns", stars(ALONE, {"counts"}))
def test_a_table_of_one_kind_of_column_is_a_table_too(customers, columns):
    X = customers[columns]
    detector = VAEDetector(likelihood="mixed", epochs=1, random_state=0).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()
    assert detector.sample(3, random_state=0).dtypes.to_dict() == X.dtypes.to_dict()


def test_constant_columns_are_learned(customers):
    X = customers[["amount"]].assign(city="Bern", visits=0, member=True)
    detector = VAEDetector(epochs=20, random_state=0).fit(X)
    usual = detector.score_samples(X[:1])
    for column, value in {"city": "Genf", "visits": 10**6, "member": False}.items():
        assert detector.score_samples(X[:1].assign(**{column: value})) < usual


@pytest.mark.wide
def test_a_column_of_two_hundred_levels_is_learned():
    rng = np.random.RandomState(0)
    level = rng.randint(200, size=1000)
    X = pd.DataFrame({"level": [f"level {code}" for code in level], "group": np.where(level < 100, "a", "b")})
    X["amount"] = rng.normal(size=1000)
    detector = VAEDetector(epochs=2, random_state=0).fit(X)
    assert detector.table_.likelihood.parts[0][0].n_categories == 200
    assert np.isfinite(detector.score_samples(X)).all()
    assert (detector.score_samples(X.assign(level="none")) < detector.score_samples(X)).mean() > 0.99
    drawn = detector.sample(200, random_state=0)["level"]
    assert set(drawn) <= set(X["level"])
    assert drawn.nunique() > 50


def test_a_warm_start_keeps_the_table_of_the_first_rows(customers):
    detector = VAEDetector(epochs=1, warm_start=True, random_state=0).fit(customers)
    categories = detector.table_.columns[1].categories
    detector.fit(customers.assign(city="Chur"))
    assert list(detector.table_.columns[1].categories) == list(categories) == CITIES


def test_a_count_that_only_rows_held_out_hold_is_no_reason_to_fail():
    X = pd.DataFrame({"city": ["x", "y"] * 20, "age": pd.array([7] + [None] * 39, dtype="Int64")})
    for seed in range(4):  # each holds out another half
        detector = VAEDetector(epochs=1, validation_fraction=0.5, random_state=seed).fit(X)
        assert np.isfinite(detector.score_samples(X)).all()


def test_lists_of_a_mixed_table_are_taken_everywhere():
    rows = [["a", 0.5, True], ["b", 1.5, False], ["a", 2.5, True]] * 10
    quick = {"network": DenseNetwork((4,)), "epochs": 1, "n_draws": 1, "random_state": 0}
    detector = VAEDetector(likelihood="mixed", **quick).fit(rows)
    array = np.array(rows, dtype=object)
    np.testing.assert_array_equal(detector.reconstruct(rows), detector.reconstruct(array))
    np.testing.assert_array_equal(detector.explain(rows), detector.explain(array))


def test_new_rows_of_a_mixed_table_that_are_sparse_or_a_series_are_refused():
    X = pd.DataFrame({"kind": ["a", "b"] * 10, "size": range(20)})
    detector = VAEDetector(epochs=1).fit(X)
    with pytest.raises(TypeError, match="received a sparse matrix. Pass a DataFrame"):
        detector.score_samples(sparse.csr_matrix(np.zeros((2, 2))))
    with pytest.raises(
        ValueError, match=r"one row as a Series; pass a table with this row, X.iloc\[\[position"
    ):
        detector.score_samples(X.iloc[0])


@pytest.mark.parametrize("likelihood", ["auto", "gaussian"])
def test_tables_that_nothing_reads_are_refused(likelihood):
    class DataFrame:
        columns = ("a", "b")
        shape = (20, 2)

    with pytest.raises(
        TypeError,
        match=r"tables are DataFrames of pandas, polars or pyarrow; received a test_tables DataFrame. Pass",
    ):
        VAEDetector(likelihood=likelihood).fit(DataFrame())
