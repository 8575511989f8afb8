"""Explanations: shares of the features that sum to the score, in the owner's columns."""

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import stars, wide
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, OneHotEncoder, StandardScaler

from vae_anomaly import ConvNetwork, VAEDetector
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.explanations import explain, origins, spread_rest
from vae_anomaly.posteriors.gaussian import kl_divergence
from vae_anomaly.preprocessing import DatetimeFeatures
from vae_anomaly.scoring import SCORES
from vae_anomaly.scoring.score import Score


def test_shares_sum_to_the_score_and_differ_as_the_terms():
    rng = np.random.RandomState(0)
    terms, scores = rng.normal(size=(5, 3)), rng.normal(size=5)
    shares = spread_rest(terms, scores)
    np.testing.assert_allclose(shares.sum(axis=1), scores, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(shares - shares[:, :1], terms - terms[:, :1], atol=1e-14)


def test_shares_are_the_features_log_densities_and_an_equal_part_of_the_kl(table):
    X, _ = table
    detector = VAEDetector(epochs=2, score="elbo", random_state=0).fit(X)
    rows = detector.scaler_.transform(X).astype("f4")
    vae = detector.model_
    inferred = vae.infer(rows, detector.draws_[:, None])
    terms = -np.mean(vae.likelihood.log_prob(rows, inferred.parameters), axis=0)
    kl = np.sum(kl_divergence(*inferred.context), axis=1)
    np.testing.assert_allclose(detector.explain(X), terms + kl[:, None] / 6, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("score", "n_draws"),
    [
        (pytest.param if n_draws == 10 or score == "elbo" else wide)(score, n_draws)
        for score in SCORES
        for n_draws in (1, 10, 100)
    ],
)
def test_shares_of_every_score_sum_to_it(score, n_draws, table):
    X, _ = table
    detector = VAEDetector(epochs=2, score=score, n_draws=n_draws, random_state=0).fit(X)
    new = X[:50] * 3
    shares = detector.explain(new)
    assert shares.shape == new.shape
    np.testing.assert_allclose(shares.sum(axis=1), -detector.score_samples(new), rtol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"likelihood": "student_t"},
        wide({"likelihood": "bernoulli", "scaler": MinMaxScaler()}),
        {"members": [Member(), Member(trimmed_fraction=0.2)]},
        {"scaler": None},
    ],
)
def test_shares_of_every_model_sum_to_the_score(settings, table):
    X, _ = table
    detector = VAEDetector(epochs=2, random_state=0, **settings).fit(X)
    np.testing.assert_allclose(detector.explain(X).sum(axis=1), -detector.score_samples(X), rtol=1e-12)


@pytest.mark.parametrize("score", stars({score: score for score in SCORES}, {"elbo", "reconstruction_error"}))
def test_the_spoiled_feature_has_the_largest_share(score):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(1000, 2)) @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(1000, 6))
    detector = VAEDetector(epochs=30, score=score, latent_dim=2, random_state=0).fit(X)
    for feature in range(6):
        spoiled = X[:50].copy()
        spoiled[:, feature] += 4 * X[:, feature].std()
        assert (detector.explain(spoiled).argmax(axis=1) == feature).mean() > 0.8


@pytest.mark.narrow_tiles
def test_explanations_do_not_depend_on_the_other_rows(table, small_detector):
    X, _ = table
    detector = small_detector.fit(X)
    whole = detector.explain(X)
    for rows in (slice(0, 1), slice(3, 90), slice(None, None, -1)):
        np.testing.assert_array_equal(detector.explain(X[rows]), whole[rows])


def test_a_data_frame_is_explained_in_its_columns(table, small_detector):
    X = pd.DataFrame(table[0]).add_prefix("sensor ").set_index(np.arange(500) + 7)
    shares = small_detector.fit(X).explain(X[:9])
    assert list(shares.columns) == list(X.columns)
    assert list(shares.index) == list(range(7, 16))


def test_images_are_explained_pixel_by_pixel():
    images = np.random.RandomState(0).uniform(size=(30, 4, 5))
    network = ConvNetwork(filters=(2,), dense_units=(4,))
    detector = VAEDetector(network, epochs=1, members=1, random_state=0).fit(images)
    shares = detector.explain(images)
    assert shares.shape == images.shape
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), -detector.score_samples(images), rtol=1e-12)


def test_a_score_of_ones_own_explains_itself_if_it_says_how():
    def worst(vae, x, inferred):
        return -keras.ops.min(vae.likelihood.log_prob(x, inferred.parameters), axis=-1)

    def squares(vae, x, inferred):
        return keras.ops.square(x - inferred.parameters[0])

    def total(vae, x, inferred):
        return keras.ops.sum(squares(vae, x, inferred), axis=-1)

    def mean(values, kl):
        return keras.ops.mean(values, axis=0)

    X = np.random.RandomState(0).normal(size=(60, 3))
    detector = VAEDetector(epochs=2, score=Score(worst, mean), random_state=0).fit(X)
    with pytest.raises(ValueError, match="per_feature"):
        detector.explain(X)
    detector = VAEDetector(epochs=2, score=Score(total, mean, squares), random_state=0).fit(X)
    np.testing.assert_allclose(detector.explain(X).sum(axis=1), -detector.score_samples(X), rtol=1e-12)


# -- the owner's columns --------------------------------------------------------------------------------
@pytest.fixture
def mixed():
    rng = np.random.RandomState(0)
    return pd.DataFrame(
        {
            "size": rng.normal(size=200),
            "color": rng.choice(["red", "green", "blue"], 200),
            "weight": rng.normal(size=200),
            "shape": rng.choice(["round", "square"], 200),
        }
    )


def columns_of(transformer, X):
    transformer.fit(X)
    return [X.columns[position] for position in origins(transformer, np.asarray(X.columns))]


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (OneHotEncoder(), ["color"] * 3 + ["shape"] * 2),
        (OneHotEncoder(drop="first"), ["color"] * 2 + ["shape"]),
        (OneHotEncoder(drop="if_binary"), ["color"] * 3 + ["shape"]),
        (OneHotEncoder(min_frequency=0.34), ["color"] * 2 + ["shape"] * 2),
    ],
)
def test_categories_belong_to_their_column(encoder, expected, mixed):
    made = columns_of(encoder, mixed[["color", "shape"]])
    assert len(made) == len(encoder.get_feature_names_out())
    if encoder.min_frequency is None:
        assert made == expected


@pytest.mark.parametrize("remainder", ["passthrough", "drop", StandardScaler()])
def test_a_column_transformer_is_traced_through_its_parts(remainder, mixed):
    mixed["height"] = mixed["size"] ** 2
    parts = [
        ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["weight", "size"]),
        ("categories", OneHotEncoder(), ["shape", "color"]),
    ]
    made = columns_of(ColumnTransformer(parts, remainder=remainder), mixed)
    expected = ["weight", "size", *["shape"] * 2, *["color"] * 3]
    assert made == expected + ([] if remainder == "drop" else ["height"])


@pytest.mark.parametrize("columns", [[0, 2], slice(0, 3, 2), [True, False, True, False], ["size", "weight"]])
def test_columns_may_be_chosen_in_every_way(columns, mixed):
    transformer = ColumnTransformer([("numbers", StandardScaler(), columns)])
    assert columns_of(transformer, mixed) == ["size", "weight"]


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (slice("weight", "size"), ["size", "kind", "price", "weight"][::-1]),
        (slice(np.int64(1), np.int64(3)), ["size", "kind", "price", "weight"]),
        (slice(0, 2), [10, 11, 12, 13]),
    ],
    ids=["names", "numpy", "labels"],
)
def test_a_slice_of_columns_is_what_scikit_learn_takes_it_for(columns, names):
    X = pd.DataFrame(np.random.RandomState(0).normal(size=(20, 4)), columns=names)
    transformer = ColumnTransformer([("scaled", StandardScaler(), columns)]).fit(X)
    taken = transformer.transform(X) * transformer.named_transformers_["scaled"].scale_
    found = origins(transformer, X.columns.to_numpy())
    np.testing.assert_allclose(taken, (X - X.mean()).to_numpy()[:, found])


def test_a_selection_is_traced_by_name():
    X = np.c_[np.ones(9), np.arange(9), np.arange(9) ** 2]
    selector = VarianceThreshold().fit(X)
    assert origins(selector, np.array(["x0", "x1", "x2"])) == [1, 2]


@pytest.mark.parametrize("transformer", [PCA(2), FunctionTransformer()])
def test_a_transformer_that_does_not_name_its_sources_is_refused(transformer, table):
    X = table[0]
    pipeline = make_pipeline(transformer, VAEDetector(epochs=1, random_state=0)).fit(X)
    with pytest.raises(ValueError, match=f"{type(transformer).__name__} does not say which column"):
        explain(pipeline, X)


def test_a_pipeline_is_explained_in_the_columns_it_receives(mixed):
    transformer = make_column_transformer(
        (StandardScaler(), ["size", "weight"]), (OneHotEncoder(), ["color", "shape"])
    )
    pipeline = make_pipeline(transformer, VAEDetector(epochs=3, scaler=None, random_state=0)).fit(mixed)
    spoiled = mixed[:20].assign(weight=30.0)
    shares = explain(pipeline, spoiled)
    assert list(shares.columns) == list(mixed.columns)
    np.testing.assert_allclose(shares.sum(axis=1), -pipeline.score_samples(spoiled), rtol=1e-12)
    assert (shares.idxmax(axis=1) == "weight").all()


def test_a_pipeline_of_a_detector_alone_and_of_arrays(table):
    X, _ = table
    pipeline = make_pipeline(VAEDetector(epochs=1, random_state=0)).fit(X)
    np.testing.assert_allclose(explain(pipeline, X), pipeline[-1].explain(X))
    np.testing.assert_array_equal(explain(pipeline[-1], X), explain(pipeline, X))


def test_a_search_is_explained_by_its_best_estimator(table):
    X, _ = table
    pipeline = make_pipeline(StandardScaler(), VAEDetector(epochs=1, random_state=0))
    search = GridSearchCV(pipeline, {"vaedetector__latent_dim": [2, 3]}, cv=2)
    search.fit(X)
    np.testing.assert_array_equal(explain(search, X), explain(search.best_estimator_, X))


def test_a_pipeline_without_a_detector_is_refused(table):
    with pytest.raises(TypeError, match="last step is a VAEDetector"):
        explain(make_pipeline(StandardScaler()).fit(table[0]), table[0])


def test_images_are_explained_by_a_pipeline_of_a_detector_alone():
    images = np.random.RandomState(0).uniform(size=(30, 4, 4))
    detector = VAEDetector(epochs=1, random_state=0)
    pipeline = make_pipeline(detector).fit(images)
    np.testing.assert_array_equal(explain(pipeline, images), pipeline[-1].explain(images))
    pipeline = make_pipeline(FunctionTransformer(), detector).fit(images)
    with pytest.raises(ValueError, match=r"images of shape \(4, 4\)"):
        explain(pipeline, images)


def test_columns_may_be_chosen_by_the_names_that_an_earlier_step_gives():
    days = pd.date_range("2024-01-01", periods=60, freq="7h")
    X = pd.DataFrame({"when": days, "size": np.random.RandomState(0).normal(size=60)})
    columns = ColumnTransformer([("day", StandardScaler(), ["when_day_sin"])], remainder="passthrough")
    pipeline = make_pipeline(DatetimeFeatures().set_output(transform="pandas"), columns).fit(X)
    made = columns_of(pipeline, X)
    names = [name.split("__")[1] for name in pipeline.get_feature_names_out()]
    assert made == ["size" if name == "size" else "when" for name in names]
    assert set(made) == {"when", "size"}


def test_the_detectors_own_scaler_is_traced_too(table):
    X = pd.DataFrame(table[0]).add_prefix("column ")
    scaler = make_column_transformer((StandardScaler(), [5, 0]), remainder="passthrough")
    detector = VAEDetector(epochs=2, scaler=scaler, random_state=0).fit(X)
    spoiled = X[:20].copy()
    spoiled["column 5"] = 40.0
    shares = detector.explain(spoiled)
    assert (shares.idxmax(axis=1) == "column 5").all()
    mixing = VAEDetector(epochs=1, scaler=PCA(3), random_state=0).fit(X)
    with pytest.raises(ValueError, match="PCA does not say"):
        mixing.explain(X)


# -- confidence -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings", [{}, wide({"members": 4}), {"members": 4, "n_draws": 1}, wide({"score": "iwae"})]
)
def test_confidence_is_least_at_the_border(settings, table):
    X, _ = table
    detector = VAEDetector(epochs=5, random_state=0, **settings).fit(X)
    confidence = detector.confidence(X)
    assert ((confidence >= 0.5) & (confidence <= 1)).all()
    distance = np.abs(detector.decision_function(X))
    nearest = np.argsort(distance)[:25]
    assert confidence[nearest].mean() < confidence.mean()
    assert detector.confidence(X[:1] + 100) > 0.99


def test_confidence_is_how_often_other_draws_agree(table):
    X, _ = table
    detector = VAEDetector(epochs=5, n_draws=10, random_state=0).fit(X)
    confidence, labels = detector.confidence(X), detector.predict(X)
    agreed = np.zeros(len(X))
    own = detector.draws_
    for seed in range(200):
        detector.draws_ = np.random.RandomState(seed).standard_normal(own.shape).astype("f4")
        agreed += detector.predict(X) == labels
    detector.draws_ = own
    unsure = confidence < 0.95
    assert unsure.sum() > 5
    assert agreed[unsure].mean() / 200 == pytest.approx(confidence[unsure].mean(), abs=0.15)
    assert agreed[~unsure].mean() / 200 > 0.95


def test_one_draw_of_one_member_has_no_confidence(table):
    detector = VAEDetector(epochs=1, n_draws=1, random_state=0).fit(table[0])
    with pytest.raises(ValueError, match="several draws or members"):
        detector.confidence(table[0])
