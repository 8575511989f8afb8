"""Tables of polars and pyarrow are what the same DataFrame of pandas is."""

import numpy as np
import pandas as pd
import pytest

from vae_anomaly import DenseNetwork, VAEDetector, explanations, load
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.data import frames

polars = pytest.importorskip("polars")
pyarrow = pytest.importorskip("pyarrow")
FRAMES = {
    "polars": polars.from_pandas,
    "pyarrow": lambda frame: pyarrow.Table.from_pandas(frame, preserve_index=False),
}


def quick(**settings):
    return VAEDetector(DenseNetwork((8,)), epochs=2, random_state=0, **settings)


@pytest.fixture(scope="module")
def frame():
    rng = np.random.RandomState(0)
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=60),
            "visits": rng.poisson(3, 60),
            "city": pd.Categorical(rng.choice(["Bern", "Genf"], 60)),
            "note": rng.choice(["a", "b", "c"], 60).astype(object),
            "member": rng.uniform(size=60) > 0.5,
        }
    )
    frame.loc[3, "size"] = np.nan
    frame.loc[4, ["city", "note"]] = None
    return frame


@pytest.fixture(scope="module")
def fitted(frame):
    return quick().fit(frame)


@pytest.fixture(scope="module", params=FRAMES)
def foreign(request, frame):
    return FRAMES[request.param](frame)


def test_a_fit_on_it_is_the_same(foreign, frame, fitted):
    np.testing.assert_array_equal(quick().fit(foreign).score_samples(foreign), fitted.score_samples(frame))


def test_every_method_takes_it(foreign, frame, fitted):
    for name in ("score_samples", "decision_function", "predict", "encode", "score"):
        np.testing.assert_array_equal(getattr(fitted, name)(foreign), getattr(fitted, name)(frame))
    pd.testing.assert_frame_equal(fitted.report(foreign), fitted.report(frame))


@pytest.mark.parametrize("method", ["explain", "reconstruct", "expected"])
def test_cells_come_back_in_a_table_of_its_library(foreign, frame, fitted, method):
    found, expected = getattr(fitted, method)(foreign), getattr(fitted, method)(frame)
    assert type(found) is type(foreign)
    read = frames.to_pandas(found)
    assert list(read.columns) == list(expected.columns)
    for name in expected:
        assert read[name].astype(object).where(read[name].notna(), None).tolist() == (
            expected[name].astype(object).where(expected[name].notna(), None).tolist()
        )


def test_columns_of_numbers_keep_their_names(foreign, frame):
    numbers = frame[["size", "visits"]]
    detector = quick().fit(FRAMES["polars"](numbers))
    assert detector.feature_names_in_.tolist() == ["size", "visits"]
    np.testing.assert_array_equal(
        detector.score_samples(numbers), quick().fit(numbers).score_samples(numbers)
    )


def test_whole_numbers_and_booleans_with_gaps_stay_what_they_are():
    gaps = polars.DataFrame({"visits": [1, None, 3], "member": [True, None, False]})
    found = frames.to_pandas(gaps)
    assert found.dtypes.astype(str).tolist() == ["Int64", "boolean"]
    assert found.isna().sum().tolist() == [1, 1]


def test_a_table_that_is_not_in_memory_says_what_to_do(frame):
    with pytest.raises(TypeError, match=r"a polars LazyFrame, which is not in memory: pass X\.collect\(\)"):
        quick().fit(polars.from_pandas(frame).lazy())


def test_a_pipeline_is_explained_in_its_columns(foreign, frame):
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = make_column_transformer((StandardScaler(), ["visits"]), verbose_feature_names_out=False)
    pipeline = make_pipeline(columns.set_output(transform="polars"), quick()).fit(foreign)
    found = explanations.explain(pipeline, foreign)
    assert type(found) is type(foreign)
    np.testing.assert_allclose(np.asarray(found).sum(axis=1), -pipeline.score_samples(foreign), rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": [1.0, 2.0]}, r"received a dict\. Pass pd\.DataFrame\(X\)"),
        (
            np.zeros(3, dtype=[("a", float), ("b", float)]),
            r"records with the fields \['a', 'b'\]\. Pass pd\.DataFr",
        ),
    ],
    ids=["dict", "records"],
)
def test_what_is_not_a_table_gets_a_sentence_that_helps(given, message):
    with pytest.raises(TypeError, match=message):
        quick().fit(given)


def test_what_is_masked_is_missing(frame):
    numbers = frame[["size", "visits"]].to_numpy(dtype=float)
    masked = np.ma.masked_array(np.nan_to_num(numbers, nan=99.0), mask=np.isnan(numbers))
    np.testing.assert_array_equal(
        quick().fit(masked).score_samples(masked), quick().fit(numbers).score_samples(numbers)
    )


@pytest.mark.parametrize("names", [[1, 0], [(0, "a"), (0, "b")]], ids=str)
def test_names_that_are_not_texts_must_be_those_of_the_training_rows(frame, names, tmp_path):
    numbers = frame[["size", "visits"]]
    numbers.columns = pd.Index(names, tupleize_cols=False)
    quick().fit(numbers).save(tmp_path / "model")
    detector = load(tmp_path / "model")
    detector.predict(numbers)
    with pytest.raises(ValueError, match="received the columns .*Give X the columns of the training rows"):
        detector.predict(numbers.iloc[:, ::-1])


def test_a_name_that_appears_twice_is_refused(frame):
    with pytest.raises(ValueError, match="'a' appears twice"):
        quick().fit(frame[["size", "visits"]].set_axis(["a", "a"], axis=1))


# -- what is no rows -------------------------------------------------------------------------------------
ROWS = np.random.RandomState(0).normal(size=(20, 3)).astype("f4")
LABELS = np.zeros(20)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, position):
        return ROWS, LABELS


NOT_ROWS = {
    "a path": (lambda: "rows.csv", r"the text or path 'rows\.csv'.*pd\.read_csv"),
    "a generator": (lambda: (row for row in ROWS), r"an iterator \(generator\).*np\.stack\(list\(X\)\)"),
    "a map": (lambda: map(list, ROWS), r"an iterator \(map\)"),
    "a dataset of Keras": (Batches, r"a dataset of Keras.*np\.concatenate\(\[X\[i\]\[0\]"),
    "rows and labels": (lambda: (ROWS, LABELS), "a tuple of rows and labels.*Pass the rows alone"),
    "images and labels": (lambda: (np.zeros((20, 4, 4)), LABELS), "a tuple of rows and labels"),
    "load_data": (
        lambda: ((ROWS, LABELS), (ROWS, LABELS)),
        "a tuple of rows and labels, as Keras' load_data",
    ),
    "a series of arrays": (lambda: pd.Series(list(ROWS)), r"a Series of 20 arrays\. Pass np\.stack\(X\)"),
    "a column of arrays": (lambda: pd.DataFrame({"v": list(ROWS)}), r"column 'v' holds.*np\.stack"),
}


@pytest.mark.parametrize(("make", "expected"), NOT_ROWS.values(), ids=NOT_ROWS)
def test_what_is_no_rows_is_named_with_what_makes_rows_of_it(make, expected):
    with pytest.raises(TypeError, match=expected):
        quick().fit(make())


def test_a_dataset_of_tensorflow_is_named_with_what_makes_rows_of_it():
    dataset = tf.data.Dataset.from_tensor_slices(ROWS).batch(7)
    with pytest.raises(TypeError, match="a dataset of TensorFlow.*as_numpy_iterator"):
        quick().fit(dataset)
    advised = np.concatenate(list(dataset.as_numpy_iterator()))
    np.testing.assert_array_equal(advised, ROWS)


@pytest.mark.parametrize("X", [([1.0, 2.0], [3.0, 4.5]), (ROWS[0], ROWS[1])], ids=["lists", "arrays"])
def test_a_tuple_of_rows_is_rows(X):
    assert quick().fit(X).n_features_in_ == len(X[0])


NO_NUMBERS = {
    "lists": ([[1.0, 2.0]] * 3, r"\[1.0, 2.0\]"),
    "arrays": ([np.zeros(2)] * 3, r"array\(\[0., 0.\]\)"),
    "dictionaries": ([{"k": 1}] * 3, "{'k': 1}"),
    "strings": (["1.5", "u", "v"], "'u'"),
    "complex numbers": ([1j] * 3, "1j"),
    "dates": (pd.date_range("2020", periods=3), "Timestamp"),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number_is_named_where_numbers_were_learned(kind):
    values, shown = NO_NUMBERS[kind]
    X = pd.DataFrame({"x": np.arange(30.0), "a": np.arange(30.0) ** 2})
    detector = VAEDetector(epochs=1, members=1, random_state=0).fit(X)
    new = pd.DataFrame({"x": [1.0, 2.0, 3.0], "a": values})
    row = 1 if kind == "strings" else 0
    with pytest.raises(
        (TypeError, ValueError), match=f"column 'a' holds {shown}.* in row {row}, .*not a number"
    ):
        detector.score_samples(new)


def test_other_names_are_told_before_what_is_no_number():
    X = pd.DataFrame({"x": np.arange(30.0), "a": np.arange(30.0) ** 2})
    detector = VAEDetector(epochs=1, members=1, random_state=0).fit(X)
    with pytest.raises(ValueError, match="feature names should match"):
        detector.score_samples(pd.DataFrame({"x": [1.0], "b": ["red"]}))


def test_no_rows_are_told_to_be_none():
    with pytest.raises(ValueError, match="2D array, got 1D array"):
        VAEDetector(epochs=1).fit([])
