"""Saving: `Saved` gives an estimator its method ``save``.

It stands below the detector, which inherits it and knows nothing of files. What is written follows from
scikit-learn's conventions alone: parameters, and whatever else is in ``vars``. `persistence` stands above the
detector and makes detectors of files.
"""

from __future__ import annotations

import copy
import os
from typing import Any

from sklearn.utils.validation import check_is_fitted

from vae_anomaly.core.versions import versions
from vae_anomaly.files import archive
from vae_anomaly.files.archive import ModelFileError
from vae_anomaly.files.encoding import encoded
from vae_anomaly.model_card import summary

__all__ = ["DESCRIPTION", "Saved"]

DESCRIPTION = "detector.json"


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

        ``checkpoint`` is left out: where a fit writes is no stranger's choice.

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
        saved: Any = copy.copy(self)
        saved.checkpoint = None
        tree, arrays = encoded(saved)
        parts = {f"arrays/{position}": array for position, array in enumerate(arrays)}
        about = {"versions": versions(), "summary": summary(self)}
        archive.write(path, about, {DESCRIPTION: archive.to_json(tree, "its description"), **parts})
