"""TensorBoard's event files, written a column at a time: its own writers take a hundred times as long for a long run.

A file is records of `length, its checksum, an Event, its checksum`; an Event is a protocol buffer of a moment (seconds), a step
and a tagged number: https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto, and
https://www.tensorflow.org/tutorials/load_data/tfrecord for the records.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CASTAGNOLI = 0x82F63B78  # the checksum's polynomial, reversed
# A field of a protocol buffer begins with its number and its type, in a byte.
SECONDS, STEP, VERSION, SUMMARY, VALUE, TAG, NUMBER = 0x09, 0x10, 0x1A, 0x2A, 0x0A, 0x0A, 0x15


def header() -> bytes:
    """Return the record that an event file begins with."""
    version = b"brain.Event:2"
    event = bytes([SECONDS]) + bytes(8) + bytes([VERSION, len(version)]) + version
    return records(np.frombuffer(event, np.uint8)[None])


def scalars(tag: str, steps: np.ndarray, seconds: np.ndarray, values: np.ndarray) -> Iterator[bytes]:
    """Yield the records of one tag: steps int [events], ascending or not, ≥ 0; seconds, values float [events]."""
    name = tag.encode()
    value = bytes([TAG, len(name)]) + name + bytes([NUMBER])
    summary = bytes([VALUE, len(value) + 4]) + value
    before = np.frombuffer(bytes([SUMMARY, len(summary) + 4]) + summary, np.uint8)
    sizes = sum((steps >> 7 * n > 0).astype(int) for n in range(1, 9)) + 1  # bytes of a step
    for part in np.split(np.arange(len(steps)), np.flatnonzero(np.diff(sizes)) + 1):
        if len(part):
            step = np.stack([steps[part] >> 7 * n & 127 | 128 for n in range(sizes[part[0]])], axis=1)
            step[:, -1] &= 127  # the last one
            columns = [
                np.full((len(part), 1), SECONDS),
                as_bytes(seconds[part], "<f8"),
                np.full((len(part), 1), STEP),
                step,
                np.broadcast_to(before, (len(part), len(before))),
                as_bytes(values[part], "<f4"),
            ]
            yield records(np.concatenate(columns, axis=1).astype(np.uint8))


def records(events: np.ndarray) -> bytes:
    """Return events as records, uint8 [events, bytes] of equal length."""
    length = as_bytes(np.full(len(events), events.shape[1]), "<u8")
    return np.concatenate([length, checksums(length), events, checksums(events)], axis=1).tobytes()


def checksums(data: np.ndarray) -> np.ndarray:
    """Return the masked CRC-32C of each row, [rows, bytes] → uint8 [rows, 4]."""
    crc = np.full(len(data), 0xFFFFFFFF, np.uint32)
    for column in data.T:
        crc = TABLE[(crc ^ column) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return as_bytes((crc >> 15 | crc << 17) + np.uint32(0xA282EAD8), "<u4")


def as_bytes(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Return the bytes of each number, uint8 [numbers, bytes]."""
    whole = np.ascontiguousarray(numbers, dtype)
    return whole.view(np.uint8).reshape(len(whole), whole.itemsize)


def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ CASTAGNOLI, table >> 1).astype(np.uint32)
    return table


TABLE = _table()
