"""Archives: named parts in one file, which is written whole or not at all and read within its own size.

An archive is a zip file of one plain form: parts follow each other without gaps, neither compressed nor
encrypted, and the first is a JSON manifest with the SHA-256 of every other. So all parts together are no
larger than the file, and nothing in a part has a meaning before its checksum holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO, NoReturn

from vae_anomaly.core.types import Json, PathOrFile

__all__ = [
    "SAVING",
    "Archive",
    "ModelFileError",
    "open_archive",
    "parse_json",
    "path_of",
    "replace_file",
    "to_json",
    "write",
]

#: How the name of a file begins that is being written.
SAVING = ".saving-"
FORMAT, FORMAT_VERSION = "vae_anomaly model", 1

_MANIFEST = "manifest.json"
_NAME = re.compile(r"[a-z]+\.json|arrays/(0|[1-9][0-9]{0,4})")
# Python makes up to 8 bytes of a byte of JSON, and far more of empty lists: hence both limits.
_JSON_BYTES, _JSON_CONTAINERS = 2**22, 2**17
_PARTS = 2**14
# What `zipfile` writes without the records that zip has for larger files.
_BYTES = 2 * 10**9
_BYTES_AT_ONCE = 2**20
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), ". Make room, or choose another disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ". Choose a folder that you may write to"),
    errno.ENOENT: ". Make the folder first",
}
_END = struct.Struct("<4s4H2LH")
_END_OF_ZIP64 = b"PK\x06\x07"
_LOCAL_HEADER = 30


class ModelFileError(ValueError):
    """A detector that a model file cannot hold, or a file that is not a whole model file of this version."""


# -- writing ------------------------------------------------------------------------------------------------
def write(
    path: PathOrFile,
    about: Mapping[str, Json],
    parts: Mapping[str, Any],
    *,
    what: str = "model",
    otherwise: str = "Save it with joblib.dump",
) -> None:
    """Write parts as one archive, in the place of a file that may be there.

    The archive is written to a temporary file in the same folder, flushed to the disk and renamed: whatever
    happens, the path holds the old file or the new one, each complete. (A process that is killed can leave a
    file ``.saving-*`` behind.) Equal parts make equal files, byte by byte.

    Parameters
    ----------
    path : str, bytes, path or binary file
    about : dict of JSON values, for the manifest
    parts : dict of name to bytes, or to another one-dimensional buffer of bytes
    what, otherwise : what is saved and how else to save it, for errors

    Raises
    ------
    ModelFileError
        If there are more or larger parts than an archive can hold.
    OSError
        If the file cannot be written; its subclass and ``errno`` say why. The old file is as it was.
    """
    views = {name: memoryview(part) for name, part in parts.items()}
    size = sum(view.nbytes for view in views.values())
    if len(views) > _PARTS or size > _BYTES:
        raise ModelFileError(
            f"a model file holds at most {_PARTS} parts of together {_BYTES / 1e9:.3g} GB; this {what} has "
            f"{len(views)} of {size / 1e9:.3g} GB. {otherwise}."
        )
    sums = {name: hashlib.sha256(view).hexdigest() for name, view in views.items()}
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **about, "sha256": sums}
    views = {_MANIFEST: memoryview(to_json(manifest, "the manifest", indent=1)), **views}
    replace_file(path, partial(_write_zip, views), what)


def replace_file(path: PathOrFile, write_to: Callable[[BinaryIO], object], what: str = "model") -> None:
    """Let a function write a file, in the place of one that may be there: see `write`.

    An open file is given all bytes at once, when there are all.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        _write_at_once(path, write_to)
        return
    path = path_of(path)
    try:
        _replace(os.path.realpath(path), write_to)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}; the {what} was not saved, and an earlier file is as it was"
            f"{_ADVICE.get(error.errno or 0, '')}",
            path,
        ) from error


def path_of(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """A path as text, with the home folder in the place of a leading ~.

    Raises
    ------
    ValueError
        If it is empty.
    """
    text = os.path.expanduser(os.fsdecode(path))
    if not text:
        raise ValueError("the path is empty; give the name of a file.")
    return text


def to_json(tree: Json, what: str, indent: int | None = None) -> bytes:
    """A tree as JSON, within the limits of `parsed`."""
    data = json.dumps(tree, allow_nan=False, indent=indent).encode("ascii")
    if excess := _excess(data):
        raise ModelFileError(f"a model file cannot hold this detector: {what} is {excess}. Use joblib.dump.")
    return data


def _write_zip(parts: Mapping[str, memoryview], file: BinaryIO) -> None:
    with zipfile.ZipFile(file, "w", allowZip64=False) as archive:
        for name, part in parts.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system = 3  # the same bytes on every system
            archive.writestr(entry, part)


def _write_at_once(file: BinaryIO, write_to: Callable[[BinaryIO], object]) -> None:
    if not hasattr(file, "write"):
        raise TypeError(f"a path or a file that is open for writing is needed; received {file!r}.")
    buffer = io.BytesIO()
    write_to(buffer)
    try:
        file.write(buffer.getbuffer())
    except TypeError:
        raise TypeError(f"{file!r} takes no bytes; open it as a binary file, with the mode 'wb'.") from None


def _replace(target: str, write_to: Callable[[BinaryIO], object]) -> None:
    if os.path.exists(target) and not os.path.isdir(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "is not a regular file, which alone can be replaced")
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f"{SAVING}{secrets.token_hex(8)}")
    try:
        # Not by tempfile, which keeps files from everyone but their owner: others may be meant to load it.
        with open(temporary, "xb") as file:
            write_to(file)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The rename itself is on the disk only with its folder; not every system can say so.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- reading ------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def open_archive(path: PathOrFile) -> Iterator[Archive]:
    """The archive in a file, or in what is left to read of an open one.

    Whatever is wrong with it, here or in the block, is one `ModelFileError`.

    Raises
    ------
    ModelFileError
        Says in one line what is wrong with the file.
    OSError
        If the file cannot be read.
    """
    if isinstance(path, (str, bytes, os.PathLike)):
        path = path_of(path)
    name = repr(path)
    try:
        if not isinstance(path, str):
            yield Archive(_rest_of(path))
            return
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise ModelFileError("is not a regular file.")
        with open(path, "rb") as file:
            yield Archive(file)
    except ModelFileError as error:
        raise ModelFileError(f"model file {name} {error}") from error.__cause__
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # Checksums hold up to here, or none was promised: the bytes were made by no release of this library.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelFileError(f"model file {name} is not what it says it is ({reason}).") from error


def _rest_of(file: BinaryIO) -> BinaryIO:
    """What is left to read of an open file, as one that can be read anywhere."""
    data = file.read() if hasattr(file, "read") else file
    if not isinstance(data, bytes):
        raise ModelFileError("cannot be read: a path or a binary file, opened with the mode 'rb', is needed.")
    return io.BytesIO(data)


class Archive:
    """The parts of an open archive.

    Attributes
    ----------
    manifest : dict
    n_bytes : int
    names : set of str
        The parts besides the manifest.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.n_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        start_of_directory = _check_end(file, self.n_bytes)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error) as error:
            raise ModelFileError(f"is damaged: its list of parts cannot be read ({error}).") from None
        entries = self._zip.infolist()
        self._entries = {entry.orig_filename: entry for entry in entries}
        if _MANIFEST not in self._entries:
            raise ModelFileError("is a zip file, but not a model file: it has no manifest.")
        if len(self._entries) != len(entries):
            raise ModelFileError("is refused: two of its parts have the same name.")
        _check_layout(entries, start_of_directory)
        # Before all else that the manifest is needed for: a newer release may have other parts.
        self.manifest = self._manifest()
        for entry in entries:
            _check_part(entry)
        sums = self.manifest.get("sha256")
        if not isinstance(sums, dict) or sums.keys() != self._entries.keys() - {_MANIFEST}:
            raise ModelFileError("is damaged: its parts are not those that its manifest names.")
        self._sums: dict[str, Json] = sums
        self.names = set(sums)

    def size(self, name: str) -> int:
        """Bytes of a part."""
        if name not in self.names:
            raise ModelFileError(f"is damaged: its part {name!r} is missing.")
        return self._entries[name].file_size

    def json(self, name: str) -> Json:
        """A part that is JSON."""
        if self.size(name) > _JSON_BYTES:
            raise ModelFileError(f"is refused: its part {name!r} has {self.size(name)} bytes of JSON.")
        data = bytearray(self.size(name))
        self.read_into(name, memoryview(data))
        return parse_json(bytes(data), f"its part {name!r}")

    def read_into(self, name: str, buffer: memoryview) -> None:
        """A part's bytes, checked, into a buffer of its size."""
        if self.size(name) != buffer.nbytes:
            raise ModelFileError(
                f"is damaged: its part {name!r} has {self.size(name)} bytes in the place of {buffer.nbytes}."
            )
        if self._read(name, buffer) != self._sums[name]:
            raise ModelFileError(f"is damaged: its part {name!r} does not have its checksum.")

    def _manifest(self) -> dict[str, Json]:
        _check_part(self._entries[_MANIFEST])
        n_bytes = self._entries[_MANIFEST].file_size
        if n_bytes > _JSON_BYTES:
            raise ModelFileError(f"is refused: its manifest has {n_bytes} bytes.")
        data = bytearray(n_bytes)
        self._read(_MANIFEST, memoryview(data))
        manifest = parse_json(bytes(data), "its manifest")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ModelFileError("is a zip file, but not a model file: its manifest is another program's.")
        version = manifest.get("format_version")
        if type(version) is not int or version < 1:
            raise ModelFileError(f"is damaged: its format version is {version!r}.")
        if version > FORMAT_VERSION:
            raise ModelFileError(
                f"is newer than this release: it has format {version}, and formats up to {FORMAT_VERSION} "
                "are known here. Upgrade vae-anomaly."
            )
        return manifest

    def _read(self, name: str, buffer: memoryview) -> str:
        """Fill the buffer with a part of its size; the part's SHA-256."""
        checksum, position = hashlib.sha256(), 0
        try:
            with self._zip.open(self._entries[name]) as part:
                while position < buffer.nbytes:
                    block = part.read(_BYTES_AT_ONCE)
                    if not block:
                        raise EOFError("it ends early")
                    buffer[position : position + len(block)] = block
                    checksum.update(block)
                    position += len(block)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
            raise ModelFileError(f"is damaged: its part {name!r} cannot be read ({error}).") from None
        return checksum.hexdigest()


def parse_json(data: bytes, what: str) -> Json:
    """JSON to the letter of its standard, with limits on how much Python makes of it."""
    if excess := _excess(data):
        raise ModelFileError(f"is refused: {what} is {excess}.")
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"is damaged: {what} is not JSON ({error}).") from None


def _excess(data: bytes) -> str:
    """What is too much about a JSON text, or nothing."""
    if len(data) > _JSON_BYTES:
        return f"{len(data)} bytes of JSON, more than {_JSON_BYTES}"
    n_containers = data.count(b"[") + data.count(b"{")
    return "" if n_containers <= _JSON_CONTAINERS else f"JSON of {n_containers} lists and objects"


def _refuse_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in an object")
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _check_end(file: BinaryIO, n_bytes: int) -> int:
    """Where the list of parts starts, from the file's last bytes. `zipfile` believes what they say."""
    start = file.read(4)
    if not start:
        raise ModelFileError("is empty.")
    if start[:2] != b"PK":
        raise ModelFileError(
            "is not a model file: it does not begin like one. (What joblib.dump or pickle wrote is read by "
            "joblib.load, which runs code that the file may hold.)"
        )
    tail_size = min(n_bytes, _END.size + 20)
    file.seek(-tail_size, os.SEEK_END)
    tail = file.read(tail_size)
    if tail_size <= _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise ModelFileError("is truncated, or something was written behind its end.")
    _, disk, first_disk, n_here, n_entries, size, start_of_directory, comment = _END.unpack(
        tail[-_END.size :]
    )
    if tail.startswith(_END_OF_ZIP64) or (disk, first_disk, comment) != (0, 0, 0) or n_here != n_entries:
        raise ModelFileError(
            "is a zip file, but not a model file: it uses parts of the zip format that none uses."
        )
    if start_of_directory + size != n_bytes - _END.size or n_entries > _PARTS + 1 or size > 64 * n_entries:
        raise ModelFileError("is damaged: its list of parts is not where or what it should be.")
    return int(start_of_directory)


def _check_layout(entries: list[zipfile.ZipInfo], start_of_directory: int) -> None:
    """Refuse anything but parts that fill the file one after another: then none is larger than the file."""
    end = 0
    for entry in entries:
        if entry.header_offset != end:
            raise ModelFileError("is refused: its parts overlap or leave gaps.")
        end += _LOCAL_HEADER + len(entry.orig_filename) + entry.compress_size
    if end != start_of_directory:
        raise ModelFileError("is refused: its parts overlap or leave gaps.")


def _check_part(entry: zipfile.ZipInfo) -> None:
    """Refuse a part that `write` does not write."""
    name = entry.orig_filename
    if not _NAME.fullmatch(name):
        raise ModelFileError(f"is refused: no part of a model file is named {name!r}.")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ModelFileError(f"is refused: its part {name!r} is compressed.")
    if entry.flag_bits or entry.extra or entry.comment:
        raise ModelFileError(f"is refused: its part {name!r} uses features of zip that no model file does.")
