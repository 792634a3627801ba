"""Packages of the Debian and PyPI registries: download them with apt-get and pip, read the files in them."""

from __future__ import annotations

import fnmatch
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bench.mini.sources import SOURCES, Source


def recorded() -> dict[str, dict[str, str]]:
    """Entries of the committed `corpus.json` by package; empty before the first corpus."""
    path = Path(__file__).with_name("corpus.json")
    packages = json.loads(path.read_text(encoding="utf-8"))["packages"] if path.exists() else []
    return {entry["package"]: entry for entry in packages}


def download(work: Path) -> None:
    """Fetch every package into WORK/debian and WORK/pypi; what is there already is kept.

    PyPI keeps old versions, so wheels are those recorded; Debian's archive keeps the newest only.
    """
    known = recorded()
    for registry in ("debian", "pypi"):
        folder = work / registry
        folder.mkdir(parents=True, exist_ok=True)
        wanted = sorted(
            {s.package for s in SOURCES if s.registry == registry and not find(work, s, missing_ok=True)}
        )
        if not wanted:
            continue
        if registry == "debian":
            subprocess.run(["apt-get", "download", *wanted], cwd=folder, check=True)
            continue
        pins = [f"{name}=={known[name]['file'].split('-')[1]}" if name in known else name for name in wanted]
        options = ["-q", "--no-deps", "--only-binary=:all:", "-d", "."]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, *pins], cwd=folder, check=True)


def find(work: Path, source: Source, *, missing_ok: bool = False) -> Path | None:
    """The package of a source in WORK; FileNotFoundError unless `missing_ok`."""
    if source.registry == "debian":
        found = sorted((work / "debian").glob(f"{source.package}_*.deb"))
    else:
        found = sorted((work / "pypi").glob(f"{source.package.replace('-', '_')}-*.whl"))
    if not found and not missing_ok:
        raise FileNotFoundError(f"package {source.package} is not in {work}")
    return found[-1] if found else None


def files(package: Path, sources: list[Source]) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of a package that one of `sources` may want."""
    inner = [s.inner for s in sources if s.inner]
    if package.suffix == ".whl":
        yield from _zip_files(package.read_bytes())
        return
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for path, content in _tar_files(process.stdout, "r|"):
            if any(fnmatch.fnmatch(path, glob) for glob in inner):
                if path.endswith(".zip"):
                    yield from _zip_files(content)
                else:
                    yield from _tar_files(io.BytesIO(content), "r|xz")
            else:
                yield path, content


def _tar_files(stream: object, mode: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.isfile() and (opened := archive.extractfile(member)):
                yield member.name.removeprefix("."), opened.read()


def _zip_files(content: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            yield "/" + name, archive.read(name)
