"""Saving: `Saved` gives an estimator its method ``save``.

It stands below the detector, which inherits it and knows nothing of files. What is written follows from
scikit-learn's conventions alone: parameters, and whatever else is in ``vars``. `persistence` stands above the
detector and makes detectors of files.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from sklearn.utils.validation import check_is_fitted

from vae_anomaly import __version__, archive
from vae_anomaly.archive import ModelFileError
from vae_anomaly.encoding import encoded

__all__ = ["DESCRIPTION", "Saved", "versions"]

DESCRIPTION = "detector.json"

_LIBRARIES = ("keras", "numpy", "scikit-learn", "tensorflow")


class Saved:
    """Base class of estimators that can be saved as a model file."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted detector to one file of data, which `vae_anomaly.load` reads.

        The file is a zip of JSON and raw arrays with a SHA-256 for each: no pickle, and nothing in it is ever
        run. It holds every parameter and fitted attribute, and none of the rows. What it can hold besides
        numbers, texts and arrays:

        - this library's likelihoods, networks, members and threshold rules, and your own once their classes
          have a name in LIKELIHOODS, NETWORKS or THRESHOLDS, and are defined where the file is loaded;
        - Keras models of layers that are data, without what they were compiled with;
        - as ``scaler``: ColumnTransformer, FunctionTransformer (with exp, log1p and the like),
          KBinsDiscretizer, MaxAbsScaler, MinMaxScaler, MissingIndicator, Normalizer, OneHotEncoder,
          OrdinalEncoder, PCA, Pipeline, PowerTransformer, QuantileTransformer, RobustScaler, SimpleImputer,
          StandardScaler, VarianceThreshold;
        - a `RandomState`, which goes on in the loaded detector where it stands now.

        It is written beside its place, flushed to the disk and renamed: whatever happens in between, ``path``
        holds the old file or the new one. Saving the same detector twice makes the same bytes.

        Parameters
        ----------
        path : str or path
            Any name; a file of this name is replaced.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ModelFileError
            If a parameter or an attribute is no data, such as callbacks; names it and says what to do.
            Nothing is written.
        OSError
            If the disk is full or the folder read-only, say; an old file is as it was.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> import vae_anomaly
        >>> X = np.random.RandomState(0).normal(size=(200, 3))
        >>> detector = vae_anomaly.VAEDetector(epochs=5, random_state=0).fit(X)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     detector.save(os.path.join(folder, "model.vae"))
        ...     loaded = vae_anomaly.load(os.path.join(folder, "model.vae"))
        >>> bool((loaded.score_samples(X) == detector.score_samples(X)).all())
        True
        """
        check_is_fitted(self)
        if Saved not in type(self).__bases__:
            raise ModelFileError(
                f"a model file names no classes of your own, and {type(self).__qualname__} is one: it would "
                "come back as its base class. Use joblib.dump."
            )
        tree, arrays = encoded(self)
        parts = {f"arrays/{position}": array for position, array in enumerate(arrays)}
        about = {"versions": versions(), "summary": _summary(self)}
        archive.write(path, about, {DESCRIPTION: archive.to_json(tree, "its description"), **parts})


def versions(*more: str) -> dict[str, str | None]:
    """Versions of this package, of Python, of the libraries it stands on and of others; None if unknown."""
    found: dict[str, str | None] = {"vae-anomaly": __version__, "python": platform.python_version()}
    for library in (*_LIBRARIES, *more):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu and the like
            found[library] = None
    return found


def _summary(detector: Any) -> dict[str, Any]:
    """What a reader of the file wants to know of the training. Nothing reads it back."""
    state, history = detector.members_[0], detector.history_
    return {
        "n_features": int(detector.n_features_in_),
        "latent_dim": int(detector.latent_dim_),
        "network": _shortened(state.specification.network),
        "likelihood": _shortened(state.specification.likelihood),
        "scaler": _shortened(detector.scaler_),
        "members": len(detector.members_),
        "weights_of_a_member": int(state.trainable.size),
        "epochs": len(history["loss"]),
        "last_epoch": {name: f"{values[-1]:.6g}" for name, values in history.items() if values},
        "offset": f"{detector.offset_:.6g}",
    }


def _shortened(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else text[:197] + "..."
