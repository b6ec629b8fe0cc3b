"""Zip archives that nobody vouches for."""

import os
import zipfile

from model.weights.common import WeightsError, check_size

LONGEST_DIRECTORY = 2**18


def open_zip(path: str | os.PathLike, name: str) -> zipfile.ZipFile:
    """An archive whose directory, of which ``zipfile`` makes an object an entry, is no longer than weights need."""
    check_size(path, name)
    with open(path, "rb") as file:
        file.seek(max(os.stat(path).st_size - 98, 0))
        tail = file.read().rjust(98, b"\0")
    record, locator, end = tail[:56], tail[56:76], tail[76:]
    length = int.from_bytes(end[12:16], "little")
    whole = end[:4] == b"PK\x05\x06"
    if locator[:4] == b"PK\x06\x07":  # the same in 64 bits, as PyTorch writes it
        whole &= record[:4] == b"PK\x06\x06" and int.from_bytes(locator[8:16], "little") == os.stat(path).st_size - 98
        length = int.from_bytes(record[40:48], "little")
    if not whole:
        raise WeightsError(f"{name}: truncated or damaged: does not end as a zip archive does")
    if length > LONGEST_DIRECTORY:
        raise WeightsError(f"{name}: truncated or damaged: a zip archive with {length:,} bytes of names")
    return zipfile.ZipFile(path)


def unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, most: int) -> bytes:
    """An entry's bytes: at most ``most``, and no more than the directory says."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a limit
        raise WeightsError(f"{name}: {entry.filename} is packed in a way that is not read here")
    if max(entry.file_size, entry.compress_size) > most:
        raise WeightsError(f"{name}: {entry.filename} of {entry.file_size:,} bytes is more than weights can take")
    with archive.open(entry) as file:
        return file.read(entry.file_size)
