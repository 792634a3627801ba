"""Read a checkpoint on the Hugging Face hub in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import CheckpointError

from ._base import Files
from ._transfer import within, without_credentials
from .http import HttpFiles
from .hub_id import is_hub_id
from .local import LocalFiles

_OFFLINE = "HF_HUB_OFFLINE=1 checks the copy in the cache instead, if there is one."
_LOG_IN = "Set HF_TOKEN, or run `hf auth login`"


class _HubFiles(HttpFiles):
    when_forbidden = f"{_LOG_IN}; of a gated model, accept the licence on its page first."
    when_unreachable = f"Check the connection. {_OFFLINE}"
    # Asks the hub for the SHA-256 of every file it stores apart (git-lfs), by name.
    ask_digests: Callable[[], Mapping[str, str]] | None = None

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        return {} if self.ask_digests is None else self.ask_digests()

    def digest(self, name: str) -> str | None:
        """SHA-256 of the file as the hub declares it, asked for once; None for a file in git itself."""
        return self._digests.get(name)


def open_hub(
    repo_id: str, *, timeout: float = 30.0, deadline: float | None = None, endpoint: str | None = None
) -> Files:
    """Open a model on the hub, with all files at the commit its revision points to now.

    Makes one request, for the listing. With HF_HUB_OFFLINE set it makes none and opens the copy in the local
    cache.

    Args:
        repo_id: OWNER/NAME or OWNER/NAME@REVISION.
        timeout: seconds that one network request may take.
        deadline: seconds from now that all reads may take together.
        endpoint: the hub's URL; HF_ENDPOINT's by default.

    Raises:
        CheckpointError: no hub id, no such model or revision, no authorisation, no connection, or not in the
            cache.
    """
    from huggingface_hub import constants, get_token, hf_hub_url

    if not is_hub_id(repo_id):
        raise CheckpointError(repo_id, "is not a hub id", remedy="Give OWNER/NAME or OWNER/NAME@REVISION.")
    repo, _, revision = repo_id.partition("@")
    if constants.HF_HUB_OFFLINE:
        return _cached(repo_id)
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    without_credentials(endpoint)
    token = get_token()
    info = _info(repo_id, endpoint, token, timeout)
    # The new name of a renamed model: the old one costs a redirect per read.
    repo = info.id if isinstance(info.id, str) and is_hub_id(info.id) else repo
    url = hf_hub_url(repo, "config.json", revision=info.sha or revision or "main", endpoint=endpoint)
    files = _HubFiles(
        url.removesuffix("/config.json"),
        headers={"Authorization": f"Bearer {token}"} if token else None,
        timeout=timeout,
        deadline=deadline,
        listing=[file.rfilename for file in info.siblings] if info.siblings is not None else None,
        location=repo_id,
    )
    files.ask_digests = partial(_digests, repo_id, endpoint, token, timeout)
    return files


def _digests(repo_id: str, endpoint: str, token: str | None, timeout: float) -> dict[str, str]:
    info = _info(repo_id, endpoint, token, timeout, with_files=True)
    known = {file.rfilename: getattr(file.lfs, "sha256", None) for file in info.siblings or ()}
    return {name: digest for name, digest in known.items() if isinstance(digest, str)}


def _info(repo_id: str, endpoint: str, token: str | None, timeout: float, *, with_files: bool = False) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    repo, _, revision = repo_id.partition("@")
    model_info = HfApi(endpoint=endpoint, token=token or False).model_info
    try:
        return within(
            timeout,
            partial(model_info, repo, revision=revision or None, timeout=timeout, files_metadata=with_files),
        )
    except TimeoutError as error:
        raise CheckpointError(
            repo_id,
            f"the hub ({endpoint}) did not answer within {timeout:g} s",
            remedy=_HubFiles.when_unreachable,
        ) from error
    except HfHubHTTPError as error:
        raise _refused(repo_id, endpoint, error) from error
    # Releases of huggingface_hub use requests, httpx or httpx2, and let their errors through. HfHubHTTPError
    # derives from the base class of whichever it is.
    except (OSError, *HfHubHTTPError.__bases__) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            repo_id, f"the hub ({endpoint}) cannot be reached: {reason}", remedy=_HubFiles.when_unreachable
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            repo_id, f"{endpoint} does not answer as a hub does", remedy="Check HF_ENDPOINT."
        ) from error


def _refused(repo_id: str, endpoint: str, error: Exception) -> CheckpointError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repo, _, revision = repo_id.partition("@")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RevisionNotFoundError):
        remedy = f"Its branches and commits are listed at {endpoint}/{repo}/commits/main."
        return CheckpointError(repo_id, f"the model has no revision {revision!r}", remedy=remedy)
    if isinstance(error, GatedRepoError):
        remedy = f"Accept its licence at {endpoint}/{repo}. {_LOG_IN}."
        return CheckpointError(repo_id, "is a gated model, and needs authorisation", remedy=remedy)
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        remedy = f"Check the spelling. {_LOG_IN} for a private model."
        return CheckpointError(
            repo_id, f"there is no such folder here, and no such public model on {endpoint}", remedy=remedy
        )
    if status in (401, 403):
        # The hub does not tell whether a model that this account may not see exists.
        remedy = f"Check the spelling. {_LOG_IN}; a token that is set may have expired."
        return CheckpointError(repo_id, f"needs authorisation (HTTP {status})", remedy=remedy)
    return CheckpointError(
        repo_id, f"the hub ({endpoint}) answered with HTTP {status}", remedy=f"Try again later. {_OFFLINE}"
    )


def _cached(repo_id: str) -> Files:
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = repo_id.partition("@")
    config = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    if not isinstance(config, str):
        raise CheckpointError(
            repo_id,
            "is not in the cache, and HF_HUB_OFFLINE is set",
            remedy=f"Unset HF_HUB_OFFLINE, or download it first: hf download {repo}"
            + (f" --revision {revision}" if revision else ""),
        )
    return LocalFiles(Path(config).parent)
