"""The kind of a file by its first bytes, and decompression of .gz and .zst."""

import gzip
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import BinaryIO

import pyarrow as pa

from create_jax.errors import InputError

BLOCK = 1 << 24  # bytes of text read at a time
PARQUET = b"PAR1"
EXPECTED = "csv, JSON lines or Parquet, text plain, .gz or .zst"
_KINDS = {
    rb"\x1f\x8b": "a gzip file",
    rb"\x28\xb5\x2f\xfd": "a zstandard file",
    rb"PAR1[^ -~]": "a Parquet file",
    rb"PARE[\x00-\xff]{2}\x00": "an encrypted Parquet file",
    rb"PK(\x03\x04|\x05\x06|\x07\x08)": "a zip archive (or a spreadsheet)",
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": "a bzip2 file (.bz2)",
    rb"\xfd7zXZ\x00": "an xz file",
    rb"\x5d\x00\x00[\x00-\xff]{2}(\xff{8}|[\x00-\xff]{5}\x00{3})": "an lzma file",
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive",
    rb"Rar!\x1a\x07": "a rar archive",
    rb"\x04\x22\x4d\x18": "an lz4 file",
    rb"\xff\x06\x00\x00sNaPpY": "a snappy file",
    rb"\x1f[\x9d\xa0]": "a compress file (.Z)",
    rb"[\x00-\xff]{257}ustar": "a tar archive",
    rb"ORC[^ -~\r\n\t]": "an ORC file",
    rb"Obj\x01": "an Avro file",
    rb"ARROW1\x00\x00|FEA1[^ -~]": "an Arrow (Feather) file",
    rb"\x89HDF\r\n\x1a\n": "an HDF5 file",
    rb"SQLite format 3\x00": "an SQLite database",
    rb"\x80[\x02-\x05][^ -~]": "a Python pickle",
    rb"\x93NUMPY": "a NumPy file",
    rb"RD[XA][23]\n": "an R data file",
    rb"\xd0\xcf\x11\xe0": "an old Office file",
    rb"%PDF": "a PDF",
    rb"version https://git-lfs": "a pointer of Git LFS and not the file itself",
    rb"\s*<(!DOCTYPE|!doctype|html|HTML|\?xml)": "a web page or XML",
}


def kind_of(start: bytes) -> str:
    """The kind of a file with these first bytes, in words; "" for possible text."""
    for pattern, kind in _KINDS.items():
        if re.match(pattern, start):
            return kind
    return ""


def decompress(file: BinaryIO, source: str) -> Iterator[bytes]:
    """The bytes of a text file, plain, .gz or .zst, in pieces of BLOCK.

    Raises InputError for a file that is something else.
    """
    start, inside = file.read(512), ""
    file.seek(0)
    kind = kind_of(start)
    if kind == "a gzip file":
        file, inside = gzip.GzipFile(fileobj=file), f" inside {kind}"
    elif kind == "a zstandard file":
        file, inside = pa.input_stream(file, compression="zstd"), f" inside {kind}"
    chunks = iter(partial(file.read, BLOCK), b"")
    first = next(chunks, b"")
    kind = kind_of(first[:512])
    if kind:
        raise InputError(
            f"{source}: found {kind}{inside}; expected {EXPECTED}: unpack or convert it"
        )
    return chain([first], chunks)
