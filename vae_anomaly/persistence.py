"""Persistence: a detector out of a model file that `VAEDetector.save` wrote."""

from __future__ import annotations

from vae_anomaly.calibration.online import ONLINE
from vae_anomaly.core.types import PathOrFile
from vae_anomaly.detector import VAEDetector
from vae_anomaly.files import model_file
from vae_anomaly.files.allow_list import ESTIMATORS, RECORDS, REGISTRIES, class_of
from vae_anomaly.files.archive import ModelFileError
from vae_anomaly.monitoring import Evidence, Monitor
from vae_anomaly.monitoring.evidence import Game
from vae_anomaly.preprocessing import DatetimeFeatures

__all__ = ["SKOPS_TRUSTED", "ModelFileError", "load"]

_PACKAGE = "vae_anomaly."
_RUNS_CODE = {"Blueprint", "KerasNetwork"}
#: This library's classes in a file of skops: ``skops.io.load(path, trusted=SKOPS_TRUSTED)``. They run no code
#: of their own; a `KerasNetwork` does if a layer of it is a Lambda, so it is not among them. skops checks
#: classes only, `load` checks what is in them too: it is the one for files from strangers.
SKOPS_TRUSTED: list[str] = sorted(
    f"{kind.__module__}.{kind.__qualname__}"
    for kind in [
        VAEDetector,
        DatetimeFeatures,
        *(Monitor, Evidence, Game, *ONLINE.values()),
        # Not even looked up: its module loads Keras.
        *(class_of(names, name) for names in (ESTIMATORS, RECORDS) for name in {*names} - _RUNS_CODE),
        *(kind for registry in REGISTRIES.values() for kind in registry.values()),
    ]
    if kind is not None and kind.__module__.startswith(_PACKAGE)
)


def load(path: PathOrFile) -> VAEDetector:
    """A detector from a file that `VAEDetector.save` wrote.

    It scores bit by bit as the one that was saved, on the same machine, and can be cloned, fitted again, warm
    started and pickled like it. A `KerasNetwork` holds blueprints in the place of the user's own models.

    Nothing in a file is run, and no objects are made but of the classes on the `files.allow_list`, so that a
    stranger's file can be loaded. Loading takes as much memory as the file has bytes (texts in it, such as
    column names, up to twenty times theirs) and up to 64 MiB for its description; what would take more is
    refused before. TensorFlow is loaded with the first score, not here.

    Parameters
    ----------
    path : str, bytes, path or binary file
        Of an open file, such as `io.BytesIO` or one of fsspec, what is left to read is taken. A leading ``~``
        is the home folder.

    Returns
    -------
    VAEDetector

    Raises
    ------
    ModelFileError
        Says in one line what is wrong with a file that is damaged, truncated, newer, or not a model file.
    OSError
        If there is no such file, or if it cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import vae_anomaly
    >>> X = np.random.RandomState(0).normal(size=(200, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.vae")
    ...     vae_anomaly.VAEDetector(epochs=5, random_state=0).fit(X).save(path)
    ...     vae_anomaly.load(path).predict([[0.0, 0.0, 0.0], [1000.0, 0.0, 0.0]])
    array([ 1, -1])
    """
    detector: VAEDetector = model_file.read(path, VAEDetector)
    return detector
