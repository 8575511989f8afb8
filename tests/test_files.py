"""Where detectors can be saved to and loaded from: paths of every kind, and open files."""

import io
import os
import pathlib
import socket
import tempfile

import numpy as np
import pytest

from vae_anomaly import DenseNetwork, ModelFileError, VAEDetector, load
from vae_anomaly.checkpoints import Checkpoint
from vae_anomaly.files import archive

X = np.random.RandomState(0).normal(size=(60, 3))


def new_detector(**settings):
    return VAEDetector(DenseNetwork((4,)), epochs=1, n_draws=1, random_state=0, **settings)


@pytest.fixture(scope="module")
def detector():
    return new_detector().fit(X)


@pytest.fixture(scope="module")
def data(detector):
    """The bytes of the model file."""
    file = io.BytesIO()
    detector.save(file)
    return file.getvalue()


PATHS = {
    "text": lambda folder: str(folder / "model.vae"),
    "bytes": lambda folder: os.fsencode(folder / "model.vae"),
    "a path": lambda folder: folder / "model.vae",
}


@pytest.mark.parametrize("path_in", PATHS.values(), ids=PATHS)
def test_every_kind_of_path_is_taken(path_in, detector, data, tmp_path):
    (tmp_path / "model.vae").write_bytes(b"an earlier file")
    detector.save(path_in(tmp_path))
    assert (tmp_path / "model.vae").read_bytes() == data
    np.testing.assert_array_equal(load(path_in(tmp_path)).score_samples(X), detector.score_samples(X))


def test_a_leading_tilde_is_the_home_folder(detector, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for path in ("~/text.vae", pathlib.Path("~/path.vae")):
        detector.save(path)
        assert (tmp_path / os.path.basename(path)).read_bytes() == data
        load(path)
    new_detector(checkpoint=Checkpoint("~/fit.checkpoint", every=1)).fit(X)
    assert not (tmp_path / "fit.checkpoint").exists()  # the fit has been finished
    assert not os.path.exists("~")


FILES = {
    "in memory": io.BytesIO,
    "temporary": tempfile.TemporaryFile,
    "spooled": tempfile.SpooledTemporaryFile,
}


@pytest.mark.parametrize("open_file", FILES.values(), ids=FILES)
def test_an_open_file_is_written_and_read_from_where_it_stands(open_file, detector, data):
    with open_file() as file:
        file.write(b"before")
        detector.save(file)
        assert not file.closed
        file.seek(0)
        assert file.read() == b"before" + data
        file.seek(len(b"before"))
        loaded = load(file)
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


def test_what_can_only_be_written_once_and_read_once_is_enough(detector, data):
    here, there = socket.socketpair()
    with here, there, here.makefile("wb") as written, there.makefile("rb") as read:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        detector.save(written)
        written.close()
        here.shutdown(socket.SHUT_WR)
        np.testing.assert_array_equal(load(read).score_samples(X), detector.score_samples(X))


def test_a_file_is_given_nothing_of_a_model_that_cannot_be_saved():
    file = io.BytesIO()
    with pytest.raises(ModelFileError, match="holds at most"):
        archive.write(file, {}, {f"part {position}": b"" for position in range(2**14 + 1)})
    assert file.getvalue() == b""


def test_files_that_are_open_for_text_are_refused(detector, tmp_path):
    with open(tmp_path / "text", "w") as file, pytest.raises(TypeError, match="takes no bytes; .*'wb'"):
        detector.save(file)
    with open(tmp_path / "text") as file, pytest.raises(ModelFileError, match="opened with the mode 'rb'"):
        load(file)


@pytest.mark.parametrize("given", [None, 3, ["model.vae"]])
def test_what_is_no_path_and_no_file_is_refused(given, detector):
    with pytest.raises(TypeError, match="a path or a file"):
        detector.save(given)
    with pytest.raises((TypeError, ModelFileError), match="a path or a binary file"):
        load(given)


def test_an_empty_path_is_refused(detector):
    for use in (detector.save, load, lambda path: new_detector(checkpoint=path).fit(X)):
        with pytest.raises(ValueError, match="the path is empty"):
            use("")


def test_a_truncated_stream_is_told_as_a_truncated_file_is(data):
    with pytest.raises(ModelFileError, match="model file <_io.BytesIO.* is truncated"):
        load(io.BytesIO(data[:-100]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_regular_file_is_not_replaced(detector, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file.*the model was not saved"):
        detector.save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(OSError, match="the model was not saved"):
        detector.save(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]


@pytest.mark.wide
def test_a_graph_is_written_to_an_open_file_too(detector):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    pytest.importorskip("skl2onnx")
    file = io.BytesIO()
    detector.to_onnx(file)
    scores = runtime.InferenceSession(file.getvalue()).run(["score_samples"], {"X": X})[0]
    np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-4)
