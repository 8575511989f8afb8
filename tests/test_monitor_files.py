"""Monitors in files: a monitor that was saved and loaded goes on as one that was not."""

import errno
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from conftest import Calibrated
from sklearn.exceptions import NotFittedError

from vae_anomaly import DenseNetwork, ModelFileError, VAEDetector, load
from vae_anomaly.checkpoints import Checkpoint
from vae_anomaly.files import archive, state_file
from vae_anomaly.files.kinds import CHECKPOINT, MONITOR
from vae_anomaly.monitoring import Monitor

SETTINGS = {"network": DenseNetwork((4,)), "epochs": 1, "n_draws": 1, "members": 1, "random_state": 0}


@pytest.fixture(scope="module")
def rows():
    return np.random.RandomState(0).normal(size=(300, 3))


@pytest.fixture(scope="module")
def detector(rows):
    """Fitted, and shared: tests copy it before they change it."""
    return VAEDetector(calibration=0.5, **SETTINGS).fit(rows[:100])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stream.monitor"


@pytest.fixture(scope="module")
def calibrated():
    """A detector whose rows are their scores."""
    return Calibrated(np.random.RandomState(0).gumbel(size=200))


@pytest.fixture(scope="module")
def data(calibrated):
    """The bytes of a monitor's file."""
    return saved(watched(calibrated, np.random.RandomState(1).gumbel(size=50)))


def watched(detector, *batches, **settings):
    monitor = Monitor(detector, **{"random_state": 0, **settings})
    for batch in batches:
        monitor.update(batch)
    return monitor


def saved(monitor):
    file = io.BytesIO()
    monitor.save(file)
    return file.getvalue()


def reloaded(monitor):
    return Monitor.load(io.BytesIO(saved(monitor)), monitor.detector)


def assert_same_course(found, expected, batches):
    """The same evidence after each batch, and the same state at the end, to the last bit."""
    assert found.evidence == expected.evidence
    for batch in batches:
        assert found.update(batch) == expected.update(batch)
    np.testing.assert_array_equal(found._known, expected._known)
    np.testing.assert_array_equal(found._rng.random_sample(3), expected._rng.random_sample(3))


# -- going on -------------------------------------------------------------------------------------------
def stream(name):
    """Batches of scores, in which something happens sooner or later."""
    rng = np.random.RandomState(2)
    batches = [rng.gumbel(size=size) for size in (30, 700, 1, 0, 90)]
    if name == "drift":
        batches[1:] = [batch + 2 for batch in batches[1:]]
    elif name == "a drift that ends":
        batches[1] += 2
    elif name == "anomalies":
        batches[1][::10] = 50.0
    elif name == "ties":
        batches = [np.round(batch) for batch in batches]
    elif name == "infinite scores":
        batches[1][::20], batches[4][:2] = np.inf, -np.inf
    return batches


STREAMS = ["no change", "drift", "a drift that ends", "anomalies", "ties", "infinite scores"]


@pytest.mark.parametrize("n_before", range(5))
@pytest.mark.parametrize("name", STREAMS)
def test_a_loaded_monitor_goes_on_to_the_same_bits_wherever_it_stopped(name, n_before, calibrated):
    batches = stream(name)
    expected = watched(calibrated, *batches[:n_before])
    assert_same_course(reloaded(expected), expected, batches[n_before:])


def test_the_streams_raise_the_alarms_that_they_are_named_after(calibrated):
    found = {name: watched(calibrated, *stream(name)).evidence for name in STREAMS}
    assert {name for name in STREAMS if found[name].drifted} >= {"drift", "a drift that ends"}
    assert found["anomalies"].more_anomalies
    assert not found["no change"].drifted


@pytest.mark.parametrize("rate", [0.3, 1e-6, np.float32(0.01), Fraction(1, 3)], ids=repr)
def test_every_false_alarm_rate_comes_back(rate, calibrated):
    expected = watched(calibrated, *stream("drift")[:2], false_alarm_rate=rate)
    found = reloaded(expected)
    assert found.false_alarm_rate == expected.false_alarm_rate == float(rate)
    assert_same_course(found, expected, stream("drift")[2:])


@pytest.mark.parametrize("random_state", [None, 5, "a generator"])
def test_ties_are_broken_by_the_generator_as_it_stood(random_state, calibrated):
    if random_state == "a generator":
        random_state = np.random.RandomState(7)
        random_state.normal()  # half of a pair is kept
    batches = stream("ties")
    expected = watched(calibrated, *batches[:2], random_state=random_state)
    assert_same_course(reloaded(expected), expected, batches[2:])


def test_a_loaded_monitor_has_a_generator_of_its_own(calibrated):
    loaded, again = (reloaded(watched(calibrated, random_state=None)) for _ in range(2))
    state = np.random.get_state()[1].copy()
    assert loaded.update(stream("ties")[1]) == again.update(stream("ties")[1])
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_infinite_evidence_is_infinite_again():
    expected = watched(Calibrated(np.arange(5.0)), np.arange(10.0, 30_000.0))
    found = reloaded(expected)
    assert found.evidence.drift == np.inf
    assert_same_course(found, expected, [np.zeros(100)])


def test_a_monitor_can_be_saved_after_each_batch(calibrated):
    expected = watched(calibrated, *stream("drift"))
    found = watched(calibrated)
    for batch in stream("drift"):
        found = reloaded(found)
        found.update(batch)
    assert_same_course(found, expected, [])


def test_saving_changes_nothing_and_makes_the_same_bytes_again(calibrated):
    monitor = watched(calibrated, *stream("ties")[:2])
    first = saved(monitor)
    assert saved(monitor) == first
    assert saved(Monitor.load(io.BytesIO(first), calibrated)) == first
    assert_same_course(monitor, watched(calibrated, *stream("ties")[:2]), stream("ties")[2:])


def test_a_monitor_goes_on_with_its_detector_out_of_a_file(detector, rows, tmp_path):
    monitor = watched(detector, rows[100:150])
    detector.save(tmp_path / "model.vae")
    monitor.save(tmp_path / "stream.monitor")
    found = Monitor.load(tmp_path / "stream.monitor", load(tmp_path / "model.vae"))
    assert_same_course(found, monitor, [2 * rows[150:200], rows[200:]])


IN_A_FRESH_PROCESS = """
import sys
import numpy as np, vae_anomaly
from vae_anomaly.monitoring import Monitor
folder = sys.argv[1]
monitor = Monitor.load(f"{folder}/stream.monitor", vae_anomaly.load(f"{folder}/model.vae"))
assert not {"tensorflow", "keras"} & set(sys.modules)
monitor.update(np.load(f"{folder}/rows.npy"))
monitor.save(f"{folder}/stream.monitor")
"""


@pytest.mark.wide
def test_a_fresh_process_with_the_saved_detector_goes_on_to_the_same_bits(detector, rows, tmp_path):
    monitor = watched(detector, rows[100:150])
    detector.save(tmp_path / "model.vae")
    monitor.save(tmp_path / "stream.monitor")
    np.save(tmp_path / "rows.npy", 2 * rows[150:200])
    command = [sys.executable, "-W", "error", "-c", IN_A_FRESH_PROCESS, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    monitor.update(2 * rows[150:200])
    assert_same_course(Monitor.load(tmp_path / "stream.monitor", detector), monitor, [rows[200:]])


# -- the detector ---------------------------------------------------------------------------------------
OTHERS = {
    "another seed": ({"random_state": 1}, r"as many calibration scores \(50\), but others"),
    "another score": ({"score": "reconstruction_error"}, r"as many .*another fit or another score"),
    "other rows held out": ({"calibration": 0.3}, "30 calibration scores in the place of 50"),
}


@pytest.mark.parametrize(("settings", "difference"), OTHERS.values(), ids=OTHERS)
def test_another_detector_is_refused_with_what_differs_and_what_to_do(settings, difference, detector, rows):
    other = VAEDetector(**{**SETTINGS, "calibration": 0.5, **settings}).fit(rows[:100])
    file = io.BytesIO(saved(watched(detector, rows[100:])))
    with pytest.raises(ValueError, match=rf"{difference}.*VAEDetector\.save.*Monitor\(detector\)") as caught:
        Monitor.load(file, other)
    assert not isinstance(caught.value, ModelFileError)  # nothing is wrong with the file


def test_what_does_not_act_on_the_scores_may_differ(detector, rows):
    other = VAEDetector(calibration=0.5, threshold="median_deviation", **SETTINGS).fit(rows[:100])
    monitor = watched(detector, rows[100:150])
    found = Monitor.load(io.BytesIO(saved(monitor)), other)
    assert_same_course(found, monitor, [rows[150:]])


def test_a_monitor_whose_detector_has_been_fitted_again_is_not_saved(rows, path):
    detector = VAEDetector(calibration=0.5, **SETTINGS).fit(rows[:100])
    monitor = watched(detector, rows[100:])
    monitor.save(path)
    before = path.read_bytes()
    detector.fit(rows[:90])
    with pytest.raises(ValueError, match="45 calibration scores in the place of 50"):
        monitor.save(path)
    assert path.read_bytes() == before


def test_a_detector_that_no_monitor_can_have_is_refused_as_by_a_new_monitor(data, rows):
    with pytest.raises(NotFittedError):
        Monitor.load(io.BytesIO(data), VAEDetector())
    with pytest.raises(ValueError, match="drift is measured against scores of rows that were held out"):
        Monitor.load(io.BytesIO(data), VAEDetector(threshold="quantile", **SETTINGS).fit(rows))


# -- files ----------------------------------------------------------------------------------------------
PATHS = {
    "text": lambda folder: str(folder / "stream.monitor"),
    "bytes": lambda folder: os.fsencode(folder / "stream.monitor"),
    "a path": lambda folder: folder / "stream.monitor",
    "the home folder": lambda folder: pathlib.Path("~/stream.monitor"),
}


@pytest.mark.parametrize("path_in", PATHS.values(), ids=PATHS)
def test_every_kind_of_path_is_taken(path_in, calibrated, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monitor = Monitor.load(io.BytesIO(data), calibrated)
    monitor.save(path_in(tmp_path))
    assert (tmp_path / "stream.monitor").read_bytes() == data
    assert Monitor.load(path_in(tmp_path), calibrated).evidence == monitor.evidence


def test_an_open_file_is_written_and_read_from_where_it_stands(calibrated, data):
    monitor, file = Monitor.load(io.BytesIO(data), calibrated), io.BytesIO()
    file.write(b"before")
    monitor.save(file)
    assert file.getvalue() == b"before" + data
    file.seek(len(b"before"))
    assert Monitor.load(file, calibrated).evidence == monitor.evidence
    assert not file.closed


def test_the_file_is_json_and_raw_arrays_and_holds_neither_rows_nor_the_detector(detector, rows, path):
    monitor = watched(detector, rows[100:])
    monitor.save(path)
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        assert names[:2] == ["manifest.json", "monitor.json"]
        for name in names[:2]:
            json.loads(file.read(name))
        assert monitor._known.tobytes() in [file.read(name) for name in names[2:]]
    assert path.stat().st_size < monitor._known.nbytes + 8_000


def test_a_failed_save_leaves_the_earlier_file(calibrated, data, path, monkeypatch):
    path.write_bytes(data)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device; the monitor was not saved, .*Make room"):
        watched(calibrated).save(path)
    assert path.read_bytes() == data
    assert os.listdir(path.parent) == [path.name]


def test_a_generator_that_no_file_can_hold_is_named_and_nothing_is_written(calibrated, data, path):
    path.write_bytes(data)
    monitor = watched(calibrated, random_state=np.random.RandomState(np.random.PCG64(0)))
    with pytest.raises(
        ModelFileError, match=r"random_state is a RandomState over PCG64.*RandomState\(seed\)"
    ):
        monitor.save(path)
    assert path.read_bytes() == data


def test_a_file_that_is_not_there_is_told(calibrated, path):
    with pytest.raises(FileNotFoundError):
        Monitor.load(path, calibrated)


# -- files that hold no monitor -------------------------------------------------------------------------
@pytest.mark.parametrize("end", [0, 10, 0.5, -1])
def test_a_truncated_file_is_told(end, calibrated, data):
    end = int(end * len(data)) if isinstance(end, float) else end
    with pytest.raises(ModelFileError, match="is (empty|truncated)"):
        Monitor.load(io.BytesIO(data[:end]), calibrated)


def test_a_changed_byte_is_noticed_or_changes_nothing(calibrated, data):
    noticed = 0
    for position in range(0, len(data), 53):
        changed = bytearray(data)
        changed[position] ^= 1
        try:
            found = Monitor.load(io.BytesIO(changed), calibrated)
        except ModelFileError:
            noticed += 1
        else:
            assert saved(found) == data
    assert noticed > 0.9 * len(data) / 53


def test_a_model_is_no_monitor_and_says_what_reads_it(detector):
    file = io.BytesIO()
    detector.save(file)
    file.seek(0)
    with pytest.raises(
        ModelFileError, match=r"is a model, not a monitor: vae_anomaly\.load\(path\) reads it"
    ):
        Monitor.load(file, detector)


def test_a_checkpoint_is_no_monitor_and_says_what_goes_on_with_it(calibrated):
    file = io.BytesIO()
    state_file.write(file, CHECKPOINT, {}, what="checkpoint", otherwise="")
    file.seek(0)
    with pytest.raises(ModelFileError, match="the checkpoint of an unfinished fit, not a monitor: fit"):
        Monitor.load(file, calibrated)


def test_a_monitor_is_no_model_and_no_checkpoint_and_says_what_goes_on_with_it(data, rows, path):
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"is a monitor, not a model: .*Monitor\.load"):
        load(path)
    fitting = VAEDetector(**SETTINGS, checkpoint=Checkpoint(path))
    with pytest.raises(
        ModelFileError, match=r"is a monitor, not the checkpoint .*Monitor\.load.*left as it is"
    ):
        fitting.fit(rows)
    assert path.read_bytes() == data


def test_a_file_of_a_later_format_asks_for_an_upgrade(calibrated, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(archive, "FORMAT_VERSION", archive.FORMAT_VERSION + 1)
        data = saved(watched(calibrated))
    with pytest.raises(ModelFileError, match="is newer than this release.*Upgrade vae-anomaly"):
        Monitor.load(io.BytesIO(data), calibrated)


def test_a_pickle_is_not_read(calibrated):
    with pytest.raises(ModelFileError, match="is not a model file"):
        Monitor.load(io.BytesIO(b"\x80\x04."), calibrated)


def edited(data, *keys, value):
    """The file with another value at these keys of its state."""
    with state_file.open_state(io.BytesIO(data), MONITOR) as state:
        holder = state
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = value
    file = io.BytesIO()
    state_file.write(file, MONITOR, state, what="monitor", otherwise="")
    file.seek(0)
    return file


FORGED = {
    "a rate": (("false_alarm_rate",), 2.0),
    "a generator": (("random_state",), None),
    "scores": (("scores",), np.zeros(3)),
    "scores of another kind": (("scores",), np.zeros(250, dtype=np.int64)),
    "no array": (("scores",), [0.0] * 250),
    "a number of scores": (("calibration", "n_scores"), 3),
    "rows": (("evidence", "n_rows"), 3),
    "rows that are none": (("evidence", "n_rows"), "50"),
    "evidence": (("evidence", "drift"), "much"),
    "a field of the evidence": (("evidence", "other"), 1.0),
    "an alarm": (("evidence", "first_drifted"), "soon"),
    "stakes": (("drift", "stakes"), np.array([-0.9, -0.3, 0.3, 1.9])),
    "as many stakes": (("drift", "stakes"), np.array([0.3])),
    "no stakes": (("drift",), {"stakes": np.zeros(0), "log_capital": np.zeros(0), "n_played": 50}),
    "a table of stakes": (("drift", "stakes"), np.zeros((4, 2))),
    "capital": (("anomalies", "log_capital"), np.zeros((2, 2))),
    "outcomes": (("anomalies", "n_played"), 3),
}


@pytest.mark.parametrize(("keys", "value"), FORGED.values(), ids=FORGED)
def test_a_forged_state_is_refused(keys, value, calibrated, data):
    with pytest.raises(ModelFileError, match="is refused: its state|is not what it says it is"):
        Monitor.load(edited(data, *keys, value=value), calibrated)


def test_the_state_before_it_is_forged_is_taken(calibrated, data):
    found = Monitor.load(edited(data, "false_alarm_rate", value=0.02), calibrated)
    assert found.false_alarm_rate == 0.02


def test_the_documentation_says_how_many_scores_a_file_holds():
    (millions,) = re.findall(r"(\d+) million scores", Monitor.save.__doc__)
    assert int(millions) * 1_000_000 * 8 == archive._BYTES
