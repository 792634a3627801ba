"""What a person calls a checkpoint: a folder, a hub id, or an address."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from gptq_hybrid.common.errors import CheckpointError

from ._base import Files
from .http import HttpFiles
from .hub import is_hub_id, open_hub
from .local import LocalFiles

_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_REMEDY = "Give the folder that holds config.json, a hub id (OWNER/NAME) or the URL of a folder."


def open_files(where: str | Path, *, follow_links: bool = True, timeout: float = 30.0) -> Files:
    """The files of a checkpoint; an existing folder goes before a hub id of the same name.

    Raises:
        CheckpointError: it is none of these; or a hub model that cannot be listed (see ``open_hub``).
    """
    text = str(where)
    is_folder, exists = _looked_at(Path(text))
    if is_folder and text:  # not the current folder for an empty variable
        return LocalFiles(Path(text), follow_links=follow_links)
    if text.lower().startswith(("http://", "https://")):
        hub_id = _hub_id_of(text)
        return HttpFiles(text, timeout=timeout) if hub_id is None else open_hub(hub_id, timeout=timeout)
    if is_hub_id(text) and not exists:
        return open_hub(text, timeout=timeout)
    if exists or "/" not in text or text.startswith((".", "/", "~")):
        raise CheckpointError(text, "is not a folder", remedy=_REMEDY)
    raise CheckpointError(text, "is neither a folder, a hub id (OWNER/NAME) nor a URL", remedy=_REMEDY)


def _looked_at(path: Path) -> tuple[bool, bool]:
    try:
        return path.is_dir(), path.exists()
    except OSError:  # a name too long, say
        return False, False


def _hub_id_of(url: str) -> str | None:
    """The id of the model whose page on the hub this is; None for an address elsewhere, or of raw files.

    Raises:
        CheckpointError: another page of the hub.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return None
    path = [unquote(part) for part in parts.path.strip("/").split("/")]
    if host not in _HUB_HOSTS or path[2:3] == ["resolve"]:
        return None
    revision = f"@{path[3]}" if len(path) == 4 and path[2] == "tree" else ""
    hub_id = "/".join(path[:2]) + revision
    if not is_hub_id(hub_id) or len(path) not in (2, 4) or (len(path) == 4 and not revision):
        raise CheckpointError(
            url, "is not the page of a model", remedy="Give OWNER/NAME or OWNER/NAME@REVISION."
        )
    return hub_id
