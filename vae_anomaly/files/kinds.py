"""Kinds of files: a model, a checkpoint or a monitor, told apart by the name of their main part."""

from __future__ import annotations

from typing import NamedTuple

from vae_anomaly.files.archive import Archive, ModelFileError

__all__ = ["CHECKPOINT", "MODEL", "MONITOR", "Kind", "check_kind"]


class Kind(NamedTuple):
    """What a file holds, the part that describes it, and what reads it."""

    name: str
    part: str
    use: str


MODEL = Kind("a model", "detector.json", "vae_anomaly.load(path) reads it")
CHECKPOINT = Kind(
    "the checkpoint of an unfinished fit",
    "checkpoint.json",
    "fit(X, resume=True) of a detector with checkpoint=path goes on with it",
)
MONITOR = Kind(
    "a monitor", "monitor.json", "vae_anomaly.monitoring.Monitor.load(path, detector) goes on with it"
)


def check_kind(archive: Archive, wanted: Kind) -> None:
    """Refuse a file of another kind, with what reads it."""
    for kind in (MODEL, CHECKPOINT, MONITOR):
        if kind != wanted and kind.part in archive.names:
            raise ModelFileError(f"is {kind.name}, not {wanted.name}: {kind.use}.")
