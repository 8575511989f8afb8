"""Encodings and vocabulary: every value comes back exactly, and a file names nothing but what is listed."""

import datetime
import decimal
import importlib
import json
import math
import sys
import tracemalloc
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.manifold import TSNE
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from vae_anomaly import ConvNetwork, DenseNetwork, ModelFileError
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.files import allow_list as vocabulary
from vae_anomaly.files import archive
from vae_anomaly.files.decoding import decode_estimator
from vae_anomaly.files.encoding import encode_estimator
from vae_anomaly.likelihoods import LIKELIHOODS, Gaussian, Likelihood, StudentT
from vae_anomaly.model.states import ModelState, Specification
from vae_anomaly.networks import NETWORKS, Network
from vae_anomaly.scoring import SCORES
from vae_anomaly.thresholds import THRESHOLDS, Conformal, ParetoTail


class Holder(BaseEstimator):
    """An estimator that holds a value as its parameter."""

    def __init__(self, value=None):
        self.value = value

    def transform(self, X):
        return X


@pytest.fixture
def path(tmp_path):
    return tmp_path / "holder"


def write(path, tree, arrays):
    parts = {f"arrays/{position}": array for position, array in enumerate(arrays)}
    archive.write(path, {}, {"detector.json": archive.to_json(tree, "it"), **parts})


def read(path, kind=Holder):
    with archive.open_archive(path) as opened:
        return decode_estimator(opened.json("detector.json"), kind, opened)


def through_a_file(value, path):
    write(path, *encode_estimator(Holder(value)))
    return read(path).value


def forged(value, path, edit):
    """What is read from a file of this value once its tree was edited and its checksums were renewed."""
    tree, arrays = encode_estimator(Holder(value))
    tree["parameters"]["value"] = edit(tree["parameters"]["value"])
    write(path, tree, arrays)
    return read(path).value


def assert_same(found, expected):
    """Equal values of the same types, to the last bit and through all that they hold."""
    if type(expected).__name__ == "_RemainderColsList":  # of some releases of scikit-learn: a list that warns
        expected = expected.data
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape, found.flags.writeable) == (expected.dtype, expected.shape, True)
        if expected.dtype == object:
            for one, other in zip(found.ravel(), expected.ravel(), strict=True):
                assert_same(one, other)
        else:
            assert found.tobytes() == expected.tobytes()
            # Matrix products of another order can have other last bits.
            if min(found.shape, default=0) > 1:
                assert (np.argsort(found.strides) == np.argsort(expected.strides)).all()
    elif isinstance(expected, BaseEstimator):
        assert_same(vars(found), vars(expected))
    elif isinstance(expected, dict):
        assert_same(list(found.items()), list(expected.items()))
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, ModelState):
        assert_same([*vars(found).values()], [*vars(expected).values()])
    elif isinstance(expected, np.generic):
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, float):
        assert (repr(found), math.copysign(1, found)) == (repr(expected), math.copysign(1, expected))
    elif not isinstance(expected, np.random.RandomState):
        assert found == expected


VALUES = [
    *(None, True, False, 0, -1, 2**70, "", "größe", "\ud800", "a\0b", "\n\u2028"),
    *(0.0, -0.0, 0.1, 1e-320, 1.7976931348623157e308, math.pi, math.nan, math.inf, -math.inf),
    *(
        [],
        [[]],
        [1, 1.0, True, None],
        (),
        (1,),
        ((), [()]),
        {},
        {"a": {"b": []}},
        {1: 2, None: (3,), (1, 2): "x"},
    ),
    *(slice(None), slice(1, None, -2), slice("a", "b")),
    [0.1 * i for i in range(1000)],
    tuple(float(i) for i in range(40)),
    [math.nan, -0.0] * 20,
    [f"sensor {i}" for i in range(1000)],
    ["", "ä", "\ud800", "a\0", "\0"] * 10,
    [1.0] * 30 + [1],
    ["1"] * 30 + [1],
    list(range(100)),
    *(np.dtype("float32"), np.dtype(object), np.float64, np.int8, np.bool_),
    *(
        np.float64(0.1),
        np.float32(0.1),
        np.float16("nan"),
        np.int64(-(2**63)),
        np.uint64(2**64 - 1),
        np.bool_(True),
    ),
    np.str_("text"),
    *(np.log1p, np.sqrt),
    *(pd.Timestamp("2024-02-29 12:30:00.123456789"), pd.Timestamp("2024-07-01", tz="Europe/Berlin")),
    *(pd.Timestamp("2024-07-01T12:00+05:30").as_unit("s"), pd.Timedelta(-1, "ns"), pd.Timedelta(days=3)),
    *(pd.Interval(0.5, 2, "left"), pd.Interval(pd.Timestamp("2024"), pd.Timestamp("2025"))),
    *(pd.Period("2024-03", "M"), datetime.date(2024, 2, 29), decimal.Decimal("1.10")),
    *(pd.SparseDtype(float), pd.SparseDtype("int64", 7), pd.SparseDtype(bool, False)),
]


@pytest.mark.parametrize("name", sorted(vocabulary.ARROW_DTYPES))
def test_the_dtypes_of_pyarrow_s_columns_come_back(name, path):
    pa = pytest.importorskip("pyarrow", exc_type=ImportError)
    dtype = pd.ArrowDtype(pa.type_for_alias(name))
    assert through_a_file(dtype, path) == dtype


def test_a_column_of_pyarrow_that_cannot_be_read_says_what_to_install(path, monkeypatch):
    pa = pytest.importorskip("pyarrow", exc_type=ImportError)
    write(path, *encode_estimator(Holder(pd.ArrowDtype(pa.float64()))))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModelFileError, match="pip install pyarrow"):
        read(path)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_plain_values_come_back_exactly(value, path):
    assert_same(through_a_file(value, path), value)


ARRAYS = [
    *(np.arange(6, dtype=name).reshape(2, 3) for name in vocabulary.NUMBERS if name != "bool"),
    np.array([[True], [False]]),
    np.asfortranarray(np.random.RandomState(0).normal(size=(3, 4))),
    *(np.arange(24.0).reshape(2, 3, 4).transpose(2, 1, 0), np.arange(24.0).reshape(2, 3, 4)),
    *(np.array(3.5), np.empty(0), np.empty((0, 7)), np.empty((3, 0, 2), dtype="f4")),
    np.array([np.nan, -np.nan, np.inf, -0.0, 5e-324]),
    *(np.array(["red", "größe", ""]), np.array([["a", "bc"]]), np.array(["x"]), np.empty(0, dtype="U3")),
    *(np.array(["red", None, 1.5, np.nan, 3], dtype=object), np.array([["a"], ["b"]], dtype=object)),
    np.array([f"sensor {i}" for i in range(100)], dtype=object),
    *(np.array(None, dtype=object), np.empty((0, 2), dtype=object)),
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: f"{value.dtype}-{value.shape}")
def test_arrays_come_back_exactly(value, path):
    assert_same(through_a_file(value, path), value)


def test_an_array_of_arrays_comes_back_exactly(path):
    value = np.empty(2, dtype=object)
    value[0], value[1] = np.arange(3.0), np.arange(5.0)
    assert_same(through_a_file(value, path), value)


def test_the_first_rows_or_columns_of_an_array_keep_their_distances(path):
    table = np.arange(40.0).reshape(5, 8)
    for view in (table[:, :3], table.T[:3], table[2:4, 1:7], np.asfortranarray(table)[:2]):
        found = through_a_file(view, path)
        np.testing.assert_array_equal(found, view)
        assert found.strides == view.strides


def test_what_is_no_piece_of_memory_comes_back_as_one(path):
    table = np.arange(40.0).reshape(2, 20)
    views = (
        table[:, ::2],
        table[::-1],
        table[:, :1],
        np.broadcast_to(table[0], (3, 20)),
        table.astype(">f8"),
    )
    for view in views:
        found = through_a_file(view, path)
        np.testing.assert_array_equal(found, view)
        assert found.dtype == np.float64


def test_the_same_array_in_two_places_becomes_two(path):
    array = np.arange(3.0)
    first, second = through_a_file([array, array], path)
    first += 1
    np.testing.assert_array_equal(second, array)


def test_a_random_generator_goes_on_where_it_stood(path):
    for given in (np.random.RandomState(3), np.random.RandomState(3)):
        given.normal(size=7)  # an odd number of draws leaves a half-used pair
        found = through_a_file(given, path)
        np.testing.assert_array_equal(found.normal(size=9), given.normal(size=9))
        assert found.randint(2**31) == given.randint(2**31)


SPECS = [
    *(kind() for kind in (*LIKELIHOODS.values(), *NETWORKS.values(), *THRESHOLDS.values())),
    *(
        Gaussian(scale=0.5),
        StudentT("per_row", degrees_of_freedom=2.5),
        Conformal(0.01),
        ParetoTail(1e-4, 0.2),
    ),
    *(DenseNetwork((7, 3), "tanh", True, 0.25), ConvNetwork((4, 5, 1), (2,), strides=(3,), dense_units=())),
    ConvNetwork((4, 5, 1), (2, 3), (4, (2, 1)), "auto"),
    [Member(trimmed_fraction=0.2), Member(beta_factor=0.3)] * 2,
]


@pytest.mark.parametrize("value", SPECS, ids=lambda value: repr(value)[:40])
def test_every_specification_with_a_name_comes_back(value, path):
    assert_same(through_a_file(value, path), value)


def test_what_members_share_they_go_on_sharing(path):
    specification = Specification(DenseNetwork(), Gaussian(), 3, 2)
    states = tuple(
        ModelState(specification, np.full(5, i, "f4"), (np.zeros((2, 3), "f4"),)) for i in range(3)
    )
    found = through_a_file(states, path)
    assert_same([state.trainable for state in found], [state.trainable for state in states])
    assert found[0].specification is found[1].specification is found[2].specification
    assert_same(tuple(found[0].specification), tuple(specification))


# -- transformers ---------------------------------------------------------------------------------------
def a_table():
    rng = np.random.RandomState(0)
    X = rng.lognormal(size=(60, 4))
    X[:, 3] = 1 + rng.randint(4, size=60)
    return X


PARTS = [("a", StandardScaler(), [0]), ("b", "passthrough", slice(1, 2)), ("c", "drop", [2])]
TRANSFORMERS = {
    "StandardScaler": [StandardScaler(), StandardScaler(with_std=False)],
    "MinMaxScaler": [MinMaxScaler(), MinMaxScaler((-1, 2), clip=True)],
    "MaxAbsScaler": [MaxAbsScaler()],
    "RobustScaler": [RobustScaler(), RobustScaler(quantile_range=(10.0, 90.0))],
    "QuantileTransformer": [
        QuantileTransformer(n_quantiles=10, output_distribution="normal", random_state=0)
    ],
    "PowerTransformer": [PowerTransformer(), PowerTransformer("box-cox", standardize=False)],
    "FunctionTransformer": [FunctionTransformer(np.log1p, np.expm1), FunctionTransformer()],
    "Normalizer": [Normalizer("l1")],
    "PCA": [PCA(2), PCA(0.9, whiten=True), PCA(2, svd_solver="randomized", random_state=0)],
    "SimpleImputer": [
        SimpleImputer(),
        SimpleImputer(missing_values=1, strategy="median", add_indicator=True),
    ],
    "MissingIndicator": [MissingIndicator(missing_values=1, features="all")],
    "OneHotEncoder": [
        OneHotEncoder(sparse_output=False),
        OneHotEncoder(min_frequency=5, handle_unknown="infrequent_if_exist", drop="first"),
        OneHotEncoder(max_categories=3, dtype=np.float32),
    ],
    "OrdinalEncoder": [
        OrdinalEncoder(),
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, min_frequency=5),
    ],
    "KBinsDiscretizer": [
        KBinsDiscretizer(4, strategy="uniform", encode="onehot-dense"),
        KBinsDiscretizer(3, strategy="uniform", encode="ordinal"),
    ],
    "VarianceThreshold": [VarianceThreshold(0.5)],
    "Pipeline": [
        make_pipeline(StandardScaler(), "passthrough", PCA(2)),
        Pipeline([("a", make_pipeline(RobustScaler()))]),
    ],
    "ColumnTransformer": [
        ColumnTransformer(PARTS, remainder=MinMaxScaler()),
        ColumnTransformer([("one", OneHotEncoder(), [3])], remainder="passthrough"),
        ColumnTransformer([("mask", make_pipeline(PCA(1)), [True, True, False, False])], n_jobs=1),
    ],
}


def dense(table):
    return table.toarray() if hasattr(table, "toarray") else table


def fitted(transformer):
    return clone(transformer).fit(a_table())


def test_every_transformer_on_the_list_has_a_row():
    listed = {name for name, module in vocabulary.ESTIMATORS.items() if module.startswith("sklearn")}
    assert set(TRANSFORMERS) == listed


@pytest.mark.parametrize(
    "transformer",
    [pytest.param(t, id=f"{name}{i}") for name, some in TRANSFORMERS.items() for i, t in enumerate(some)],
)
def test_a_fitted_transformer_comes_back_and_transforms_to_the_same_bits(transformer, path):
    transformer = fitted(transformer)
    found = through_a_file(transformer, path)
    assert_same(found, transformer)
    for X in (a_table(), a_table()[:1], np.asfortranarray(a_table())):
        assert_same(dense(found.transform(X)), dense(transformer.transform(X)))
    assert_same(
        dense(clone(found).fit(a_table()).transform(a_table())), dense(transformer.transform(a_table()))
    )


@pytest.mark.parametrize(
    "transformer", [StandardScaler(), QuantileTransformer(n_quantiles=10), PCA(2), PowerTransformer()]
)
def test_a_fitted_transformer_finds_its_way_back_to_the_same_bits(transformer, path):
    transformer = fitted(transformer)
    scaled = transformer.transform(a_table())
    found = through_a_file(transformer, path)
    assert_same(found.inverse_transform(scaled), transformer.inverse_transform(scaled))


def test_transformers_of_texts_and_data_frames_come_back(path):
    X = pd.DataFrame({"size": [1.0, 2.0, 3.0], "color": ["red", "blue", "red"], "shape": ["a", None, "b"]})
    columns = ColumnTransformer(
        [("n", StandardScaler(), ["size"]), ("o", OneHotEncoder(), ["color", "shape"])], sparse_threshold=0
    ).set_output(transform="pandas")
    columns.set_params(o__sparse_output=False).fit(X)
    found = through_a_file(columns, path)
    pd.testing.assert_frame_equal(found.transform(X), columns.transform(X))
    assert list(found.get_feature_names_out()) == list(columns.get_feature_names_out())


# -- refused before writing -----------------------------------------------------------------------------
class Own(Likelihood):
    pass


class OwnNetwork(Network):
    pass


class StandardScalerOfMine(StandardScaler):
    pass


IMPOSTOR = type("StandardScaler", (BaseEstimator,), {"transform": lambda self, X: X})()

NOT_DATA = {
    "a function": (len, "is the function len"),
    "a lambda": (lambda x: x, "is the function <lambda>"),
    "a class": (dict, "is the class dict"),
    "an object": (object(), "an object of builtins.object.*joblib.dump or skops.io.dump"),
    "bytes": (b"x", "an object of builtins.bytes"),
    "a set": ({1}, "an object of builtins.set"),
    "another dictionary": (OrderedDict(), "an object of collections.OrderedDict"),
    "a complex number": (1j, "an object of builtins.complex"),
    "complex numbers": (np.array([1j]), "an array of complex128"),
    "times": (np.array(["2020"], dtype="M8[D]"), r"an array of datetime64\[D\]"),
    "long doubles": (np.zeros(2, dtype=np.longdouble), "an array of float128"),
    "a record array": (np.zeros(2, dtype="f4,i4"), "an array of"),
    "a data frame": (pd.DataFrame(), "an object of pandas"),
    "a score": (SCORES["elbo"], "an object of vae_anomaly.scoring.score.Score"),
    "a generator": (np.random.default_rng(), "an object of numpy.random"),
    "another engine": (np.random.RandomState(np.random.PCG64()), "a RandomState over PCG64"),
    "a transformer that is not listed": (
        PolynomialFeatures(),
        "PolynomialFeatures.*can hold Col.*skops.io.dump",
    ),
    "an estimator": (TSNE(), "an object of sklearn.manifold._t_sne.TSNE"),
    "a subclass": (StandardScalerOfMine(), "StandardScalerOfMine"),
    "a namesake": (IMPOSTOR, r"test_encoding.StandardScaler.*data, never code"),
    "a likelihood without a name": (Own(), "Own.*Give its class a name in LIKELIHOODS or NETWORKS"),
    "a network without a name": (
        OwnNetwork(),
        "OwnNetwork.*Give its class a name in LIKELIHOODS or NETWORKS",
    ),
    "a function of a transformer": (FunctionTransformer(np.linalg.norm), r"\.func is the function norm"),
    "an activation": (
        DenseNetwork(activation=lambda x: x),
        r"\.activation is the function <lambda>.*activation='relu'",
    ),
    "a cache": (
        Pipeline([("a", StandardScaler())], memory="/tmp/cache"),
        "Pipeline with memory='/tmp/cache'",
    ),
    "a part of a list": ([1, [2, len]], r"\[1\]\[1\] is the function len"),
    "a part of a dictionary": ({"a": {"b": len}}, r"\.a\.b is the function len"),
    "a part of an array": (np.array([1, len], dtype=object), r"\[1\] is the function len"),
}


@pytest.mark.parametrize(("value", "reason"), NOT_DATA.values(), ids=NOT_DATA)
def test_what_is_no_data_is_refused_by_its_place(value, reason):
    with pytest.raises(ModelFileError, match=f"(?s)^parameter value.*{reason}"):
        encode_estimator(Holder(value))


def test_a_fitted_attribute_that_is_no_data_is_named():
    holder = Holder(1)
    holder.found_ = [len]
    with pytest.raises(ModelFileError, match=r"^attribute found_\[0\] is the function len"):
        encode_estimator(holder)


# -- refused when read ----------------------------------------------------------------------------------
FORGERIES = {
    "a class": (1, lambda _: {"estimator": ["Popen", {"args": "true"}, {}, {}]}, "holds a 'Popen'"),
    "a dotted class": (
        1,
        lambda _: {"estimator": ["subprocess.Popen", {}, {}, {}]},
        "holds a 'subprocess.Popen'",
    ),
    "a class by number": (1, lambda _: {"estimator": [3, {}, {}, {}]}, "holds a 3"),
    "a record": (1, lambda _: {"record": ["VAEDetector", {}]}, "holds a 'VAEDetector'"),
    "a likelihood": (
        1,
        lambda _: {"likelihood": ["logistic", {}, {}, {}]},
        "'logistic', which is not known here.*import",
    ),
    "a network": (1, lambda _: {"network": ["resnet", {}, {}, {}]}, "'resnet', which is not known here"),
    "a threshold": (1, lambda _: {"threshold": ["mine", {}, {}, {}]}, "'mine', which is not known here"),
    "a kind of value": (1, lambda _: {"pickle": "gASVLg=="}, "holds a 'pickle'"),
    "a method": (1, lambda _: {"__init__": []}, "holds a '__init__'"),
    "two kinds": (1, lambda _: {"tuple": [], "dict": {}}, "describes a value by"),
    "no kind": (1, lambda _: {}, "describes a value by"),
    "a function": (1, lambda _: {"function": "load"}, "'load' is not a function"),
    "a private function": (1, lambda _: {"function": "__import__"}, "not a function"),
    "a type": (1, lambda _: {"number_type": "object_"}, "not a type of numbers"),
    "a dtype": (1, lambda _: {"dtype": "U99999999"}, "not a type of an array"),
    "an unknown parameter": (
        StandardScaler(),
        lambda node: {"estimator": ["StandardScaler", {"new": 1}, {}, {}]},
        r"parameters that StandardScaler does not have here: \['new'\].*manifest.json",
    ),
    "a method's name": (
        StandardScaler(),
        lambda node: {"estimator": ["StandardScaler", {}, {}, {"transform": 1}]},
        "'transform' is not a name of a fitted attribute",
    ),
    "a class's name": (
        StandardScaler(),
        lambda node: {"estimator": ["StandardScaler", {}, {}, {"__class__": 1}]},
        "'__class__' is not a name",
    ),
    "a parameter's name": (
        StandardScaler(),
        lambda node: {"estimator": ["StandardScaler", {"copy": True}, {}, {"copy": 1}]},
        "'copy' is not a name",
    ),
    "a cache": (
        Pipeline([("a", StandardScaler())]),
        lambda node: {"estimator": ["Pipeline", {**node["estimator"][1], "memory": "/tmp/cache"}, {}, {}]},
        "Pipeline with memory",
    ),
    "objects": (np.zeros(3), lambda node: {"array": ["|O", [3], "C", 0]}, r"array of type '\|O'"),
    "void": (np.zeros(3), lambda node: {"array": ["|V8", [3], "C", 0]}, "array of type"),
    "records": (np.zeros(3), lambda node: {"array": ["f4,f4", [3], "C", 0]}, "array of type"),
    "a huge text type": (np.zeros(3), lambda node: {"array": ["<U2000000000", [3], "C", 0]}, "array of type"),
    "wide texts": (
        np.zeros(3),
        lambda node: {"array": ["<U99999999", [3], "C", 0]},
        "24 bytes, and is to be",
    ),
    "no dtype": (np.zeros(3), lambda node: {"array": [None, [3], "C", 0]}, "array of type None"),
    "a huge shape": (
        np.zeros(3),
        lambda node: {"array": ["<f8", [10**9, 10**9], "C", 0]},
        "24 bytes, and is to be",
    ),
    "a wrong shape": (np.zeros(3), lambda node: {"array": ["<f8", [2], "C", 0]}, "24 bytes, and is to be"),
    "an empty huge shape": (
        np.zeros(0),
        lambda node: {"array": ["<f8", [0, 10**30], "C", 0]},
        "not what it says",
    ),
    "many sides": (np.zeros(1), lambda node: {"array": ["<f8", [1] * 100, "C", 0]}, "not what it says"),
    "a negative shape": (np.zeros(3), lambda node: {"array": ["<f8", [-1, -3], "C", 0]}, "not a shape"),
    "a broken shape": (np.zeros(3), lambda node: {"array": ["<f8", [1.5, 2], "C", 0]}, "not a shape"),
    "a true shape": (np.zeros(1), lambda node: {"array": ["<f8", [True], "C", 0]}, "not a shape"),
    "another array": (np.zeros(3), lambda node: {"array": ["<f8", [3], "C", 7]}, "'arrays/7' is missing"),
    "another part": (
        np.zeros(3),
        lambda node: {"array": ["<f8", [3], "C", "../detector.json"]},
        "is missing",
    ),
    "an array twice": (np.zeros(3), lambda node: [node, node], "'arrays/0' is used twice"),
    "an array never": (np.zeros(3), lambda node: 1, "parts without a use, such as 'arrays/0'"),
    "impossible text": (np.full(2, -1, "i4"), lambda node: {"array": ["<U2", [1], "C", 0]}, "not a text"),
    "too few objects": (1, lambda _: {"objects": [[10**12], [1, 2]]}, "2 objects for an array"),
    "texts of other lengths": (
        ["ab"] * 20,
        lambda node: {"texts": node["texts"][::-1]},
        "a list that is not an array of int64",
    ),
    "negative lengths": (
        [np.array([3, -1, 2]), np.zeros(4, "u1")],
        lambda node: {"texts": node},
        "texts are shorter or longer",
    ),
    "lengths beyond the texts": (
        [np.array([2, 3]), np.zeros(4, "u1")],
        lambda node: {"texts": node},
        "texts are shorter or longer",
    ),
    "texts that are none": (
        [np.array([2]), np.full(2, 255, "u1")],
        lambda node: {"texts": node},
        "not what it says it is .UnicodeDecodeError",
    ),
    "small numbers that grow to lists": (
        np.zeros(10**5, "i1"),
        lambda node: {"floats": node},
        "a list that is not an array of float64",
    ),
    "a plain value of another class": (1, lambda _: {"plain": ["Popen", ["true"]]}, "holds a 'Popen'"),
    "a date that is none": (1, lambda _: {"plain": ["date", ["2024-02-31"]]}, "not what it says"),
    "a type of pyarrow": (1, lambda _: {"arrow_dtype": "extension"}, "not a type of a column of pyarrow"),
    "a sparse type": (1, lambda _: {"sparse_dtype": ["object", 0]}, "not a type of numbers"),
    "a shared object to come": (1, lambda _: {"shared": 0}, "refers to object 0 before"),
    "another float": (1, lambda _: {"float": "1e999999"}, "not what it says"),
    "a random position": (
        np.random.RandomState(0),
        lambda node: {"RandomState": [node["RandomState"][0], 10**9, 0, 0.0]},
        "impossible state",
    ),
    "a negative random position": (
        np.random.RandomState(0),
        lambda node: {"RandomState": [node["RandomState"][0], -1, 0, 0.0]},
        "impossible state",
    ),
    "a random generator without a state": (
        np.zeros(3, "u4"),
        lambda node: {"RandomState": [node, 0, 0, 0.0]},
        "impossible state",
    ),
    "a dictionary of lists": (1, lambda _: {"items": [[[1], 2]]}, "not what it says"),
    "a tuple of nothing": (1, lambda _: {"tuple": None}, "not what it says"),
    "a transformer of nothing": (1, lambda _: {"estimator": None}, "not what it says"),
}


@pytest.mark.parametrize(("value", "edit", "reason"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_file_with_right_checksums_is_refused(value, edit, reason, path):
    with pytest.raises(ModelFileError, match=reason) as raised:
        forged(value, path, edit)
    assert "\n" not in str(raised.value)


def test_a_parameter_at_its_default_that_is_not_known_here_is_left_out(path):
    def edit(node):
        name, given, defaults, fitted = node["estimator"]
        assert (given, set(defaults)) == ({"with_std": False}, {"copy", "with_mean"})
        return {"estimator": [name, given, {**defaults, "new": None}, fitted]}

    scaler = StandardScaler(with_std=False).fit(a_table())
    assert_same(forged(scaler, path, edit), scaler)


@pytest.mark.parametrize(
    ("value", "factor"),
    [
        pytest.param(np.zeros(10**6), 1.1, id="array"),
        pytest.param([0.5] * 10**5, 10, id="floats"),
        pytest.param(["ab"] * 10**5, 20, id="texts"),
        pytest.param([""] * 10**5, 20, id="empty texts"),
        pytest.param(np.array(["ä"] * 10**5, dtype=object), 20, id="objects"),
    ],
)
def test_reading_takes_memory_in_proportion_to_the_file(value, factor, path):
    write(path, *encode_estimator(Holder(value)))
    tracemalloc.start()
    read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < factor * path.stat().st_size + 2**22


@pytest.mark.parametrize("tree", [None, [], {}, {"class": "Holder"}, "Holder"])
def test_a_description_of_nothing_is_refused(tree, path):
    write(path, tree, [])
    with pytest.raises(ModelFileError, match="describes no detector"):
        read(path)


def test_a_file_of_another_class_is_refused(path):
    write(path, *encode_estimator(StandardScaler()))
    with pytest.raises(ModelFileError, match="holds a 'StandardScaler', which this release does not know"):
        read(path)


def test_the_tables_name_classes_of_scikit_learn_and_of_modules_below():
    for name, module in {**vocabulary.ESTIMATORS, **vocabulary.RECORDS}.items():
        assert module.split(".")[0] in {"sklearn", "vae_anomaly"}
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_the_tree_is_json_that_a_person_can_read():
    tree, arrays = encode_estimator(Holder(make_pipeline(StandardScaler()).fit(a_table())))
    text = json.dumps(tree)
    assert '"StandardScaler"' in text
    assert '"mean_": {"array": ["<f8", [4], "C", ' in text
    assert all(array.dtype == np.uint8 and array.ndim == 1 for array in arrays)
