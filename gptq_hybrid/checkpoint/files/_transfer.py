"""Make one HTTP request, with deadline, retries, redirects and statuses."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlsplit

from gptq_hybrid.common.errors import CheckpointError, TransferError

from ._base import Reads

if TYPE_CHECKING:
    import httpx

AT_ONCE = 8
OTHERWISE = "Download the checkpoint and check the folder."
_ATTEMPTS = 3
_BACK_OFF = 0.25
# Do not wait for a server that asks for a longer pause.
_LONGEST_WAIT = 5.0
_MOST_REDIRECTS = 8
# Reading a short body to its end keeps the connection; of a long one, a new connection is cheaper.
_SHORT_BODY = 16 << 10
# The thread that makes the request ends by itself at the deadline, unless it hangs.
_GRACE = 0.2

T = TypeVar("T")


class AbsentError(CheckpointError):
    """The server says that there is no such file."""


class LateError(TransferError):
    """The deadline of a request passed."""


class _MayPassError(Exception):
    """A failure that may pass by the next attempt; ``wait`` is the pause the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Transfer:
    """Requests to one server over kept connections; threads may share it.

    Args:
        url: the address of the folder.
        headers: sent with each request.
        timeout: seconds for each request as a whole.
        reads: where to count requests and bytes.
        location: the name of the place in messages.
        remedies: for a file that needs authorisation, and for a server that cannot be reached.
        deadline: seconds from now for all requests together.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        timeout: float,
        reads: Reads,
        location: str,
        remedies: tuple[str, str],
        *,
        deadline: float | None = None,
    ) -> None:
        self._url = url
        self.address = without_credentials(url)
        self._headers = dict(headers)
        self._timeout = timeout
        self._reads = reads
        self._location = location
        self._when_forbidden, self._when_unreachable = remedies
        self._allowed = deadline
        self._until = None if deadline is None else time.monotonic() + deadline
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close all connections; a later request opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def at(self, name: str) -> str:
        """Path or address of one file, for messages."""
        return f"{self._location}/{name}"

    def explain(self, name: str, reason: str) -> str:
        """Add the address to ``reason`` where the file's label does not show it."""
        return reason if self._location == self.address else f"{reason} ({self.address}/{name})"

    def persist(self, name: str, work: Callable[[float], T]) -> T:
        """Return ``work(deadline)``, with a few attempts; none begins after the first one's deadline.

        Raises:
            CheckpointError: the last attempt failed (``LateError``: was cut off), or another would be no use.
        """
        begun = time.monotonic()
        attempt = 1
        while True:
            timeout = self._time_left(name)
            try:
                return within(timeout + _GRACE, partial(work, time.monotonic() + timeout))
            except TimeoutError:
                raise self._late(name) from None
            except _MayPassError as trouble:
                wait = _BACK_OFF * 2 ** (attempt - 1) if trouble.wait is None else trouble.wait
                too_long = wait > _LONGEST_WAIT or time.monotonic() + wait >= begun + self._timeout
                if attempt == _ATTEMPTS or too_long:
                    attempts = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise TransferError(
                        self.at(name),
                        self.explain(name, f"cannot be read: {trouble}{attempts}"),
                        remedy=self._when_unreachable,
                    ) from trouble
            time.sleep(wait)
            attempt += 1

    def _time_left(self, name: str) -> float:
        """Seconds for the next request.

        Raises:
            LateError: all requests together took too long.
        """
        if self._until is None:
            return self._timeout
        left = self._until - time.monotonic()
        if left <= 0:
            raise self._out_of_time(name)
        return min(self._timeout, left)

    def _out_of_time(self, name: str) -> LateError:
        reason = f"was not read: all requests together took the {self._allowed:g} s allowed"
        return LateError(
            self.at(name),
            self.explain(name, reason),
            remedy=f"Give more with --deadline SECONDS. {OTHERWISE}",
        )

    @contextmanager
    def answer(
        self, method: str, name: str, headers: Mapping[str, str], deadline: float
    ) -> Iterator[httpx.Response]:
        """Yield the answer to one request; errors of httpx are translated, those of reading the body too.

        Raises:
            CheckpointError: the file is absent (``AbsentError``), forbidden or late (``LateError``), or the request
                cannot be made.
        """
        import httpx

        try:
            response = self._follow(method, name, headers, deadline)
            try:
                self._refuse(response, name)
                yield response
            finally:
                response.close()
        except httpx.TimeoutException as error:
            raise self._late(name) from error
        except httpx.LocalProtocolError:  # its text holds the header's value, a token
            raise TransferError(self.at(name), "cannot be requested: a header is malformed") from None
        except httpx.TransportError as error:
            raise _MayPassError(str(error) or type(error).__name__) from error
        # Unusable addresses, proxies and certificates; connections that were closed meanwhile.
        except (httpx.InvalidURL, ImportError, OSError, RuntimeError, ValueError) as error:
            reason = self.explain(name, f"cannot be requested: {error}")
            raise TransferError(self.at(name), reason, remedy=self._when_unreachable) from error

    def body(
        self, response: httpx.Response, name: str, length: int, deadline: float, *, exactly: bool = True
    ) -> bytes:
        """Return the body, of ``length`` bytes; of at most that many if not ``exactly``.

        Raises:
            CheckpointError: the body is longer, or does not arrive in time (``LateError``).
        """
        pieces: list[bytes] = []
        received = 0
        try:
            for piece in response.iter_raw():
                pieces.append(piece)
                received += len(piece)
                if received > length:
                    reason = f"the server sends more than the {length} bytes asked for"
                    raise TransferError(self.at(name), reason, remedy=OTHERWISE)
                if time.monotonic() > deadline and not (exactly and received == length):
                    raise self._late(name)
        finally:
            with self._lock:
                self._reads.bytes += received
        if exactly and received < length:
            raise _MayPassError(f"the answer ends after {received} of {length} bytes")
        return b"".join(pieces)

    def _late(self, name: str) -> LateError:
        if self._until is not None and time.monotonic() >= self._until:
            return self._out_of_time(name)
        reason = self.explain(name, f"did not arrive within {self._timeout:g} s")
        return LateError(self.at(name), reason, remedy=self._when_unreachable)

    def _refuse(self, response: httpx.Response, name: str) -> None:
        status, head = response.status_code, response.request.method == "HEAD"
        if head or status >= 400:
            _drain(response)
        if status in (404, 410):
            raise AbsentError(self.at(name), "does not exist")
        # An address signed for GET answers 403 to HEAD, so only a GET counts.
        if status in (401, 403) and not head:
            reason = self.explain(name, f"needs authorisation (HTTP {status})")
            raise TransferError(self.at(name), reason, remedy=self._when_forbidden)
        if status in (408, 429) or (status >= 500 and not (head and status == 501)):
            pause = response.headers.get("Retry-After", "")
            raise _MayPassError(f"HTTP {status}", float(pause) if re.fullmatch("[0-9]{1,9}", pause) else None)

    def _follow(self, method: str, name: str, headers: Mapping[str, str], deadline: float) -> httpx.Response:
        import httpx

        client = self._open()
        url = f"{self._url}/{quote(name, safe='/', errors='surrogatepass')}"
        request = client.build_request(method, url, headers=headers)
        for _ in range(_MOST_REDIRECTS):
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._late(name)
            request.extensions["timeout"] = httpx.Timeout(left).as_dict()
            with self._lock:
                self._reads.note(0)
            response = client.send(request, stream=True)
            following = response.next_request
            if following is None:
                return response
            try:
                _drain(response)
            finally:
                response.close()
            old, new = request.url, following.url
            if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
                reason = f"is redirected from {old.scheme} to {new.scheme}, which is refused"
                raise TransferError(self.at(name), self.explain(name, reason))
            if (old.host, old.port) != (new.host, new.port):
                # httpx drops only Authorization, but a key may be in any header.
                for header in self._headers:
                    following.headers.pop(header, None)
            request = following
        raise TransferError(
            self.at(name), self.explain(name, f"is redirected more than {_MOST_REDIRECTS} times")
        )

    def _open(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._client is None:
                self._client = httpx.Client(
                    headers={
                        "User-Agent": "vllm-qwen36-plugin",
                        **self._headers,
                        "Accept-Encoding": "identity",
                    },
                    # Unbounded: abandoned requests would keep others waiting.
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=AT_ONCE),
                )
            return self._client


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return or raise what ``work`` does, if it ends in time; otherwise abandon it.

    httpx has no timeout for a host name that does not resolve, nor for headers that arrive byte by byte.

    Raises:
        TimeoutError: ``work`` did not end within ``seconds``.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            outcome.set_exception(error)

    # A daemon, unlike an executor's thread, does not keep the process from ending.
    threading.Thread(target=run, daemon=True, name="checkpoint-read").start()
    return outcome.result(seconds)


def without_credentials(url: str) -> str:
    """Return the address of a folder as messages may show it.

    Raises:
        CheckpointError: ``url`` is not the http or https address of a folder.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise CheckpointError(url, "is not an http:// or https:// address")
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    if parts.query or parts.fragment:
        raise CheckpointError(shown, "has a query or fragment; it must be the address of a folder")
    return shown


def _drain(response: httpx.Response) -> None:
    """Read a short body to its end, so that its connection can be used again."""
    length = response.headers.get("Content-Length", "")
    short = length.isdecimal() and int(length) <= _SHORT_BODY
    if short or response.request.method == "HEAD":
        for _ in response.iter_raw():
            pass
