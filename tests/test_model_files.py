"""Files of every release: they load, and find what they found on the day they were written."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vae_anomaly
from vae_anomaly.monitoring import Evidence, Monitor

FOLDER = Path(__file__).parent / "model_files"
RELEASES = sorted(path for path in FOLDER.iterdir() if path.is_dir() and not path.name.startswith("_"))
FILES = [path for release in RELEASES for path in sorted(release.glob("*.vae"))]


@pytest.fixture(scope="module")
def made():
    """The script that wrote the files: it makes the rows that they are asked for."""
    specification = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_this_release_has_a_file_of_each_kind(made):
    assert {path.stem for path in (FOLDER / vae_anomaly.__version__).glob("*.vae")} == {*made.DETECTORS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_file_scores_as_on_the_day_it_was_written(made, path):
    rows, _ = made.DETECTORS[path.stem]
    detector = vae_anomaly.load(path)
    with np.load(path.with_name("decision_functions.npz")) as written:
        expected = written[path.stem]
    # Other processors add float32 numbers in another order.
    np.testing.assert_allclose(detector.decision_function(rows()), expected, rtol=1e-4, atol=1e-4)
    clear = np.abs(expected) > 1e-3
    np.testing.assert_array_equal(detector.predict(rows())[clear], np.where(expected < 0, -1, 1)[clear])


@pytest.mark.wide
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_loaded_detector_can_be_fitted_again(made, path):
    rows, _ = made.DETECTORS[path.stem]
    detector = vae_anomaly.load(path)
    before = detector.score_samples(rows())
    after = detector.fit(rows()).score_samples(rows())
    assert np.corrcoef(before, after)[0, 1] > 0.99


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_a_monitor_goes_on_as_on_the_day_it_was_written(made, release):
    rows, _ = made.DETECTORS["ensemble"]
    monitor = Monitor.load(release / "ensemble.monitor", vae_anomaly.load(release / "ensemble.vae"))
    found = monitor.update(rows()[1::2])
    expected = Evidence(**json.loads((release / "evidence.json").read_text()))
    # On other processors, rows that score nearly alike may change places.
    assert [found.drift, found.anomalies] == pytest.approx([expected.drift, expected.anomalies], rel=0.05)
    assert replace(found, drift=expected.drift, anomalies=expected.anomalies) == expected
