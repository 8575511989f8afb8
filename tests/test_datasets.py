"""Problems with known anomalies."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from vae_anomaly.datasets import load_tumors, make_anomalies


def test_tumors_are_benign_rows_and_the_share_of_malignant_ones():
    X, y = load_tumors(contamination=0.1)
    assert X.shape == (397, 30)
    assert y.sum() == 40
    assert list(X.index) == list(y.index)
    assert not X.isna().any().any()


def test_tumors_are_the_same_for_the_same_seed_only():
    first, again, other = (load_tumors(random_state=seed)[0] for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.index.equals(other.index)


@pytest.mark.parametrize("contamination", [-0.1, 0.38, 1.0])
def test_an_impossible_share_is_refused(contamination):
    with pytest.raises(ValueError, match=r"\[0, 0.37\]"):
        load_tumors(contamination)


@pytest.mark.parametrize("kind", ["local", "cluster", "global", "dependency"])
def test_generated_problems_have_the_asked_shape_and_share(kind):
    X, y = make_anomalies(400, 5, kind=kind, contamination=0.1, n_irrelevant=2, random_state=0)
    assert X.shape == (400, 7)
    assert y.sum() == 40
    again, _ = make_anomalies(400, 5, kind=kind, contamination=0.1, n_irrelevant=2, random_state=0)
    np.testing.assert_array_equal(X, again)


def test_irrelevant_features_tell_nothing():
    X, y = make_anomalies(4000, 3, kind="global", contamination=0.3, n_irrelevant=1, random_state=0)
    assert ks_2samp(X[y == 1, 3], X[y == 0, 3]).pvalue > 0.01


def test_dependency_anomalies_have_normal_marginals_and_lost_correlations():
    X, y = make_anomalies(20000, 4, kind="dependency", contamination=0.5, random_state=0)
    for feature in X.T:
        assert ks_2samp(feature[y == 1], feature[y == 0]).pvalue > 0.001
    correlation = np.corrcoef(X[y == 1].T) - np.eye(4)
    assert np.abs(correlation).max() < 0.05
    assert np.abs(np.corrcoef(X[y == 0].T) - np.eye(4)).max() > 0.2


def test_local_anomalies_are_wider_and_global_ones_fill_the_range():
    X, y = make_anomalies(4000, 4, kind="local", contamination=0.5, random_state=0)
    assert (X[y == 1].std(axis=0) > X[y == 0].std(axis=0)).all()
    X, y = make_anomalies(4000, 4, kind="global", contamination=0.5, random_state=0)
    np.testing.assert_allclose(np.ptp(X[y == 1], axis=0), 1.1 * np.ptp(X[y == 0], axis=0), rtol=0.02)


def test_cluster_anomalies_stand_together_outside_the_bulk():
    X, y = make_anomalies(1000, 4, kind="cluster", random_state=0)
    distance = np.linalg.norm((X - X[y == 0].mean(axis=0)) / X[y == 0].std(axis=0), axis=1)
    assert distance[y == 1].min() > np.quantile(distance[y == 0], 0.99)
    assert X[y == 1].std(axis=0).max() < 0.5


@pytest.mark.parametrize(
    ("settings", "message"), [({"kind": "odd"}, "kind"), ({"contamination": 1}, r"\[0, 1\)")]
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_anomalies(**settings)


def test_a_table_without_a_normal_row_is_refused():
    with pytest.raises(ValueError, match="n_samples=4 and contamination=0.9 leave no normal row"):
        make_anomalies(4, 3, kind="cluster", contamination=0.9)
