"""What a column of a table is taken for, by its dtype and its values, where nobody has said it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types

from vae_anomaly.core.types import Floats

__all__ = [
    "IGNORED",
    "Recognized",
    "holds_times",
    "is_iso_date",
    "is_number",
    "kind_of",
    "kinds_of",
    "numbers_of_texts",
    "recognize",
    "serial_numbers",
]

#: What is said of a column that the model leaves out.
IGNORED = "ignored"

# Whole numbers around it and above are measurements: ages, years, prices. Their logarithms, which Count sees,
# tell less of them (on twelve real tables, `benchmarks/mixed.py`). So many different texts at most are
# categories, whatever they look like.
_MANY = 10
# Of floats; beyond, they have no neighbors that are not whole.
_LARGEST_WHOLE = 2**53
# Hours, days of a month, ratings; a count that has a ceiling has it in some rows.
_MOST_LEVELS, _FEWEST_AT_CEILING = 31, 5
# Of fewer rows, that all differ says little.
_FEWEST_ROWS_OF_IDENTIFIERS = 50

_NUMBER = re.compile(r"[-+]?((\d{1,3}(,\d{3})+|\d+)(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_CURRENCY = "$€£¥"
_LEADING_ZERO = re.compile(r"[-+]?0\d")
_CODE = re.compile(r"\d{4,}")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?")
_DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ]\d{1,2}:\d{2}.*)?")
_ID_NAME = re.compile(r"(?i:(^|[\W_])(id|uid|uuid|guid)$)|[a-z](Id|ID|Uuid|UUID)$")
_TIME_KINDS = {
    *("date", "datetime", "time", "timedelta", "Timestamp", "Timedelta", "Period"),
    *("datetime64", "timedelta64"),
}

# What pandas says of arrays whose values are all of a kind, without a look at each in Python.
_KINDS_OF_ARRAYS = {"string": "str", "boolean": "bool", "integer": "number", "floating": "number"}


class Recognized(NamedTuple):
    """What a column is taken for.

    Attributes
    ----------
    likelihood : str
        The name of one, or `IGNORED`.
    reason : str or None
        What a warning says of such columns, with ``{first}`` for the name of one; None if it is as it looks.
    """

    likelihood: str
    reason: str | None = None


_IDENTIFIERS = Recognized(
    IGNORED,
    "nearly every row holds a value of its own, as in identifiers and free text, so the model leaves it out. "
    "likelihood={{{first!r}: 'ignored'}} does so without this warning; 'categorical' or another likelihood "
    "models it.",
)
_WRITTEN_NUMBERS = (
    "the numbers are texts or objects, and are read. Convert them before, for example with "
    "pandas.to_numeric, or choose: likelihood={{{first!r}: 'gaussian'}} reads them without this warning, "
    "'categorical' takes them for categories."
)


def recognize(values: pd.Series, name: Hashable, n_rows: int | None = None) -> Recognized:
    """What a column is taken for; of ``n_rows`` rows, if ``values`` are those of some of them.

    Raises
    ------
    TypeError
        If it holds dates or times, or has a dtype that nothing is known of; the message says what to do.
    """
    present = _without_gaps(values) if n_rows is None else values.dropna().infer_objects()
    # For how many values each of these stands.
    stands_for = 1.0 if n_rows is None or not len(values) else n_rows / len(values)
    if holds_times(values):
        raise _of_times(name, present.iloc[0])
    if types.is_bool_dtype(present.dtype):
        return Recognized("bernoulli")
    if is_number(present):
        return _recognize_numbers(present, name, stands_for)
    if isinstance(values.dtype, pd.CategoricalDtype):
        return _IDENTIFIERS if _is_of_single_values(present) else Recognized("categorical")
    if types.is_object_dtype(values.dtype) or types.is_string_dtype(values.dtype):
        return _recognize_objects(present, name, stands_for)
    raise TypeError(
        f"column {name!r} has the dtype {values.dtype}, which no likelihood knows; turn it into numbers or "
        f"categories, or leave it out with likelihood={{{name!r}: 'ignored'}}."
    )


def serial_numbers(values: pd.Series, name: Hashable, stands_for: float = 1.0) -> bool:
    """Whether a column of whole numbers counts or names its rows, and does not measure them.

    All its values differ, and they fill at least half of their range, as running numbers do, or the name of
    the column says that they are identifiers. Of more rows than these, each value stands for so many.
    """
    present = _without_gaps(values)
    if not types.is_integer_dtype(present.dtype) or len(present) < _FEWEST_ROWS_OF_IDENTIFIERS:
        return False
    if not present.is_unique:
        return False
    is_dense = int(present.max()) - int(present.min()) < 2 * len(present) * stands_for
    return is_dense or (isinstance(name, str) and _ID_NAME.search(name) is not None)


def holds_times(values: pd.Series) -> bool:
    """Whether a column holds dates, times, durations or periods, by its dtype, as objects or as texts."""
    if values.dtype.kind in "mM" or isinstance(values.dtype, pd.PeriodDtype):
        return True
    if isinstance(values.dtype, pd.ArrowDtype) and values.dtype.type in (datetime.date, datetime.time):
        return True
    if not (types.is_object_dtype(values.dtype) or types.is_string_dtype(values.dtype)):
        return False
    present = values.dropna()
    return len(present) > 0 and all(map(_is_time, present))


def _is_time(value: object) -> bool:
    if isinstance(value, str):
        return _DATE.fullmatch(value.strip()) is not None
    return kind_of(value) in _TIME_KINDS


def is_iso_date(text: str) -> bool:
    """Whether a text is a date as ISO 8601 writes it, with or without a time."""
    return _ISO_DATE.fullmatch(text.strip()) is not None


def numbers_of_texts(values: pd.Series) -> Floats | None:
    """Texts as the numbers that they write, such as "12.5", "-3e5", "$1,234" and "7 %"; None if one does not.

    NaN where a value is missing. Numbers and `decimal.Decimal` are taken too.
    """
    codes, different = pd.factorize(values.astype(object))
    numbers = np.full(len(different) + 1, np.nan)  # the code of a missing value is -1
    for position, value in enumerate(different):
        number = _number_of(value)
        if number is None:
            return None
        numbers[position] = number
    return numbers[codes]


def _number_of(value: Any) -> float | None:
    if kind_of(value) in ("number", "Decimal", "Fraction"):
        return float(value)
    if not isinstance(value, str):
        return None
    text = value.strip().removesuffix("%").strip(f"{_CURRENCY} ")
    if text[:1] in ("+", "-"):
        text = text[0] + text[1:].lstrip(f"{_CURRENCY} ")
    return float(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def is_number(values: pd.Series) -> bool:
    """Whether a column holds numbers by its dtype; booleans are none."""
    return types.is_numeric_dtype(values.dtype) and not types.is_bool_dtype(values.dtype)


def kind_of(value: object) -> str:
    """Which values a column may hold together."""
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    # numpy's durations are whole numbers, by their class.
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, np.timedelta64):
        return "number"
    if isinstance(value, str):  # numpy's too
        return "str"
    return type(value).__name__


def kinds_of(values: pd.Series) -> set[str]:
    """The kinds of all values, of which none is missing."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = pd.Series(values.cat.remove_unused_categories().cat.categories)
    alike = _KINDS_OF_ARRAYS.get(types.infer_dtype(values, skipna=False))
    return {alike} if alike is not None else {kind_of(value) for value in values}


def _without_gaps(values: pd.Series) -> pd.Series:
    """The values that are not missing, in the dtype that pandas gives them if none is.

    Of whole numbers with gaps it makes floats or objects, of booleans objects.
    """
    present = values.dropna()
    if types.is_object_dtype(values.dtype):
        present = present.infer_objects()
    if not isinstance(present.dtype, np.dtype) or present.dtype.kind != "f" or len(present) == len(values):
        return present
    whole = len(present) > 0 and (present % 1 == 0).all() and present.abs().max() < _LARGEST_WHOLE
    return present.astype(np.int64) if whole else present


def _recognize_numbers(present: pd.Series, name: Hashable, stands_for: float) -> Recognized:
    if serial_numbers(present, name, stands_for):
        return _IDENTIFIERS
    if not types.is_integer_dtype(present.dtype) or present.min() < 0:
        return Recognized("gaussian")
    if _has_ceiling(present):
        return Recognized("categorical")
    return Recognized("count" if present.median() < _MANY else "gaussian")


def _recognize_objects(present: pd.Series, name: Hashable, stands_for: float) -> Recognized:
    kinds = kinds_of(present)
    if kinds == {"str"}:
        texts = [str(text).strip() for text in present.unique()]
        is_code = any(map(_LEADING_ZERO.match, texts))
        is_code |= len(set(map(len, texts))) == 1 and all(map(_CODE.fullmatch, texts))
        if is_code and _is_of_single_values(present):
            return _IDENTIFIERS
        if is_code or len(texts) <= _MANY:
            return Recognized("categorical")
    if kinds <= {"str", "number", "Decimal", "Fraction"}:
        numbers = numbers_of_texts(present)
        if numbers is not None:
            written = pd.Series(numbers)
            whole = (written % 1 == 0).all() and written.abs().max() < _LARGEST_WHOLE
            found = _recognize_numbers(written.astype("int64") if whole else written, name, stands_for)
            # Identifiers and categories are taken as the texts that they are.
            is_read = found.likelihood in ("count", "gaussian")
            return Recognized(found.likelihood, _WRITTEN_NUMBERS) if is_read else found
    if kinds == {"str"} and _is_of_single_values(present):
        return _IDENTIFIERS
    return Recognized("categorical")


def _has_ceiling(present: pd.Series) -> bool:
    """Whether whole numbers end where many of them are, as hours, months and ratings do, and counts do not.

    The largest value is at least a quarter as frequent as values are on average.
    """
    counts = present.value_counts()
    largest = counts[present.max()]
    return len(counts) <= _MOST_LEVELS and largest >= max(
        _FEWEST_AT_CEILING, len(present) / (4 * len(counts))
    )


def _is_of_single_values(present: pd.Series) -> bool:
    """Whether a new row will rather hold a value that is not here than one that is.

    The fraction of values that appear once estimates how many new ones there will be (Good 1953, "The
    population frequencies of species and the estimation of population parameters").
    """
    if len(present) < _FEWEST_ROWS_OF_IDENTIFIERS:
        return False
    try:
        counts = present.value_counts()
    except TypeError:  # values that cannot be compared
        return False
    return bool((counts == 1).sum() > len(present) / 2)


def _of_times(name: Hashable, value: object) -> TypeError:
    return TypeError(
        f"column {name!r} holds dates or times, such as {value!r}, and a date is no category: new ones come "
        "every day. Turn it into features such as the hour and the weekday with "
        "vae_anomaly.preprocessing.DatetimeFeatures, put before the detector in a pipeline, or leave it out "
        f"with likelihood={{{name!r}: 'ignored'}}."
    )
