"""Devices: which of those that a detector names computes what.

Members are trained on the devices in turn: each is whole on one, and none waits for another. What asks all
members about rows is one program, and computes on the first device.
"""

from __future__ import annotations

from collections.abc import Sequence

from vae_anomaly.core.backend import tf
from vae_anomaly.core.conventions import warn_user

__all__ = ["Devices", "check_devices", "device_of"]

#: A device's name, several, or None for the one that TensorFlow chooses.
Devices = str | Sequence[str] | None


def device_of(devices: Devices, position: int = 0) -> str | None:
    """The device that trains the member at this position; that of the first one scores, too."""
    if devices is None or isinstance(devices, str):
        return devices
    return devices[position % len(devices)]


def check_devices(devices: Devices) -> None:
    """Refuse what names no device; warn of those that are not here, in whose place TensorFlow takes another.

    Raises
    ------
    ValueError, TypeError
    """
    if devices is None:
        return
    names = [devices] if isinstance(devices, str) else list(devices)
    if not names:
        raise ValueError("device must name at least one device; received none. None leaves it to TensorFlow.")
    here = [(each.device_type, _index(each.name)) for each in tf.config.list_logical_devices()]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"device must be a name or a list of names; received {name!r} in it.")
        try:
            wanted = tf.DeviceSpec.from_string(name)
        except ValueError:
            wanted = tf.DeviceSpec()
        if wanted.device_type is None:
            raise ValueError(
                f"device must be the name of a device of TensorFlow, such as 'cpu' or 'gpu:1', or a list of "
                f"them; received {name!r}."
            )
        if (wanted.device_type, wanted.device_index or 0) not in here:
            seen = ", ".join(f"{kind.lower()}:{index}" for kind, index in here)
            warn_user(
                f"device names {name!r}, which TensorFlow does not see here: it computes on one of {seen} in "
                "its place.",
                UserWarning,
            )


def _index(name: str) -> int:
    return int(tf.DeviceSpec.from_string(name).device_index)
