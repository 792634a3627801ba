"""A checkpoint folder behind any HTTP server that answers range requests."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gptq_hybrid.common.errors import CheckpointError, TransferError

from ._base import Range, Reads, leads_out
from ._transfer import AT_ONCE, OTHERWISE, AbsentError, LateError, Transfer, without_credentials

if TYPE_CHECKING:
    import httpx

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII | re.IGNORECASE)
_NO_SUCH_RANGE = re.compile(r"bytes \*/(\d{1,19})", re.ASCII | re.IGNORECASE)


class HttpFiles:
    """The files under ``base_url``: one request a read, at most eight at a time.

    Args:
        base_url: the address of a folder, with or without credentials.
        headers: sent with each request, but (like the credentials) not to another host that the server redirects
            to.
        timeout: seconds for each request as a whole. With its retries a read takes at most twice that.
        deadline: seconds from now that all reads may take together; None for no limit.
        listing: names of all files, where they are known; other names are then absent without a request.
        location: the name of the place in messages; the address without credentials by default.

    Raises:
        CheckpointError: ``base_url`` is not the address of a folder.
    """

    far = True
    when_forbidden = "Put credentials into the address (https://USER:PASSWORD@HOST/…), or download it."
    when_unreachable = "Check the address and the connection."

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        deadline: float | None = None,
        listing: Iterable[str] | None = None,
        location: str | None = None,
    ) -> None:
        url = base_url.rstrip("/")
        self.location = without_credentials(url) if location is None else location
        self.folder: Path | None = None
        self.reads = Reads()
        self._listing = None if listing is None else frozenset(listing)
        self._sizes: dict[str, int | None] = {}
        self._versions: dict[str, str] = {}
        self._lock = threading.Lock()
        remedies = (self.when_forbidden, self.when_unreachable)
        self._transfer = Transfer(
            url, headers or {}, timeout, self.reads, self.location, remedies, deadline=deadline
        )

    @property
    def address(self) -> str:
        """The URL of the folder, without credentials; for a hub id it holds the commit."""
        return self._transfer.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; a later read opens new ones."""
        self._transfer.close()

    def names(self) -> tuple[str, ...] | None:
        if self._listing is None:
            return None
        return tuple(sorted(name for name in self._listing if "/" not in name))

    def refusal(self, name: str) -> str | None:
        return "leads out of the checkpoint" if leads_out(name) else None

    def size(self, name: str) -> int | None:
        """Size in bytes, asked for once; None if there is no such file or :meth:`refusal` applies.

        Raises:
            CheckpointError: the server cannot be reached, or does not tell.
        """
        if self.refusal(name) is not None or self._is_absent(name):
            return None
        if name not in self._sizes:
            try:
                if not self._transfer.persist(name, lambda deadline: self._head(name, deadline)):
                    self.read(Range(name, 0, 1))
            except AbsentError:
                self._sizes[name] = None
        return self._sizes[name]

    def read(self, part: Range) -> bytes:
        """Return the bytes of one range; fewer where the file ends before it.

        Raises:
            CheckpointError: the file is absent or refused, needs authorisation, or did not arrive in time; or the
                server does not answer range requests.
        """
        name, nothing = part.name, part.count is not None and part.count <= 0
        refusal = self.refusal(name)
        if refusal is not None:
            raise CheckpointError(self._transfer.at(name), refusal)
        if self._is_absent(name) or (nothing and self.size(name) is None):
            raise AbsentError(self._transfer.at(name), "does not exist")
        size = self._sizes.get(name)
        if nothing or (size is not None and part.begin >= size):
            return b""
        try:
            return self._transfer.persist(name, lambda deadline: self._get(part, deadline))
        except AbsentError:
            self._sizes[name] = None
            raise

    def read_many(self, parts: Sequence[Range]) -> list[bytes | Exception]:
        late: list[LateError] = []

        def one(part: Range) -> bytes | Exception:
            # Thousands of ranges must not each wait for a server that hangs.
            if late:
                reason = f"was not read after this: {late[0].message}"
                return TransferError(self._transfer.at(part.name), reason, remedy=late[0].remedy)
            try:
                return self.read(part)
            except CheckpointError as error:
                if isinstance(error, LateError):
                    late.append(error)
                return error

        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            return list(pool.map(one, parts))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def digest(self, name: str) -> str | None:
        """None: a plain server declares no SHA-256."""
        return None

    def _is_absent(self, name: str) -> bool:
        unlisted = self._listing is not None and name not in self._listing
        return unlisted or self._sizes.get(name, 0) is None

    def _learn(self, name: str, size: int) -> None:
        with self._lock:
            before = self._sizes.setdefault(name, size)
        if before != size:
            reason = f"changed while it was read: it had {before} bytes, then {size}"
            raise TransferError(self._transfer.at(name), reason)

    def _same_version(self, name: str, response: httpx.Response) -> None:
        """Refuse an answer of another version of the file than earlier ones: pieces of two would be mixed.

        Raises:
            TransferError: its strong ETag, or without any its Last-Modified, is another one.
        """
        tag = response.headers.get("ETag", "")
        version = "" if tag.startswith("W/") else tag or response.headers.get("Last-Modified", "")
        if not version:
            return
        with self._lock:
            before = self._versions.setdefault(name, version)
        if before != version:
            raise TransferError(
                self._transfer.at(name),
                f"changed while it was read: the server called it {before}, then {version}",
                remedy="Check it again once it stays as it is.",
            )

    def _head(self, name: str, deadline: float) -> bool:
        """Learn the size; return False where a HEAD request does not tell it."""
        with self._transfer.answer("HEAD", name, {}, deadline) as response:
            size = _content_length(response)
            if response.status_code != 200 or size is None or _encoding(response):
                return False
            self._learn(name, size)
            return True

    def _get(self, part: Range, deadline: float) -> bytes:
        last = "" if part.count is None else part.begin + part.count - 1
        headers = {"Range": f"bytes={part.begin}-{last}"}
        with self._transfer.answer("GET", part.name, headers, deadline) as response:
            begin, end, size = self._sent(part, response)
            if response.status_code != 416:
                self._same_version(part.name, response)
            if size is None:
                data = self._transfer.body(response, part.name, end, deadline, exactly=False)
                self._learn(part.name, len(data))
                return data
            self._learn(part.name, size)
            if begin == end:
                return b""
            return self._transfer.body(response, part.name, end - begin, deadline)

    def _sent(self, part: Range, response: httpx.Response) -> tuple[int, int, int | None]:
        """Begin and end of the range in the body, checked against the request; the file's size if it is told."""
        where, status = self._transfer.at(part.name), response.status_code
        requested_end = None if part.count is None else part.begin + part.count
        if status == 416:
            unsatisfied = _NO_SUCH_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
            size = int(unsatisfied[1]) if unsatisfied else None
            # Without a size only an empty file is believed: every other file has a byte 0.
            if size is None and part.begin == 0:
                size = 0
            if size is None or size > part.begin:
                raise TransferError(
                    where, f"the server refuses to send bytes from {part.begin} on (HTTP 416)"
                )
            return size, size, size
        if status not in (200, 206):
            raise TransferError(where, self._transfer.explain(part.name, f"was answered with HTTP {status}"))
        if encoding := _encoding(response):
            raise TransferError(where, f"is only sent in the encoding {encoding!r}", remedy=OTHERWISE)
        if status == 200:
            length = _content_length(response)
            # The server sends all of a small file. Only in chunks: without their end a cut would go unnoticed.
            if part.begin == 0 and length is None and requested_end is not None and _in_chunks(response):
                return 0, requested_end, None
            if part.begin > 0 or length is None or (requested_end is not None and length > requested_end):
                reason = self._transfer.explain(
                    part.name, "the server does not answer range requests (HTTP 200)"
                )
                raise TransferError(where, reason, remedy=OTHERWISE)
            return 0, length, length
        content_range = response.headers.get("Content-Range", "")
        fields = _RANGE.fullmatch(content_range.strip())
        begin, end, size = (int(fields[1]), int(fields[2]) + 1, int(fields[3])) if fields else (-1, -1, -1)
        if (begin, end) != (part.begin, size if requested_end is None else min(requested_end, size)):
            requested = response.request.headers.get("Range")
            raise TransferError(
                where,
                f"the server was asked for {requested} and sent {content_range or 'no Content-Range'}",
                remedy=OTHERWISE,
            )
        return begin, end, size


def _content_length(response: httpx.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch("[0-9]{1,19}", length) else None


def _in_chunks(response: httpx.Response) -> bool:
    coding: str = response.headers.get("Transfer-Encoding", "")
    return coding.lower() == "chunked"


def _encoding(response: httpx.Response) -> str:
    encoding: str = response.headers.get("Content-Encoding", "")
    return "" if encoding.lower() == "identity" else encoding
