"""Scorers know which label is the anomaly."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import GridSearchCV

from vae_anomaly.scorers import AnomalyScorer, average_precision, roc_auc


@pytest.fixture(scope="module")
def fitted(table):
    from vae_anomaly import VAEDetector

    return VAEDetector(epochs=100, random_state=0).fit(table[0])


LABELS = {
    "0 and 1": (lambda y: y, "auto"),
    "-1 and 1": (lambda y: np.where(y == 1, -1, 1), "auto"),
    "booleans": (lambda y: y.astype(bool), "auto"),
    "floats": (lambda y: y.astype(float), "auto"),
    "strings": (lambda y: np.where(y == 1, "fraud", "honest"), "fraud"),
    "1 and 2": (lambda y: y + 1, 2),
}


@pytest.mark.parametrize(("relabel", "anomaly_label"), LABELS.values(), ids=LABELS)
def test_every_convention_of_labels_gives_the_same_score(fitted, table, relabel, anomaly_label):
    X, y = table
    expected = roc_auc_score(y, -fitted.score_samples(X))
    assert AnomalyScorer(roc_auc_score, anomaly_label)(fitted, X, relabel(y)) == expected
    assert expected > 0.8


def test_ready_made_scorers_are_scikit_learns_metrics(fitted, table):
    X, y = table
    scores = -fitted.decision_function(X)
    assert roc_auc(fitted, X, y) == roc_auc_score(y, scores)
    assert average_precision(fitted, X, y) == average_precision_score(y, scores)
    assert type(roc_auc(fitted, X, y)) is float


@pytest.mark.parametrize(
    ("labels", "anomaly_label", "message"),
    [
        (["a", "b"], "auto", r"cannot tell which of the labels \['a', 'b'\]"),
        ([1, 2], "auto", "cannot tell"),
        ([0, 0], "auto", r"two classes.*received \[0\]"),
        ([0, 1, 2], "auto", "two classes"),
        (["a", "b"], "c", "'c' is none of the labels"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(fitted, table, labels, anomaly_label, message):
    y = np.resize(labels, len(table[1]))
    with pytest.raises(ValueError, match=message):
        AnomalyScorer(roc_auc_score, anomaly_label)(fitted, table[0], y)


def test_a_grid_search_with_a_scorer_prefers_the_better_detector(table, small_detector):
    X, y = table
    search = GridSearchCV(small_detector, {"epochs": [1, 60]}, scoring=roc_auc, cv=3).fit(X, y)
    assert search.best_params_ == {"epochs": 60}


def test_the_repr_says_what_it_measures():
    assert repr(roc_auc) == "AnomalyScorer(roc_auc_score, anomaly_label='auto')"
