"""Transformers that stand before a detector in a pipeline."""

from __future__ import annotations

import datetime
import re
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from vae_anomaly.core.types import Constraints, Floats, MatrixLike, Unchecked
from vae_anomaly.data import frames
from vae_anomaly.data.pixels import PixelScaler
from vae_anomaly.data.recognition import holds_times, is_iso_date

__all__ = ["DatetimeFeatures", "PixelScaler"]

_DAY = 86_400.0  # seconds
_WEEK, _YEAR = 7 * _DAY, 365.2425 * _DAY
# Of a text that tells a time of the day.
_ZONE = re.compile(r"([T ]\d{2}:\d{2}[^Z+-]*?) ?(Z|[+-]\d{2}(:?\d{2})?)$")
_MONDAY = pd.Timestamp("1970-01-05")


class DatetimeFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Columns of dates and times as numbers: where in the day, in the week and in the year they lie.

    A time t is told by the angle that it has in a period P,

    .. math:: \sin(2 \pi t / P), \quad \cos(2 \pi t / P),

    so that 23:59 lies next to 0:00 and December next to January. A column ``when`` becomes ``when_day_sin``,
    ``when_day_cos`` for the time of day, ``when_week_sin``, ``when_week_cos`` for the time of the week and
    ``when_year_sin``, ``when_year_cos`` for the day of the year. A period that the training rows do not span
    is left out, because all that it could say of later rows is that they are later; so is the time of day of
    dates. A duration becomes its number of days, ``when_days``. A missing time gives missing numbers, NaN.
    Other columns stay as they are.

    Parameters
    ----------
    elapsed : bool, default=False
        Whether a date also becomes the number of days since the first of the training rows, ``when_days``.
        Rows that are later than all training rows lie outside of what a detector has seen, and are flagged
        for it after a while.

    Attributes
    ----------
    feature_origins_ : list of int
        For each column that comes out, the position of the one that it is made of.
    n_features_in_ : int
    feature_names_in_ : array of str

    Raises
    ------
    ValueError
        In `fit` and `transform`, if a text is not a date as ISO 8601 writes it, such as 2024-12-31 or
        2024-12-31T23:59.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from vae_anomaly.preprocessing import DatetimeFeatures
    >>> X = pd.DataFrame({"when": pd.date_range("2024-01-01", periods=60, freq="7h"), "size": np.arange(60)})
    >>> DatetimeFeatures().fit_transform(X).columns.tolist()
    ['when_day_sin', 'when_day_cos', 'when_week_sin', 'when_week_cos', 'size']
    """

    _parameter_constraints: ClassVar[Constraints] = {"elapsed": ["boolean"]}

    def __init__(self, elapsed: bool = False) -> None:
        self.elapsed = elapsed

    def fit(self, X: MatrixLike, y: object = None) -> Self:
        """Find the columns of times, and the periods that they span.

        Parameters
        ----------
        X : DataFrame of shape (n_rows, n_columns), or array without times
        y : ignored
        """
        self._validate_params()
        table = self._checked(X, reset=True)
        self._kinds: list[str | None] = []  # None of a column without times
        self._parts: list[list[str]] = []
        self._starts: list[str | None] = []  # texts, which every way of storing the transformer takes
        for position in range(table.shape[1]):
            kind, parts, start = None, [""], None
            if isinstance(table, pd.DataFrame) and holds_times(table.iloc[:, position]):
                kind, times = _times(table.iloc[:, position])
                parts = self._parts_of(kind, times)
                start = times.min().isoformat() if kind == "date" else None
            self._kinds.append(kind)
            self._parts.append(parts)
            self._starts.append(start)
        self.feature_origins_ = [position for position, parts in enumerate(self._parts) for _ in parts]
        return self

    def transform(self, X: MatrixLike) -> Any:
        """Each column of times as its numbers, among the other columns.

        Parameters
        ----------
        X : DataFrame or array as in `fit`

        Returns
        -------
        DataFrame if X is one, else array, of shape (n_rows, n_columns_out)
        """
        check_is_fitted(self)
        table = self._checked(X, reset=False)
        if not isinstance(table, pd.DataFrame):
            return table
        columns: list[pd.Series] = []
        for position, (kind, parts, start) in enumerate(
            zip(self._kinds, self._parts, self._starts, strict=True)
        ):
            values = table.iloc[:, position]
            if kind is None:
                columns.append(values)
            elif values.isna().all():
                columns += [pd.Series(np.nan, table.index)] * len(parts)
            else:
                found, times = _times(values) if holds_times(values) else ("no time", values)
                if found != kind:
                    raise ValueError(
                        f"column {values.name!r} held values of the kind {kind!r} in fit; received "
                        f"{values.dropna().tolist()[0]!r} ({found})."
                    )
                columns += [pd.Series(_number(times, part, start), table.index) for part in parts]
        # `concat` takes no empty list: of dates of a few days, nothing is left.
        made = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=table.index)
        return made.set_axis(list(self.get_feature_names_out()), axis=1)

    def get_feature_names_out(self, input_features: npt.ArrayLike | None = None) -> npt.NDArray[np.object_]:
        """Names of the columns that `transform` returns."""
        check_is_fitted(self)
        given = getattr(self, "feature_names_in_", input_features)
        names = [f"x{i}" for i in range(self.n_features_in_)] if given is None else list(np.asarray(given))
        out = [
            f"{name}_{part}" if part else name
            for name, parts in zip(names, self._parts, strict=True)
            for part in parts
        ]
        return np.array(out, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags

    def _checked(self, X: MatrixLike, reset: bool) -> Unchecked:
        X = frames.to_pandas(X)
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        return validate_data(self, X, reset=reset, dtype=None, ensure_all_finite=False)

    def _parts_of(self, kind: str, times: pd.Series) -> list[str]:
        if kind == "duration":
            return ["days"]
        if kind == "time of day":
            return ["day_sin", "day_cos"]
        present = times.dropna()
        span = (present.max() - present.min()).total_seconds()
        periods = ["day"] if (present != present.dt.normalize()).any() else []
        periods += [name for name, length in (("week", _WEEK), ("year", _YEAR)) if span >= length]
        parts = [f"{period}_{wave}" for period in periods for wave in ("sin", "cos")]
        return [*parts, "days"] if self.elapsed else parts


def _times(values: pd.Series) -> tuple[str, pd.Series]:
    """What a column holds, dates, durations or times of the day, and it as datetimes or timedeltas."""
    if isinstance(values.dtype, pd.ArrowDtype):
        values = values.astype(object).infer_objects()
    present = values.dropna()
    first = present.iloc[0] if len(present) else None
    if isinstance(values.dtype, pd.PeriodDtype):
        return "date", values.dt.to_timestamp()
    if isinstance(first, (datetime.timedelta, np.timedelta64)):
        return "duration", pd.to_timedelta(values)
    if isinstance(first, datetime.time):
        seconds = [
            np.nan if pd.isna(value) else 3600 * value.hour + 60 * value.minute + value.second
            for value in values
        ]
        return "time of day", pd.to_timedelta(pd.Series(seconds, values.index, dtype=np.float64), unit="s")
    if values.dtype.kind == "M":
        # What the clock shows where the times were taken: the hour of the day is meant.
        return "date", values if values.dt.tz is None else values.dt.tz_localize(None)
    return "date", _dates_of_texts(values)


def _dates_of_texts(values: pd.Series) -> pd.Series:
    """Texts and objects as the dates that they tell, each by the clock of its own zone."""
    clock = values.astype(object).map(_by_the_clock, na_action="ignore").astype("str")
    found = pd.to_datetime(clock, format="ISO8601", errors="coerce")
    wrong = values[found.isna() & values.notna()]
    if len(wrong):
        raise ValueError(
            f"column {values.name!r} holds {wrong.iloc[0]!r}, which is not a date as ISO 8601 writes it; "
            "convert the column with pandas.to_datetime, which takes the format, and fit again."
        )
    return found


def _by_the_clock(value: object) -> str:
    """A date as ISO 8601 writes it, without its zone; any other text as it is."""
    text = value.isoformat() if isinstance(value, datetime.date) else str(value).strip()
    return _ZONE.sub(r"\1", text) if is_iso_date(text) else "no date"


def _number(times: pd.Series, part: str, start: str | None) -> Floats:
    if part == "days":
        elapsed = times if start is None else times - pd.Timestamp(start)
        return np.asarray(elapsed.dt.total_seconds() / _DAY, dtype=np.float64)
    period, wave = part.split("_")
    if times.dtype.kind == "m":
        fraction = times.dt.total_seconds() / _DAY
    elif period == "year":
        fraction = (times.dt.day_of_year - 1) / np.where(times.dt.is_leap_year, 366, 365)
    else:
        seconds = (times - _MONDAY).dt.total_seconds()
        fraction = seconds / (_DAY if period == "day" else _WEEK)
    angle = 2 * np.pi * np.asarray(fraction % 1, dtype=np.float64)
    return np.sin(angle) if wave == "sin" else np.cos(angle)
