"""Ask a running server over HTTP: ``/metrics``, ``/v1/models``, ``/version``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gptq_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    import httpx

# A server with many models has some 200 KB of metrics.
_MOST_BYTES = 32 << 20
_PAGES = ("/metrics", "/v1/models", "/v1", "/health", "/version", "/docs")


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a server answered.

    Attributes:
        url: scheme, host and port, without a path.
        metrics: text of ``/metrics``.
        models: entries of ``/v1/models``; None if it did not answer with a list.
        models_problem: why not.
        version: vLLM's own, of ``/version``; None if it did not say.
    """

    url: str
    metrics: str
    models: tuple[Mapping[str, Any], ...] | None
    models_problem: str | None = None
    version: str | None = None


def base_url(text: str) -> str:
    """Return the address of a server without its path; ``localhost:8000`` is taken for http.

    Raises:
        HybridError: it is no address.
    """
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    url = url.rstrip("/")
    for page in _PAGES:
        url = url.removesuffix(page)
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise HybridError(
            f"{text!r} is not the address of a server", remedy="Give one such as: http://localhost:8000"
        )
    return url


def scrape(address: str, *, api_key: str | None = None, timeout: float = 10.0) -> Scrape:
    """Read what a running vLLM says of itself.

    Args:
        address: of the server; a path such as ``/v1`` is taken off.
        api_key: sent to ``/v1/models``, which asks for it if vLLM has one.
        timeout: seconds for each request.

    Raises:
        HybridError: nothing answers there, or what answers is no vLLM.
    """
    import httpx

    url = base_url(address)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(timeout=timeout, headers=headers, follow_redirects=True) as client:
        try:
            metrics = _get(client, f"{url}/metrics")
        except httpx.InvalidURL as error:
            raise HybridError(f"{address!r} is not the address of a server: {error}") from error
        except httpx.TimeoutException as error:
            raise HybridError(
                f"{url} did not answer within {timeout:g} s",
                remedy="If it is still loading, wait for `Application startup complete` in its log.",
            ) from error
        except httpx.HTTPError as error:
            raise HybridError(
                f"nothing answers at {url}: {error}",
                remedy="Start it with `vllm serve`, or give the address that its log names as http://HOST:PORT.",
            ) from error
        if metrics.status_code != 200 or "# TYPE " not in metrics.text:
            raise HybridError(
                f"{url} is no vLLM server: its /metrics "
                + (
                    f"answers with status {metrics.status_code}"
                    if metrics.status_code != 200
                    else "is not in Prometheus's format"
                ),
                remedy="Give the address of `vllm serve` itself, not of a proxy or a page in front of it.",
            )
        models, problem = _models(client, url)
        version = _json(client, f"{url}/version")
    found = version.get("version") if isinstance(version, Mapping) else None
    return Scrape(url, metrics.text, models, problem, found if isinstance(found, str) else None)


def _get(client: httpx.Client, url: str) -> httpx.Response:
    import httpx

    with client.stream("GET", url) as response:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MOST_BYTES:
                raise HybridError(f"{url} answers with more than {_MOST_BYTES >> 20} MiB")
        return httpx.Response(response.status_code, content=bytes(body), request=response.request)


def _json(client: httpx.Client, url: str) -> Any:
    import httpx

    try:
        response = _get(client, url)
        return response.json() if response.status_code == 200 else response.status_code
    except (httpx.HTTPError, ValueError):
        return None


def _models(client: httpx.Client, url: str) -> tuple[tuple[Mapping[str, Any], ...] | None, str | None]:
    answer = _json(client, f"{url}/v1/models")
    listed = answer.get("data") if isinstance(answer, Mapping) else None
    if isinstance(listed, list):
        return tuple(model for model in listed if isinstance(model, Mapping)), None
    if answer in (401, 403):
        return None, "it wants an API key (--api-key, or VLLM_API_KEY in the environment)"
    return None, f"it answers with status {answer}" if isinstance(answer, int) else "it gives no list"
