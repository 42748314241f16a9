"""How much a Parquet file unpacks to, read from its page headers before anything is unpacked.

The footer says so too, but a footer can lie: the reader allocates what each page's own header asks for.
Format: github.com/apache/parquet-format, PageHeader in Thrift's compact protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.parquet as pq

from flashsvd.errors import InputError

_MOST_PAGES = 100_000
_DEEPEST = 16
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)


def unpacked_bytes(data: bytes, metadata: pq.FileMetaData) -> int:
    """Bytes of all pages after decompression.

    Raises:
        InputError: a page header cannot be read, or there are more pages than a table of this size has.
    """
    total = pages = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            starts = [column.data_page_offset]
            if column.has_dictionary_page and column.dictionary_page_offset:
                starts.append(column.dictionary_page_offset)
            at = min(starts)
            end = at + column.total_compressed_size
            while at < end:
                unpacked, packed, at = _page(data, at)
                total, pages, at = total + unpacked, pages + 1, at + packed
                if pages > _MOST_PAGES:
                    raise InputError(f"the file has more than {_MOST_PAGES} pages")
    return total


def _page(data: bytes, at: int) -> tuple[int, int, int]:
    """Sizes of a page unpacked and packed, and where its content begins."""
    reader = _Reader(data, at)
    try:
        sizes = reader.struct({2: 0, 3: 0}, 0)
    except (IndexError, ValueError):
        raise InputError("a page header of the file cannot be read") from None
    if min(sizes.values()) < 0:
        raise InputError("a page of the file has a negative size")
    return sizes[2], sizes[3], reader.at


@dataclass
class _Reader:
    """Reads one compact struct; fields that are not asked for are skipped."""

    data: bytes
    at: int

    def struct(self, wanted: dict[int, int], depth: int) -> dict[int, int]:
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        found, field = dict(wanted), 0
        while True:
            head = self._byte()
            kind, step = head & 15, head >> 4
            if kind == _STOP:
                return found
            field = field + step if step else self._integer()
            if field in found and kind in _INTEGERS:
                found[field] = self._integer()
            else:
                self._skip(kind, depth)

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE):
            return
        if kind == _BYTE:
            self._move(1)
        elif kind in _INTEGERS:
            self._varint()
        elif kind == _DOUBLE:
            self._move(8)
        elif kind == _BINARY:
            self._move(self._varint())
        elif kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4
            for _ in range(self._bounded(self._varint() if count == 15 else count)):
                self._element(head & 15, depth)
        elif kind == _MAP:
            count = self._bounded(self._varint())
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._element(kinds >> 4, depth)
                self._element(kinds & 15, depth)
        elif kind == _STRUCT:
            self.struct({}, depth + 1)
        else:
            raise ValueError(f"no such type: {kind}")

    def _element(self, kind: int, depth: int) -> None:
        # Unlike a field's, a flag in a list takes a byte.
        if kind in (_TRUE, _FALSE):
            self._move(1)
        else:
            self._skip(kind, depth + 1)

    def _bounded(self, count: int) -> int:
        if count > len(self.data):
            raise ValueError("a list longer than the file")
        return count

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number too long")

    def _byte(self) -> int:
        if not 0 <= self.at < len(self.data):
            raise IndexError(self.at)
        self.at += 1
        return self.data[self.at - 1]

    def _move(self, count: int) -> None:
        if self.at + count > len(self.data):
            raise IndexError(self.at + count)
        self.at += count
