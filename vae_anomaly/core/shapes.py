"""Shapes: what a part of somebody's own returns has the one that it must have, or is refused by name."""

from __future__ import annotations

from vae_anomaly.core.types import Tensor

__all__ = ["check_shape"]


def check_shape(values: Tensor, function: str, axes: str, shape: tuple[int | None, ...]) -> Tensor:
    """The values, if their shape is, as far as it is known, the one they must have.

    Another one may be broadcast, and give numbers that depend on how many rows there are at once.

    Parameters
    ----------
    values : tensor
    function : str
        What has returned them, such as "log_prob of the likelihood".
    axes : str
        The shape in words, such as "(n_draws, n_rows)".
    shape : tuple of int or None
        The shape here; None is a length that is not known.

    Raises
    ------
    ValueError
    """
    found = tuple(values.shape)
    if len(found) != len(shape) or any(a != b for a, b in zip(found, shape, strict=True) if a and b):
        raise ValueError(
            f"{function} must return values of shape {axes}, here {shape}; received values of shape {found}."
        )
    return values
