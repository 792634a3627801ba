"""Where a checkpoint's files are: a folder, the hub, or any HTTP server that answers range requests.

Nothing here imports httpx or huggingface_hub before it is used.
"""

from ._base import Files, Range, Reads
from ._open import open_files
from .http import HttpFiles
from .hub import is_hub_id, open_hub
from .local import LocalFiles

__all__ = ["Files", "HttpFiles", "LocalFiles", "Range", "Reads", "is_hub_id", "open_files", "open_hub"]
