"""State files: what a fit or a monitor needs to go on later, as one file of numbers, texts and arrays.

`archive` decides the form of the file, `encoding` how values are written in it, `decoding` how they are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vae_anomaly.core.types import PathOrFile, Values
from vae_anomaly.core.versions import versions
from vae_anomaly.files import archive
from vae_anomaly.files.decoding import decode_values
from vae_anomaly.files.encoding import encode_values
from vae_anomaly.files.kinds import Kind, check_kind

__all__ = ["open_state", "write"]


def write(path: PathOrFile, kind: Kind, state: Values, *, what: str, otherwise: str) -> None:
    """Write a state as a file of this kind; see `archive.write`, also for ``what`` and ``otherwise``.

    Raises
    ------
    ModelFileError
        If a value is none that a file can hold; names it.
    """
    tree, arrays = encode_values(state)
    parts = {f"arrays/{position}": array for position, array in enumerate(arrays)}
    archive.write(
        path,
        {"versions": versions()},
        {kind.part: archive.to_json(tree, "its state"), **parts},
        what=what,
        otherwise=otherwise,
    )


@contextlib.contextmanager
def open_state(path: PathOrFile, kind: Kind) -> Iterator[Values]:
    """The state in a file of this kind; what is wrong with it, here or in the block, is a `ModelFileError`.

    Raises
    ------
    ModelFileError
        If the file is damaged, of another kind or from a newer release; says so in one line.
    OSError
        If the file cannot be read.
    """
    with archive.open_archive(path) as opened:
        check_kind(opened, kind)
        yield decode_values(opened.json(kind.part), opened)
