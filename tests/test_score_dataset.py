"""Scores of tables of any size: each row once, with the same bits, whatever ends the process in between."""

import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vae_anomaly import DenseNetwork, VAEDetector, score_dataset

pytest.importorskip("pyarrow")
N_ROWS, SIZE = 500, 60


@pytest.fixture(scope="module")
def frame():
    frame = pd.DataFrame(np.random.RandomState(0).normal(size=(N_ROWS, 3)), columns=list("abc"))
    frame.insert(1, "key", [f"row {n}" for n in range(N_ROWS)])
    return frame


@pytest.fixture(scope="module")
def detector(frame):
    return VAEDetector(DenseNetwork((8,)), epochs=2, calibration=0.2, random_state=0).fit(frame[list("abc")])


@pytest.fixture
def folder(frame, tmp_path):
    (tmp_path / "rows").mkdir()
    for number, start in enumerate(range(0, N_ROWS, 170)):
        part = frame.iloc[start : start + 170]
        part.to_parquet(tmp_path / "rows" / f"{number}.parquet", row_group_size=70)
    return tmp_path / "rows"


def run(detector, source, destination, **settings):
    settings = {"columns": ["key"], "rows_per_file": SIZE, "verbose": 0, **settings}
    score_dataset(detector, source, destination, **settings)
    return pd.read_parquet(destination)


def assert_whole(found, frame, detector):
    assert found["key"].tolist() == frame["key"].tolist()
    np.testing.assert_array_equal(found["score_samples"], detector.score_samples(frame[list("abc")]))


def test_each_row_is_written_once_with_its_key_and_its_score(detector, frame, folder, tmp_path):
    assert_whole(run(detector, folder, tmp_path / "scores"), frame, detector)
    files = sorted(name for name in os.listdir(tmp_path / "scores") if name.endswith(".parquet"))
    assert len(files) == -(-N_ROWS // SIZE)


def test_what_is_asked_of_the_detector_are_the_columns(detector, frame, tmp_path):
    methods = ["score_samples", "decision_function", "predict", "p_values"]
    found = run(detector, frame, tmp_path / "scores", columns=(), methods=methods)
    assert found.columns.tolist() == ["row", *methods]
    assert found["row"].tolist() == [*range(N_ROWS)]
    for method in methods:
        np.testing.assert_array_equal(found[method], getattr(detector, method)(frame[list("abc")]))


def test_rows_of_an_array_and_a_pipeline_are_scored(frame, tmp_path):
    X = frame[list("abc")].to_numpy()
    pipeline = make_pipeline(StandardScaler(), VAEDetector(DenseNetwork((8,)), epochs=1, random_state=0)).fit(
        X
    )
    found = run(pipeline, X, tmp_path / "scores", columns=())
    np.testing.assert_array_equal(found["score_samples"], pipeline.score_samples(X))


def test_keys_have_one_type_whatever_a_part_of_them_holds(detector, frame, tmp_path):
    keys = frame["key"].astype(object).where(frame.index >= SIZE, None)
    kinds = pd.Categorical(np.where(frame.index < SIZE, "x", frame["key"]))
    found = run(detector, frame.assign(key=keys, kind=kinds), tmp_path / "scores", columns=["key", "kind"])
    assert found["key"].isna().tolist() == keys.isna().tolist()
    assert found["kind"].tolist() == kinds.tolist()


@pytest.mark.parametrize("n_written", [0, 1, 4])
def test_after_an_end_in_between_only_what_is_missing_is_scored(
    n_written, detector, frame, folder, tmp_path, monkeypatch
):
    from vae_anomaly import bulk_scoring

    write, written = bulk_scoring.replace_file, []

    def write_some(path, *args):
        if path.endswith(".parquet"):
            if len(written) == n_written:
                raise KeyboardInterrupt
            written.append(path)
        write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(bulk_scoring, "replace_file", write_some)
        with pytest.raises(KeyboardInterrupt):
            run(detector, folder, tmp_path / "scores")
    (tmp_path / "scores" / ".saving-0123").write_bytes(b"half a file")
    before = {path: os.stat(path).st_mtime_ns for path in written}
    assert_whole(run(detector, folder, tmp_path / "scores"), frame, detector)
    assert {path: os.stat(path).st_mtime_ns for path in written} == before
    assert not (tmp_path / "scores" / ".saving-0123").exists()


def test_a_file_that_was_lost_is_written_anew(detector, frame, folder, tmp_path):
    run(detector, folder, tmp_path / "scores")
    os.unlink(tmp_path / "scores" / "part-000003.parquet")
    assert_whole(run(detector, folder, tmp_path / "scores"), frame, detector)


OTHER = {
    "another detector": ({"detector": None}, "first scores"),
    "other rows": ({"source": None}, "rows"),
    "other keys": ({"columns": ["a"]}, "columns"),
    "other methods": ({"methods": ["predict"]}, "methods"),
    "other blocks": ({"rows_per_file": SIZE + 1}, "rows per file"),
}


@pytest.mark.parametrize(("change", "message"), OTHER.values(), ids=OTHER)
def test_scores_of_another_kind_are_not_mixed_with_those_that_are_there(
    change, message, detector, frame, folder, tmp_path
):
    run(detector, folder, tmp_path / "scores")
    settings = dict(change)
    if "detector" in change:
        network = DenseNetwork((8,))
        settings["detector"] = VAEDetector(network, epochs=1, random_state=1).fit(frame[list("abc")])
    if "source" in change:
        settings["source"] = frame.iloc[:-1]
    before = sorted(os.listdir(tmp_path / "scores"))
    with pytest.raises(ValueError, match=f"holds other scores: what differs is .*{message}"):
        run(**{"detector": detector, "source": folder, "destination": tmp_path / "scores", **settings})
    assert sorted(os.listdir(tmp_path / "scores")) == before


def test_a_folder_with_other_files_is_left_alone(detector, frame, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files, such as 'notes\.txt'"):
        run(detector, frame, tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


WRONG = {
    "columns": ({"columns": ["nobody"]}, "columns names 'nobody', but the rows have the columns"),
    "methods": ({"methods": ["fit"]}, "methods must be some of .*received 'fit'"),
    "a text for columns": ({"columns": "key"}, r"columns must be a list of names; .*'key'.* set \['key'\]"),
    "a text for methods": ({"methods": "predict"}, "methods must be a list of names; .*'predict'"),
    "a key like a method": ({"columns": ["predict"], "methods": ["predict"]}, "rename the column"),
    "rows_per_file": ({"rows_per_file": 0}, "rows_per_file must be a positive integer; received 0"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG)
def test_arguments_are_checked_before_anything_is_written(settings, message, detector, frame, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        run(detector, frame, tmp_path / "scores", **settings)
    assert not (tmp_path / "scores").exists()


def test_what_is_no_rows_is_named(detector, tmp_path):
    with pytest.raises(TypeError, match="rows come from Parquet files.*a dict"):
        score_dataset(detector, {"a": 1}, tmp_path / "scores")


def test_without_one_of_its_columns_the_detector_says_what_is_wrong(detector, frame, tmp_path):
    with pytest.raises(ValueError, match="Feature names seen at fit time, yet now missing"):
        run(detector, frame.drop(columns="b"), tmp_path / "scores")


def test_an_impossible_value_is_named_with_its_row_and_file(detector, frame, folder, tmp_path):
    part = frame.iloc[:100].copy()
    part.loc[97, "b"] = np.inf
    part.to_parquet(folder / "9.parquet")
    strict = copy.deepcopy(detector).set_params(invalid="raise")
    with pytest.raises(ValueError, match=r"column 'b' holds inf in row 97 of the file '.*9\.parquet'"):
        run(strict, folder, tmp_path / "scores")


BROKEN = {
    "damaged": (lambda path, _: path.write_bytes(b"PAR1" * 9), r"9\.parquet' cannot be read as Parquet"),
    "without a column": (lambda path, part: part.drop(columns="b").to_parquet(path), r"9\.parquet.*\['b'\]"),
    "of texts": (lambda path, part: part.assign(b="x").to_parquet(path), r"column 'b'.*9\.parquet"),
}


@pytest.mark.parametrize(("write", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_before_anything_is_written(write, message, detector, frame, folder, tmp_path):
    write(folder / "9.parquet", frame.iloc[:20])
    with pytest.raises(ValueError, match=message):
        run(detector, folder, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_a_file_without_rows_adds_none_and_no_row_at_all_is_an_error(detector, frame, folder, tmp_path):
    frame.iloc[:0].to_parquet(folder / "9.parquet")
    assert_whole(run(detector, folder, tmp_path / "scores"), frame, detector)
    with pytest.raises(ValueError, match=r"(?s)Found array with 0 sample.*9\.parquet', without any row"):
        run(detector, folder / "9.parquet", tmp_path / "none")
    frame.iloc[7:8].to_parquet(folder / "9.parquet")
    assert_whole(run(detector, folder / "9.parquet", tmp_path / "one"), frame.iloc[7:8], detector)


def test_a_line_says_how_many_rows_have_been_scored(detector, frame, tmp_path, capsys):
    run(detector, frame, tmp_path / "scores", verbose=1)
    lines = capsys.readouterr().err.split("\r")
    assert lines[1].startswith("0 of 500 rows scored (0 %)")
    assert lines[2].startswith("60 of 500 rows scored (12 %), 0:0")
    assert lines[-1].split("scored")[0] == "500 of 500 rows "


KILLED = """
import sys
import numpy as np
from vae_anomaly import score_dataset

class Distance:  # which starts in a second, without TensorFlow
    feature_names_in_ = np.array(["a", "b", "c"], dtype=object)

    def score_samples(self, X):
        return -np.sqrt((X.to_numpy() ** 2).sum(axis=1))

if __name__ == "__main__":
    print("begins", flush=True)
    score_dataset(Distance(), sys.argv[1], sys.argv[2], ["key"], rows_per_file=5, verbose=0)
"""


@pytest.mark.long
def test_killed_at_fifty_moments_the_files_hold_each_row_once_with_the_same_bits(frame, folder, tmp_path):
    namespace = {"__name__": "killed"}
    exec(KILLED, namespace)
    distance = namespace["Distance"]()
    scores, rng, n_killed, lengths = tmp_path / "scores", random.Random(0), 0, []
    while n_killed < 50:
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, folder, scores], stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
            n_killed += process.wait() != 0
        if scores.exists() and any(name.endswith(".parquet") for name in os.listdir(scores)):
            found = pd.read_parquet(scores)
            expected = frame.iloc[: len(found)]
            assert found["key"].tolist() == expected["key"].tolist()
            np.testing.assert_array_equal(
                found["score_samples"], distance.score_samples(expected[list("abc")])
            )
            lengths.append(len(found))
            if len(found) == N_ROWS:  # once more, from the beginning
                shutil.rmtree(scores)
    assert len(set(lengths)) > 10  # it was killed in the middle
