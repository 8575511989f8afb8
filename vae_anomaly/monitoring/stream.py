"""A stream of rows, watched row by row, and the file from which another process goes on."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from typing import Self

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from vae_anomaly.calibration.checks import check_probability, held_out_scores
from vae_anomaly.calibration.conformal import p_values
from vae_anomaly.calibration.online import ONLINE, OnlineSelection
from vae_anomaly.core.types import Detector, Floats, MatrixLike, PathOrFile, RandomStateLike, Values
from vae_anomaly.files import state_file
from vae_anomaly.files.archive import ModelFileError
from vae_anomaly.files.kinds import MONITOR
from vae_anomaly.monitoring.batch import ASKS, FAR
from vae_anomaly.monitoring.evidence import STAKES_ON_ANOMALIES, STAKES_ON_DRIFT, Evidence, Game

__all__ = ["Monitor"]

_BLOCK = 512


class Monitor:
    r"""Watch a stream of rows for drift, with a false-alarm rate for the whole of it, however long.

    Each row gets a conformal p-value among the calibration scores and all earlier rows of the stream,

    .. math:: p = \frac{\#\{s_i > s\} + u\,(1 + \#\{s_i = s\})}{n + 1}, \quad u \sim \mathrm{Uniform}(0, 1).

    Without drift these are independent and uniform (Vovk, Gammerman & Shafer 2005), so bets
    :math:`1 + \lambda (1 - 2p)` at stakes λ of both signs are fair, and

    .. math:: E_t = \sum_k w_k \prod_{j=k}^t (1 + \lambda (1 - 2 p_j)), \quad
        \sum_{k \ge t} w_k = 1 / \log_2(t + 1),

    averaged over the stakes, is a martingale that starts at 1: it ever reaches 1 / α with a probability of at
    most α (Ville 1939). The sum over the times k at which a bet begins keeps it ready for a change after a
    long time without any. Bets are bounded: less than 5 % of anomalies gain them nothing on average, but may
    now and then (`benchmarks/results/drift.md`). What is bet on anomalies is
    :math:`1 + \lambda (1[p \le 0.01] / 0.01 - 1)`.

    The probability is one of calibration and stream together. After an alarm, look into it, fit anew if the
    change is to stay, and begin a new monitor. A monitor of a copy of the detector goes on while the detector
    itself learns new rows by `partial_fit`. It keeps all scores, 8 bytes for each row. `save` and `load` let
    another process go on with it.

    Parameters
    ----------
    detector : VAEDetector
        Fitted, with calibration rows held out.
    false_alarm_rate : float, default=0.01
        α, in (0, 1): for drift and for anomalies each.
    random_state : int, RandomState instance or None, default=None
        For u.
    selection : {"lord", "saffron", "addis"}, OnlineSelection or None, default=None
        Which rows to select as anomalies, at one false-discovery rate for the whole stream: by
        `calibration.LORD`, `calibration.SAFFRON` or `calibration.ADDIS` of the detector's `p_values`.
        A name is that procedure at a rate of 10 %, with the longest ``horizon`` that the number n of
        calibration rows allows: no p-value is below 1 / (n + 1). An object is copied, and begins anew.

    Attributes
    ----------
    evidence : Evidence
    selected : bool array of shape (n_rows,)
        Which rows of the last `update` were selected. Empty before the first, after `load`, and without a
        selection.
    selection : OnlineSelection or None
        With its ``level_``, ``n_tested_`` and ``n_selected_``.

    Raises
    ------
    ValueError
        If the detector has no scores of rows held out, for a rate outside (0, 1), or if there are too few
        calibration rows for the selection.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.monitoring import Monitor
    >>> rng = np.random.RandomState(0)
    >>> detector = VAEDetector(epochs=5, calibration=0.5, random_state=0).fit(rng.normal(size=(600, 3)))
    >>> monitor = Monitor(detector, random_state=0)
    >>> monitor.update(rng.normal(size=(300, 3))).drifted
    False
    >>> monitor.update(2 * rng.normal(size=(100, 3))).drifted
    True
    >>> monitor = Monitor(detector, selection="saffron", random_state=0)
    >>> monitor.update([[0.0, 0.0, 0.0], [30.0, 0.0, 0.0]]).drifted
    False
    >>> monitor.selected
    array([False,  True])
    """

    def __init__(
        self,
        detector: Detector,
        false_alarm_rate: float = 0.01,
        random_state: RandomStateLike = None,
        selection: str | OnlineSelection | None = None,
    ) -> None:
        check_probability(false_alarm_rate, "false_alarm_rate")
        self.detector = detector
        self.false_alarm_rate = float(false_alarm_rate)
        calibration = self._calibration_scores = held_out_scores(detector, ASKS)
        self._known = np.sort(calibration)
        self._calibration = _identity(calibration)
        self._rng = check_random_state(random_state)
        self._drift = Game(STAKES_ON_DRIFT)
        self._anomalies = Game(STAKES_ON_ANOMALIES)
        self.evidence = Evidence(False, False, 1.0, 1.0, 0, None, None)
        self.selection = _resolve(selection, len(calibration))
        self.selected = np.empty(0, dtype=bool)

    def update(self, X: MatrixLike) -> Evidence:
        """Add rows, in the order in which they came.

        Parameters
        ----------
        X : array or DataFrame of shape (n_rows, n_features), or images as in `fit`
            Any number of rows; how they are batched changes nothing.

        Returns
        -------
        Evidence

        Raises
        ------
        ValueError
            If the detector has been fitted again since the monitor began, by `fit` or `partial_fit`: its
            scores cannot be compared with those before. The monitor stays as it was.
        """
        calibration = self._check_detector()
        scores = -self.detector.score_samples(X)
        if self.selection is not None:
            self.selected = self.selection.update(p_values(scores, calibration))
        return self._update(scores)

    def save(self, path: PathOrFile) -> None:
        """Write where the monitor stands to one file of data, with which `load` goes on.

        The file is of the same form as that of `VAEDetector.save`: JSON and raw arrays with a checksum for
        each, no pickle, written whole or not at all. It holds the scores that the monitor keeps, the evidence
        and the state of the random generator, and not the detector: save that too.

        Parameters
        ----------
        path : str, bytes, path or binary file
            As in `VAEDetector.save`. A file of this name is replaced; so a service can save after each batch.

        Raises
        ------
        ValueError
            If the detector has been fitted again since the monitor began. Nothing is written.
        ModelFileError
            If ``random_state`` is a RandomState over another generator than MT19937, if the selection is of a
            class of your own, or if there are more than 250 million scores. Nothing is written.
        OSError
            If the file cannot be written; an earlier one is as it was.

        Examples
        --------
        >>> import io
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> from vae_anomaly.monitoring import Monitor
        >>> rng = np.random.RandomState(0)
        >>> detector = VAEDetector(epochs=5, calibration=0.5, random_state=0).fit(rng.normal(size=(600, 3)))
        >>> monitor = Monitor(detector, random_state=0)
        >>> _ = monitor.update(rng.normal(size=(100, 3)))
        >>> file = io.BytesIO()
        >>> monitor.save(file)
        >>> _ = file.seek(0)
        >>> Monitor.load(file, detector).evidence == monitor.evidence
        True
        """
        self._check_detector()
        state = {
            "false_alarm_rate": self.false_alarm_rate,
            "random_state": self._rng,
            "calibration": self._calibration,
            "scores": self._known,
            "evidence": asdict(self.evidence),
            "drift": self._drift.state(),
            "anomalies": self._anomalies.state(),
        }
        if self.selection is not None:
            state["selection"] = {"name": _name_of(self.selection), **self.selection.state()}
        state_file.write(path, MONITOR, state, what="monitor", otherwise="Save it with joblib.dump")

    @classmethod
    def load(cls, path: PathOrFile, detector: Detector) -> Self:
        """The monitor in a file that `save` wrote, to go on where it stood.

        With the same batches, it finds the same evidence to the last bit as the monitor that was saved, on
        the same machine. Where ``random_state`` was None or shared with others, the loaded monitor has a
        generator of its own, which begins where that one stood.

        Nothing in the file is run. A file from strangers may still hold any evidence.

        Parameters
        ----------
        path : str, bytes, path or binary file
            As in `vae_anomaly.load`.
        detector : VAEDetector
            The one that the monitor was made with, itself saved and loaded perhaps. It is known by its
            ``calibration_scores_``: another model, another score or other rows held out have others.

        Returns
        -------
        Monitor

        Raises
        ------
        ValueError
            If it is another detector: says what differs. If it has no scores of rows held out.
        ModelFileError
            If the file is damaged, newer, or not that of a monitor; says so in one line.
        OSError
            If there is no such file, or if it cannot be read.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> import vae_anomaly
        >>> from vae_anomaly.monitoring import Monitor
        >>> rng = np.random.RandomState(0)
        >>> X, stream = rng.normal(size=(600, 3)), rng.normal(size=(200, 3))
        >>> detector = vae_anomaly.VAEDetector(epochs=5, calibration=0.5, random_state=0).fit(X)
        >>> monitor = Monitor(detector, random_state=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model, state = os.path.join(folder, "model.vae"), os.path.join(folder, "stream.monitor")
        ...     detector.save(model)
        ...     _ = monitor.update(stream[:100])
        ...     monitor.save(state)
        ...     loaded = Monitor.load(state, vae_anomaly.load(model))
        >>> loaded.update(stream[100:]) == monitor.update(stream[100:])
        True
        """
        identity = _identity(held_out_scores(detector, ASKS))
        with state_file.open_state(path, MONITOR) as state:
            evidence = Evidence(**state["evidence"])
            games = [Game.restore(**state[name]) for name in ("drift", "anomalies")]
            _check_state(state, evidence, games)
            selection = _restore(state.get("selection"), evidence.n_rows)
        _check_same(identity, state["calibration"])
        monitor = cls(detector, state["false_alarm_rate"], state["random_state"])
        monitor._known, monitor.evidence = state["scores"], evidence
        monitor._drift, monitor._anomalies = games
        monitor.selection = selection
        return monitor

    def _check_detector(self) -> Floats:
        """The detector's calibration scores, which must be those that the monitor began with."""
        calibration = held_out_scores(self.detector, ASKS)
        if calibration is not self._calibration_scores:  # their checksum takes as long as a row's score
            _check_same(_identity(calibration), self._calibration)
            self._calibration_scores = calibration
        return calibration

    def _update(self, scores: Floats) -> Evidence:
        for start in range(0, len(scores), _BLOCK):
            p_values = self._p_values(scores[start : start + _BLOCK])
            before, level = self.evidence, math.log(1 / self.false_alarm_rate)
            logs = [
                self._drift.play(1 - 2 * p_values),
                self._anomalies.play((p_values <= 1 - FAR) / (1 - FAR) - 1),
            ]
            firsts = [before.first_drifted, before.first_anomalies]
            for which, path in enumerate(logs):
                reached = np.flatnonzero(path >= level)
                if firsts[which] is None and len(reached):
                    firsts[which] = before.n_rows + int(reached[0]) + 1
            with np.errstate(over="ignore"):
                drift, anomalies = (float(np.exp(path[-1])) for path in logs)
            self.evidence = Evidence(
                firsts[0] is not None,
                firsts[1] is not None,
                drift,
                anomalies,
                before.n_rows + len(p_values),
                *firsts,
            )
        return self.evidence

    def _p_values(self, scores: Floats) -> Floats:
        """Each score's among those that are known and those before it, which are known from then on."""
        below, above = (np.searchsorted(self._known, scores, side=side) for side in ("left", "right"))
        n_before = np.arange(len(scores))
        earlier = n_before[:, None] > n_before
        n_larger = len(self._known) - above + ((scores > scores[:, None]) & earlier).sum(axis=1)
        n_equal = above - below + ((scores == scores[:, None]) & earlier).sum(axis=1)
        uniform = self._rng.random_sample(len(scores))
        ordered = np.sort(scores)
        self._known = np.insert(self._known, np.searchsorted(self._known, ordered), ordered)
        return np.asarray(
            (n_larger + uniform * (1 + n_equal)) / (len(self._known) - len(scores) + n_before + 1)
        )


def _resolve(selection: str | OnlineSelection | None, n_calibration: int) -> OnlineSelection | None:
    """A procedure that has tested nothing yet."""
    if selection is None:
        return None
    smallest = 1 / (n_calibration + 1)
    if isinstance(selection, OnlineSelection):
        procedure: OnlineSelection = clone(selection)
    elif isinstance(selection, str) and selection in ONLINE:
        procedure = ONLINE[selection]()
        procedure.set_params(horizon=procedure.horizon_for(smallest))
    else:
        raise ValueError(
            f"selection must be one of {[*ONLINE]}, an OnlineSelection or None; received {selection!r}."
        )
    if procedure.level_ < smallest:
        n_needed = math.ceil(round(1 / procedure.level_ - 1, 6))
        raise ValueError(
            f"{procedure!r} begins at a level of {procedure.level_:.3g}, and no p-value is below "
            f"{smallest:.3g} with {n_calibration:,} calibration rows: nothing would be selected. Hold out "
            f"{n_needed:,} rows, or set a larger false_discovery_rate or a shorter horizon."
        )
    return procedure


def _name_of(selection: OnlineSelection) -> str:
    for name, kind in ONLINE.items():
        if type(selection) is kind:
            return name
    raise ModelFileError(
        f"a monitor's file names no classes of your own, and {type(selection).__qualname__} is one. Save the "
        "monitor with joblib.dump."
    )


def _restore(state: Values | None, n_rows: int) -> OnlineSelection | None:
    if state is None:
        return None
    try:
        values = dict(state)
        procedure = ONLINE[values.pop("name")].restore(**values)
    except (ValueError, TypeError, KeyError):
        procedure = None
    if procedure is None or procedure.n_tested_ != n_rows:
        raise ModelFileError("is refused: its state cannot be that of a monitor.")
    return procedure


def _identity(calibration: Floats) -> Values:
    """What calibration scores are known by again."""
    checksum = hashlib.sha256(calibration.astype("<f8").tobytes())
    return {"n_scores": len(calibration), "sha256": checksum.hexdigest()}


def _check_same(found: Values, expected: Values) -> None:
    if found == expected:
        return
    n_found, n_expected = found["n_scores"], expected["n_scores"]
    difference = (
        f"as many calibration scores ({n_found}), but others: it is of another fit or another score"
        if n_found == n_expected
        else f"{n_found} calibration scores in the place of {n_expected}"
    )
    raise ValueError(
        "new scores can only be compared with calibration scores of the same fitted detector, and the one "
        f"here is not the one that the monitor was made with: it has {difference}. Load that one "
        "(VAEDetector.save keeps it); or begin anew with Monitor(detector). A monitor of a copy, "
        "Monitor(copy.deepcopy(detector)), goes on while the detector itself is fitted again."
    )


def _check_state(state: Values, evidence: Evidence, games: list[Game]) -> None:
    """Refuse what no monitor has saved; checksums hold, so that it was forged."""
    check_probability(state["false_alarm_rate"], "false_alarm_rate")
    *others, first_drifted, first_anomalies = asdict(evidence).values()
    n_scores = state["calibration"]["n_scores"] + evidence.n_rows
    vectors = [
        (state["scores"], n_scores),
        *((vector, len(game._stakes)) for game in games for vector in (game._stakes, game._log_capital)),
    ]
    if not (
        isinstance(state["random_state"], np.random.RandomState)
        and [type(value) for value in others] == [bool, bool, float, float, int]
        and all(first is None or type(first) is int for first in (first_drifted, first_anomalies))
        and all(isinstance(vector, np.ndarray) for vector, _ in vectors)
        and all(vector.dtype == float and vector.shape == (n,) for vector, n in vectors)
        and all(game._n_played == evidence.n_rows >= 0 for game in games)
        and all(len(game._stakes) > 0 and (np.abs(game._stakes) < 1).all() for game in games)
    ):
        raise ModelFileError("is refused: its state cannot be that of a monitor.")
