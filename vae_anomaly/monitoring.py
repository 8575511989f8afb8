r"""Monitoring: do new rows still look like the training rows?

Drift is not anomalies. Anomalies are few rows in the tail of the scores; after a drift, the scores of most
rows have moved, up or down. So the bulk of the scores and their tail are asked apart.

Everything here compares ranks among scores of rows that were not trained on (`calibration`), and follows from
one assumption alone: without drift, calibration rows and new rows are exchangeable. What does not change the
scores is not seen.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from vae_anomaly.core.types import Detector, Floats, MatrixLike, PathOrFile, RandomStateLike, Values
from vae_anomaly.files import state_file
from vae_anomaly.files.archive import ModelFileError
from vae_anomaly.files.kinds import MONITOR

__all__ = ["Drift", "Evidence", "Monitor", "drift"]

# The bulk lies below this quantile of the calibration scores, anomalies above the other.
_BULK, _FAR = 0.9, 0.99
# As many rows in a hundred may be anomalies, and it is not a drift.
_TOLERATED = 0.05
_BLOCK = 512
# Bets on drift gain nothing, on average, while fewer than 5 % of the rows are anomalies.
_STAKES_ON_DRIFT = (-0.9, -0.3, 0.3, 0.9)
_STAKES_ON_ANOMALIES = (0.01, 0.1)


@dataclass(frozen=True)
class Drift:
    """What one batch of rows says of drift; made by `VAEDetector.drift`.

    Attributes
    ----------
    drifted : bool
        Whether ``p_value`` is at most ``false_alarm_rate``: most rows have moved.
    more_anomalies : bool
        Whether ``anomalies_p_value`` is at most ``false_alarm_rate``: few rows or many are far out.
    p_value : float
        Of no drift, up to 5 % anomalies allowed.
    anomalies_p_value : float
        Of as many rows above the 99 % quantile of the calibration scores as without anomalies.
    median_rank : float
        Share of the calibration scores that the batch's median score exceeds; 0.5 if nothing has changed.
    anomalous_fraction : float
        Share of the rows above the 99 % quantile.
    n_rows : int
    n_calibration : int
    false_alarm_rate : float
    reason : str
        The same in words.
    """

    drifted: bool
    more_anomalies: bool
    p_value: float
    anomalies_p_value: float
    median_rank: float
    anomalous_fraction: float
    n_rows: int
    n_calibration: int
    false_alarm_rate: float
    reason: str


def drift(scores: npt.ArrayLike, calibration: npt.ArrayLike, false_alarm_rate: float = 0.01) -> Drift:
    r"""Compare a batch of scores with those of rows that were not trained on.

    Let c be the k-th smallest of n calibration scores, with k = ⌈0.9 (n + 1)⌉. Without drift and ties,

    - the scores below c are two samples of one distribution: Cramér–von Mises test (Anderson 1962), against
      shifts up and down;
    - of m rows, a number above c has the law :math:`\mathrm{BetaBinomial}(m; n + 1 - k, k)`. Too few are
      drift; too many are if 5 % of the rows, all above c, were not enough to explain them.

    ``p_value`` is Bonferroni's of the two, and so are the two sides of the second. Anomalies are counted in
    the same way above the 99 % quantile. Ties are broken at random.

    Parameters
    ----------
    scores : array of shape (n_rows,)
        Of the batch; larger = more anomalous.
    calibration : array of shape (n_calibration,)
    false_alarm_rate : float, default=0.01
        In (0, 1); see `VAEDetector.drift`.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.monitoring import drift
    >>> rng = np.random.RandomState(0)
    >>> calibration, batch = rng.gumbel(size=500), rng.gumbel(size=200)
    >>> drift(batch, calibration).drifted, drift(batch + 0.5, calibration).drifted
    (False, True)
    """
    _check_rate(false_alarm_rate)
    scores, calibration = np.asarray(scores, dtype=float), np.asarray(calibration, dtype=float)
    n_rows, n_calibration = len(scores), len(calibration)
    if n_rows == 0 or n_calibration == 0:
        raise ValueError(f"drift needs scores; received {n_rows} of the batch and {n_calibration} held out.")
    ranks, known = _ranks(scores, calibration)
    p_value = _drift_p_value(ranks, known)
    position = min(n_calibration, math.ceil(_FAR * (n_calibration + 1)))
    n_far = int((ranks > known[position - 1]).sum())
    of_chance = stats.betabinom(n_rows, n_calibration + 1 - position, position)
    anomalies_p_value = float(of_chance.sf(n_far - 1))
    median_rank = float(np.mean(known < np.median(ranks)))
    drifted, more = p_value <= false_alarm_rate, anomalies_p_value <= false_alarm_rate
    reason = _reason(drifted, more, median_rank, n_far / n_rows, 1 - position / (n_calibration + 1))
    return Drift(
        bool(drifted),
        bool(more),
        p_value,
        anomalies_p_value,
        median_rank,
        n_far / n_rows,
        n_rows,
        n_calibration,
        float(false_alarm_rate),
        reason,
    )


def _ranks(scores: Floats, calibration: Floats) -> tuple[Floats, Floats]:
    """Ranks of all scores together, ties broken at random: the batch's, and the calibration's in order."""
    together = np.concatenate([scores, calibration])
    order = np.lexsort((np.random.RandomState(0).random_sample(len(together)), together))
    ranks = np.empty(len(together))
    ranks[order] = np.arange(len(together))
    return ranks[: len(scores)], np.sort(ranks[len(scores) :])


def _drift_p_value(ranks: Floats, known: Floats) -> float:
    n_rows, n_calibration = len(ranks), len(known)
    position = min(n_calibration, math.ceil(_BULK * (n_calibration + 1)))
    bulk = ranks[ranks < known[position - 1]]
    of_bulk = 1.0
    if len(bulk) > 1 and position > 2:
        # The exact law takes a hundred times as long, and small samples are not easier to tell apart by it.
        of_bulk = stats.cramervonmises_2samp(bulk, known[: position - 1], method="asymptotic").pvalue
    n_above, n_tolerated = n_rows - len(bulk), math.floor(_TOLERATED * n_rows)
    shape = n_calibration + 1 - position, position
    too_few = stats.betabinom.cdf(n_above, n_rows, *shape)
    too_many = stats.betabinom.sf(n_above - n_tolerated - 1, n_rows - n_tolerated, *shape)
    return float(min(1, 2 * of_bulk, 4 * too_few, 4 * too_many))


# -- a stream ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Evidence:
    """What a stream has said so far; made by `Monitor.update`.

    Attributes
    ----------
    drifted : bool
        Whether the evidence of drift has reached 1 / ``false_alarm_rate``, now or before.
    more_anomalies : bool
        The same of anomalies.
    drift : float
        The present evidence: what a fair game would have made of 1 by bets against "nothing has changed".
    anomalies : float
        The same of bets that scores above the 99 % quantile become more frequent.
    n_rows : int
        Rows since the monitor began.
    first_drifted : int or None
        The row, counted from 1, at which drift was found.
    first_anomalies : int or None
    """

    drifted: bool
    more_anomalies: bool
    drift: float
    anomalies: float
    n_rows: int
    first_drifted: int | None
    first_anomalies: int | None


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
    change is to stay, and begin a new monitor. It keeps all scores, 8 bytes for each row. `save` and `load`
    let another process go on with it.

    Parameters
    ----------
    detector : VAEDetector
        Fitted, with calibration rows held out.
    false_alarm_rate : float, default=0.01
        α, in (0, 1): for drift and for anomalies each.
    random_state : int, RandomState instance or None, default=None
        For u.

    Attributes
    ----------
    evidence : Evidence

    Raises
    ------
    ValueError
        If the detector has no scores of rows held out, or for a rate outside (0, 1).

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
    """

    def __init__(
        self, detector: Detector, false_alarm_rate: float = 0.01, random_state: RandomStateLike = None
    ) -> None:
        _check_rate(false_alarm_rate)
        self.detector = detector
        self.false_alarm_rate = float(false_alarm_rate)
        calibration = held_out_scores(detector)
        self._known = np.sort(calibration)
        self._calibration = _identity(calibration)
        self._rng = check_random_state(random_state)
        self._drift = _Game(_STAKES_ON_DRIFT)
        self._anomalies = _Game(_STAKES_ON_ANOMALIES)
        self.evidence = Evidence(False, False, 1.0, 1.0, 0, None, None)

    def update(self, X: MatrixLike) -> Evidence:
        """Add rows, in the order in which they came.

        Parameters
        ----------
        X : array or DataFrame of shape (n_rows, n_features), or images as in `fit`
            Any number of rows; how they are batched changes nothing.

        Returns
        -------
        Evidence
        """
        return self._update(-self.detector.score_samples(X))

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
            If ``random_state`` is a RandomState over another generator than MT19937, or if there are more
            than 250 million scores. Nothing is written.
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
        _check_same(_identity(held_out_scores(self.detector)), self._calibration)
        state = {
            "false_alarm_rate": self.false_alarm_rate,
            "random_state": self._rng,
            "calibration": self._calibration,
            "scores": self._known,
            "evidence": asdict(self.evidence),
            "drift": self._drift.state(),
            "anomalies": self._anomalies.state(),
        }
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
        identity = _identity(held_out_scores(detector))
        with state_file.open_state(path, MONITOR) as state:
            evidence = Evidence(**state["evidence"])
            games = [_Game.restore(**state[name]) for name in ("drift", "anomalies")]
            _check_state(state, evidence, games)
        _check_same(identity, state["calibration"])
        monitor = cls(detector, state["false_alarm_rate"], state["random_state"])
        monitor._known, monitor.evidence = state["scores"], evidence
        monitor._drift, monitor._anomalies = games
        return monitor

    def _update(self, scores: Floats) -> Evidence:
        for start in range(0, len(scores), _BLOCK):
            p_values = self._p_values(scores[start : start + _BLOCK])
            before, level = self.evidence, math.log(1 / self.false_alarm_rate)
            logs = [
                self._drift.play(1 - 2 * p_values),
                self._anomalies.play((p_values <= 1 - _FAR) / (1 - _FAR) - 1),
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


class _Game:
    """Fair bets at several stakes, each begun at every time with a little of the capital."""

    def __init__(self, stakes: tuple[float, ...]) -> None:
        self._stakes = np.array(stakes)
        self._log_capital = np.full(len(stakes), -np.inf)
        self._n_played = 0

    @classmethod
    def restore(cls, stakes: Floats, log_capital: Floats, n_played: int) -> Self:
        """The game of a `state`."""
        game = cls(tuple(stakes))
        game._log_capital, game._n_played = log_capital, n_played
        return game

    def state(self) -> Values:
        """What the game goes on from."""
        return {
            "stakes": self._stakes,
            "log_capital": self._log_capital,
            "n_played": self._n_played,
        }

    def play(self, outcomes: Floats) -> Floats:
        """Logarithm of all capital after each outcome, of mean 0 and at least -1 in a fair game."""
        times = self._n_played + np.arange(len(outcomes))
        # What has not been bet yet before and after each outcome.
        before, after = 1 / np.log2(times + 2), 1 / np.log2(times + 3)
        gains = np.log1p(self._stakes[:, None] * outcomes)
        product = np.cumsum(gains, axis=1)
        begun = np.log(before - after) - math.log(len(self._stakes)) - (product - gains)
        entries = np.concatenate([self._log_capital[:, None], begun], axis=1)
        log_capital = product + np.logaddexp.accumulate(entries, axis=1)[:, 1:]
        self._log_capital = log_capital[:, -1]
        self._n_played += len(outcomes)
        return np.asarray(np.logaddexp(np.logaddexp.reduce(log_capital, axis=0), np.log(after)))


def held_out_scores(detector: Detector) -> Floats:
    """The fitted detector's scores of rows that were held out of training; a ValueError if it has none."""
    check_is_fitted(detector)
    scores = detector.calibration_scores_
    if scores is None or len(scores) == getattr(detector, "n_samples_fit_", None):
        by_folds = "" if scores is None else " (folds are scored by other models)"
        raise ValueError(
            "drift is measured against scores of rows that were held out of training: fit with a fraction "
            f"such as calibration=0.2; now calibration={detector.calibration!r}{by_folds} and "
            f"threshold={detector.threshold!r}."
        )
    return np.asarray(scores, dtype=float)


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
        "(VAEDetector.save keeps it); or begin anew with Monitor(detector)."
    )


def _check_state(state: Values, evidence: Evidence, games: list[_Game]) -> None:
    """Refuse what no monitor has saved; checksums hold, so that it was forged."""
    _check_rate(state["false_alarm_rate"])
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


def _check_rate(rate: object) -> None:
    if not isinstance(rate, Real) or not 0 < float(rate) < 1:
        raise ValueError(f"false_alarm_rate must lie in (0, 1); received {rate!r}.")


def _reason(drifted: bool, more: bool, median_rank: float, far: float, expected: float) -> str:
    bulk = f"the median row scores above {100 * median_rank:.0f} % of the calibration rows"
    tail = f"{100 * far:.3g} % of the rows lie where {100 * expected:.2g} % are expected"
    if drifted:
        return f"Drift: {bulk}, and {tail}."
    if more:
        return f"More anomalies, no drift: {tail}, and {bulk}."
    return f"Nothing has changed that shows: {bulk}, and {tail}."
