"""Model files: a fitted detector as one file, and what a file must hold to be taken for one.

`archive` decides the form of the file, `encoding` how a detector is written in it, `decoding` how it is read,
`allow_list` what it can hold at all. The detector's class comes as an argument.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import sklearn

from vae_anomaly.core.types import Detector, PathOrFile, Values
from vae_anomaly.core.versions import versions
from vae_anomaly.data.tables import Table
from vae_anomaly.files import archive
from vae_anomaly.files.archive import ModelFileError
from vae_anomaly.files.decoding import decode_estimator
from vae_anomaly.files.encoding import encode_estimator
from vae_anomaly.files.kinds import MODEL, check_kind
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.model.column_transform import n_numbers
from vae_anomaly.model.states import ModelState, Specification
from vae_anomaly.networks import Network
from vae_anomaly.posteriors import Posterior
from vae_anomaly.priors import Prior
from vae_anomaly.thresholds import THRESHOLDS

__all__ = ["read", "write"]


def write(path: PathOrFile, detector: Detector, kind: type[Any], summary: Values) -> None:
    """Write a fitted detector of this class; see `VAEDetector.save`."""
    if type(detector) is not kind:
        raise ModelFileError(
            f"a model file names no classes of your own, and {type(detector).__qualname__} is one: it would "
            "come back as its base class. Use joblib.dump."
        )
    saved = copy.copy(detector)
    saved.checkpoint = None
    if type(detector.threshold_) not in THRESHOLDS.values():
        saved.threshold_ = None  # of a class that has no name; ``offset_`` is what it has decided
    tree, arrays = encode_estimator(saved)
    parts = {f"arrays/{position}": array for position, array in enumerate(arrays)}
    about = {"versions": versions(), "summary": summary}
    archive.write(path, about, {MODEL.part: archive.to_json(tree, "its description"), **parts})


def read(path: PathOrFile, kind: type[Any]) -> Any:
    """The detector of this class in a file; see `persistence.load`."""
    with archive.open_archive(path) as opened:
        check_kind(opened, MODEL)
        detector = decode_estimator(opened.json(MODEL.part), kind, opened)
        detector.checkpoint = None
        detector._validate_params()
        _check(detector)
        # Each column of the rows has a byte in the file, at least: in a scaler or in a range of values.
        _expect(detector.n_features_in_ <= opened.n_bytes, "columns")
        _check_scaler(detector, opened.manifest.get("versions"))
    return detector


def _check(detector: Detector) -> None:
    """Refuse what fits no fit, above all networks that are larger than the weights in the file."""
    _expect(
        type(detector.n_features_in_) is int
        and type(detector.offset_) is float
        and isinstance(detector.history_, dict)
        and (detector.scaler_ is None or hasattr(detector.scaler_, "transform")),
        "attributes of a fitted detector",
    )
    members, draws, weights = detector.members_, detector.draws_, detector.member_weights_
    _expect(type(members) is tuple and len(members) > 0, "members")
    for state in members:
        _check_state(state)
    specification = members[0].specification
    _expect(
        detector.latent_dim_ == specification.latent_dim
        and _is_array(draws, np.float32, (-1, specification.noise_width))
        and len(draws) > 0,
        "draws",
    )
    _expect(_is_array(weights, np.float64, (len(members),)), "weights of the members")
    groups, scores = getattr(detector, "calibration_groups_", None), detector.calibration_scores_
    _expect(
        groups is None
        or (isinstance(groups, np.ndarray) and scores is not None and groups.shape == scores.shape),
        "groups of calibration rows",
    )
    scores = getattr(detector, "interval_scores_", None)
    of_columns = (detector.n_features_in_,)
    _expect(
        scores is None
        or (
            _is_array(scores, np.float64, (-1, *of_columns))
            and _is_array(getattr(detector, "_interval_floors", None), np.float64, of_columns)
        ),
        "intervals of cells",
    )
    pixel_range = detector.pixel_range_
    _expect(
        pixel_range is None
        or (type(pixel_range) is tuple and [type(end) for end in pixel_range] == [float, float]),
        "pixels",
    )
    table = detector.table_
    _expect(
        table is None or (isinstance(table, Table) and len(table.columns) == detector.n_features_in_),
        "columns",
    )


def _check_scaler(detector: Detector, versions: object) -> None:
    """Refuse a scaler that another release of scikit-learn has fitted and this one cannot use."""
    written = versions.get("scikit-learn") if isinstance(versions, dict) else None
    if written == sklearn.__version__:
        return
    try:
        with np.errstate(all="ignore"):
            detector._fitted.rows(np.zeros((1, detector.n_features_in_)))
    except AttributeError as error:
        raise ModelFileError(
            f"holds a scaler of scikit-learn {written}, which {sklearn.__version__} here cannot use: {error}."
        ) from error
    except Exception:  # zeros may not be a row that it takes, such as an unknown category
        return


def _check_state(state: Any) -> None:
    _expect(isinstance(state, ModelState) and isinstance(state.specification, Specification), "a member")
    network, likelihood, n_features, latent_dim, *flags, posterior, prior = state.specification
    _, transforms_columns, whitens_columns = flags
    _expect(
        isinstance(network, Network)
        and isinstance(likelihood, Likelihood)
        and isinstance(posterior, Posterior)
        and isinstance(prior, Prior)
        and type(n_features) is type(latent_dim) is int
        and all(type(flag) is bool for flag in flags)
        and min(n_features, latent_dim) > 0,
        "the specification of a member",
    )
    network._validate_params()
    for part in (likelihood, posterior, prior):
        part._validate_params()
    _expect(posterior.own_latent_dim() in (None, latent_dim), "the latent dimensions of a member")
    posterior.check(latent_dim)
    prior.check(posterior, latent_dim)
    _check_columns(likelihood, n_features)
    _expect(_is_array(state.trainable, np.float32, (-1,)), "a member's weights")
    n_inputs = likelihood.n_inputs(n_features)
    _expect(
        type(state.non_trainable) is tuple
        # Of these, one is the range of values that the encoder has seen.
        and any(_is_array(values, np.float32, (2, n_inputs)) for values in state.non_trainable),
        "a member's ranges",
    )
    of_columns = (n_numbers(n_features, whitens_columns), n_features)
    _expect(
        not transforms_columns
        or any(_is_array(values, np.float32, of_columns) for values in state.non_trainable),
        "a member's transform of the columns",
    )
    arrays = (state.trainable, *state.non_trainable)
    _expect(all(isinstance(values, (np.ndarray, np.generic)) for values in arrays), "a member's arrays")
    n_said = sum(posterior.heads(latent_dim).values())
    fewest = network.fewest_weights(n_features, min(latent_dim, n_said // 2), likelihood.n_params)
    fewest += max(0, n_said - 2 * latent_dim)
    of_prior = prior.weights(latent_dim, state.specification.n_inputs)
    own = (*posterior.weights(latent_dim).values(), *of_prior.values())
    fewest += sum(math.prod(map(int, weight.shape)) for weight in own)
    n_weights = sum(values.size for values in arrays)
    if fewest > n_weights:
        raise ModelFileError(
            f"is refused: it describes a network of at least {fewest} weights, and holds {n_weights}."
        )


def _check_columns(likelihood: Likelihood, n_features: int) -> None:
    try:
        likelihood.check_columns(n_features)
    except (TypeError, ValueError):
        _expect(False, "the columns of a member")


def _is_array(value: object, dtype: type, shape: tuple[int, ...]) -> bool:
    """Whether it is an array of this dtype and shape, in which -1 is any length."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype == dtype
        and value.ndim == len(shape)
        and all(wanted in (-1, side) for side, wanted in zip(value.shape, shape, strict=True))
    )


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ModelFileError(f"is refused: {what} in it cannot be those of a fitted detector.")
