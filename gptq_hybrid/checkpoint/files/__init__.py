"""Where the files of a checkpoint are: a folder, the hub, or any HTTP server that answers range requests.

``http.HttpFiles`` and ``hub.open_hub`` are imported by those who need them: a check of a local folder, as before
each start of vLLM, loads neither.
"""

from ._base import Files, Range, Reads, file_label
from ._open import HUB_HOSTS, open_files
from .hub_id import is_hub_id
from .local import LocalFiles

__all__ = ["HUB_HOSTS", "Files", "LocalFiles", "Range", "Reads", "file_label", "is_hub_id", "open_files"]
