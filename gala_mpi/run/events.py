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
SECONDS, STEP, VERSION, SUMMARY, VALUE, TAG, NUMBER, SESSION = 0x09, 0x10, 0x1A, 0x2A, 0x0A, 0x0A, 0x15, 0x3A
HEIGHT, WIDTH, COLOURS, ENCODED, IMAGE = 0x08, 0x10, 0x18, 0x22, 0x22  # of an image, and in a value
STARTS = bytes([SESSION, 2, 0x08, 1])  # a SessionLog with status START


def header() -> bytes:
    """Return the record that an event file begins with."""
    version = b"brain.Event:2"
    event = bytes([SECONDS]) + bytes(8) + bytes([VERSION, len(version)]) + version
    return records(np.frombuffer(event, np.uint8)[None])


def start(step: int, seconds: float) -> bytes:
    """Return the record of a program that begins at a step: TensorBoard forgets what an earlier one wrote of later steps."""
    return _record(step, seconds, STARTS)


def image(tag: str, step: int, seconds: float, gif: bytes) -> bytes:
    """Return the record of a GIF, which TensorBoard plays."""
    width, height = (int.from_bytes(gif[at : at + 2], "little") for at in (6, 8))
    size = bytes([HEIGHT]) + varint(height) + bytes([WIDTH]) + varint(width) + bytes([COLOURS, 3])
    pixels = size + bytes([ENCODED]) + varint(len(gif)) + gif
    value = bytes([TAG]) + varint(len(tag.encode())) + tag.encode() + bytes([IMAGE]) + varint(len(pixels)) + pixels
    summary = bytes([VALUE]) + varint(len(value)) + value
    return _record(step, seconds, bytes([SUMMARY]) + varint(len(summary)) + summary)


def _record(step: int, seconds: float, rest: bytes) -> bytes:
    """Return the record of an event at a step, of which `rest` are the fields after that."""
    event = bytes([SECONDS]) + as_bytes(np.array([seconds]), "<f8").tobytes() + bytes([STEP]) + varint(step) + rest
    return records(np.frombuffer(event, np.uint8)[None])


def varint(number: int) -> bytes:
    """Return a number ≥ 0 as protocol buffers write it, 7 bits a byte."""
    digits = [number >> 7 * n & 127 | 128 for n in range(max(1, -(-number.bit_length() // 7)))]
    digits[-1] &= 127
    return bytes(digits)


def scalars(tag: str, steps: np.ndarray, seconds: np.ndarray, values: np.ndarray) -> Iterator[bytes]:
    """Yield the records of one tag: steps int [events], ascending or not, ≥ 0; seconds, values float [events]."""
    name = tag.encode()
    value = bytes([TAG, len(name)]) + name + bytes([NUMBER])
    summary = bytes([VALUE, len(value) + 4]) + value
    before = np.frombuffer(bytes([SUMMARY, len(summary) + 4]) + summary, np.uint8)
    sizes = 1 + np.sum([steps >> 7 * n > 0 for n in range(1, 9)], axis=0)  # bytes of a step
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
