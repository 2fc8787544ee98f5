"""The records of an event file: whole, and as they were written, or not at all.

An event file is a row of records, each ``uint64`` length, its checksum, the data, theirs. TensorBoard's own reader
takes 0.1 s and more a megabyte, most of it for checksums computed byte by byte in Python, and stops for good at the
first damaged record. Here the records that matter are checked many at once, and a damaged one is left out.

References:
    Castagnoli, Braeuer and Herrmann, Optimization of Cyclic Redundancy-Check Codes with 24 and 32 Parity Bits, IEEE
    Transactions on Communications, 1993 (the polynomial).
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78
_HEAD, _FOOT = struct.Struct("<QI"), struct.Struct("<I")
# Records are checked together until they have so many bytes: ours, the memory that reading takes beside its result.
_BATCH = 16 * 2**20


@cache
def _tables() -> Words:
    """Return what each value of a byte does to a checksum, at once and one to three bytes later, ``[4, 256]``."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    tables = [table]
    for _ in range(3):
        tables.append(table[tables[-1] & 0xFF] ^ (tables[-1] >> 8))
    return np.stack(tables)


def checksums(datas: Sequence[bytes]) -> Words:
    """Return the masked CRC-32C of each.

    Args:
        datas: Byte strings of at least four bytes, best of about the same length.

    Returns:
        As TensorFlow writes them, ``[len(datas)]``.

    Example:
        >>> unmasked = (int(checksums([b"123456789"])[0]) - 0xA282EAD8) & 0xFFFFFFFF
        >>> hex((unmasked << 15 | unmasked >> 17) & 0xFFFFFFFF)  # the check value of CRC-32C
        '0xe3069283'
    """
    # Zeros in front do not change a checksum that begins with 0. It begins with ones, which is the same as to begin
    # with 0 and to turn over the first four bytes. So all can be brought to one length, in whole words.
    width = -(-max(map(len, datas)) // 4)
    words = np.zeros((len(datas), width), dtype="<u4")
    rows = words.view(np.uint8)
    for row, data in zip(rows, datas, strict=True):
        row[len(row) - len(data) :] = np.frombuffer(data, dtype=np.uint8)
        row[len(row) - len(data) :][:4] ^= 0xFF
    first, second, third, fourth = _tables()
    crc = np.zeros(len(datas), dtype=np.uint32)
    for column in np.ascontiguousarray(words.T):
        crc ^= column
        crc = fourth[crc & 0xFF] ^ third[crc >> 8 & 0xFF] ^ second[crc >> 16 & 0xFF] ^ first[crc >> 24]
    crc = ~crc
    masked: Words = (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)
    return masked


@dataclass
class RecordFile:
    """An event file that may grow, be cut off or be damaged.

    Attributes:
        path: The file.
        offset: Up to where it has been read.
        num_damaged: How many records were left out since their checksum was wrong.
        is_lost: Whether a length is damaged, so that nothing behind it can be found.
    """

    path: Path
    offset: int = 0
    num_damaged: int = 0
    is_lost: bool = False

    def read(self, *marks: bytes) -> Iterator[bytes]:
        """Read what is new; a record that is not complete yet is left for the next time.

        Args:
            marks: Records without any of these bytes are skipped, unchecked.

        Yields:
            The data of each whole record with a mark, as it was written.

        Raises:
            OSError: If the file cannot be read.
        """
        batch: list[tuple[bytes, int]] = []
        num_bytes = 0
        with self.path.open("rb") as file:
            for data, checksum in self._walk(file):
                if any(mark in data for mark in marks):
                    batch.append((data, checksum))
                    num_bytes += len(data)
                if num_bytes >= _BATCH:
                    yield from self._whole(batch)
                    batch, num_bytes = [], 0
        yield from self._whole(batch)

    def _walk(self, file: BinaryIO) -> Iterator[tuple[bytes, int]]:
        """Yield the data and the checksum of each record."""
        size = os.fstat(file.fileno()).st_size
        # A file that has become smaller is another one.
        self.offset = self.offset if self.offset <= size else 0
        file.seek(self.offset)
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, checksum = _HEAD.unpack(head)
            self.is_lost = _checksum_of_length(head) != checksum
            end = self.offset + _HEAD.size + length + _FOOT.size
            if self.is_lost or end > size:
                return
            data, foot = file.read(length), file.read(_FOOT.size)
            if len(data) + len(foot) < length + _FOOT.size:
                return
            self.offset = end
            yield data, _FOOT.unpack(foot)[0]

    def _whole(self, batch: Sequence[tuple[bytes, int]]) -> Iterator[bytes]:
        """Yield the data whose checksum is right, in the same order."""
        right = np.zeros(len(batch), dtype=np.bool_)
        # Those of about one length together: a short one that is brought to the length of a long one costs as much.
        groups: dict[int, list[int]] = defaultdict(list)
        for place, (data, _) in enumerate(batch):
            groups[len(data).bit_length()].append(place)
        for group in groups.values():
            expected = np.array([batch[place][1] for place in group], dtype=np.uint32)
            right[group] = checksums([batch[place][0] for place in group]) == expected
        self.num_damaged += int((~right).sum())
        yield from (data for (data, _), is_right in zip(batch, right, strict=True) if is_right)


def _checksum_of_length(head: bytes) -> int:
    """Return the checksum of a record's length; one at a time, since only a right one leads to the next record."""
    table = _plain_table()
    crc = 0xFFFFFFFF
    for byte in head[:8]:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _plain_table() -> list[int]:
    plain: list[int] = _tables()[0].tolist()
    return plain
