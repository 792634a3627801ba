"""Open a checkpoint by what a person calls it: a folder, a hub id, or an address."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from gptq_hybrid.common.errors import CheckpointError

from ._base import Files
from .hub_id import is_hub_id
from .local import LocalFiles

HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_REMEDY = "Give the folder that holds config.json, a hub id (OWNER/NAME) or the URL of a folder."


def open_files(
    where: str | Path, *, follow_links: bool = True, timeout: float = 30.0, deadline: float | None = None
) -> Files:
    """Return the files of a checkpoint; an existing folder goes before a hub id of the same name.

    Args:
        where: a folder, OWNER/NAME[@REVISION], or the URL of a folder or of a model's page on the hub.
        follow_links: as :class:`LocalFiles` has it.
        timeout: seconds that one network request may take.
        deadline: seconds from now that all of them may take together.

    Raises:
        CheckpointError: ``where`` is none of these, or a hub model that cannot be listed (see ``hub.open_hub``).
    """
    text = str(where)
    is_folder, exists = _on_disk(Path(text))
    if is_folder and text:  # not the current folder for an empty variable
        return LocalFiles(Path(text), follow_links=follow_links)
    if text.lower().startswith(("http://", "https://")):
        hub_id = _hub_id_in(text)
        if hub_id is not None:
            return _open_hub(hub_id, timeout, deadline)
        # Imported here, as the hub below: a local folder needs neither, and is what a start of vLLM checks.
        from .http import HttpFiles

        return HttpFiles(text, timeout=timeout, deadline=deadline)
    if is_hub_id(text) and not exists:
        return _open_hub(text, timeout, deadline)
    if exists or "/" not in text or text.startswith((".", "/", "~")):
        raise CheckpointError(text, "is not a folder", remedy=_REMEDY)
    raise CheckpointError(text, "is neither a folder, a hub id (OWNER/NAME) nor a URL", remedy=_REMEDY)


def _open_hub(hub_id: str, timeout: float, deadline: float | None) -> Files:
    from .hub import open_hub

    return open_hub(hub_id, timeout=timeout, deadline=deadline)


def _on_disk(path: Path) -> tuple[bool, bool]:
    """Whether ``path`` is a folder, and whether it exists."""
    try:
        return path.is_dir(), path.exists()
    except OSError:  # a name too long, say
        return False, False


def _hub_id_in(url: str) -> str | None:
    """Hub id of the model whose page ``url`` is; None for an address elsewhere, or of raw files.

    Raises:
        CheckpointError: another page of the hub.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return None
    path = [unquote(part) for part in parts.path.strip("/").split("/")]
    if host not in HUB_HOSTS or path[2:3] == ["resolve"]:
        return None
    revision = f"@{path[3]}" if len(path) == 4 and path[2] == "tree" else ""
    hub_id = "/".join(path[:2]) + revision
    if not is_hub_id(hub_id) or len(path) not in (2, 4) or (len(path) == 4 and not revision):
        raise CheckpointError(
            url, "is not the page of a model", remedy="Give OWNER/NAME or OWNER/NAME@REVISION."
        )
    return hub_id
