"""The reader of source trees sees what the house rules forbid: each rule can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from .source_tree import SourceTree, circles, private_uses, programs, strings
from .test_doors import absent_names, upward


def make(root: Path, files: dict[str, str]) -> SourceTree:
    """A tree of the package ``house``; every folder is a package."""
    for name, text in files.items():
        path = root / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in [root / "house", *(root / "house").rglob("*")]:
        if folder.is_dir():
            (folder / "__init__.py").touch()
    return SourceTree(root, ["house"])


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from house.kitchen import _oven", "house.kitchen._oven"),
        ("from house.kitchen._oven import bake", "house.kitchen._oven.bake"),
        ("from house.kitchen.pantry import _key", "house.kitchen.pantry._key"),
        ("import house.kitchen._oven", "house.kitchen._oven"),
        ("def open_door():\n    from ..kitchen import _oven", "house.kitchen._oven"),
        ("from house.kitchen import pantry\npantry._key.clear()", "house.kitchen.pantry._key"),
        ("from house.kitchen import pantry as p\np._key = 1", "house.kitchen.pantry._key"),
        ("from house.kitchen.pantry import Shelf\nShelf._board", "house.kitchen.pantry.Shelf._board"),
    ],
)
def test_a_private_name_of_another_room_is_seen(tmp_path: Path, line: str, name: str) -> None:
    files = {
        "kitchen/_oven.py": "bake = 1",
        "kitchen/pantry.py": "_key = {}\nclass Shelf: ...",
        "hall/a.py": line,
    }
    assert private_uses(make(tmp_path, files), "house") == {f"house.hall.a: {name}"}


@pytest.mark.parametrize(
    "line",
    [
        "from house.kitchen import pantry\npantry.key()",
        "from house.hall import _mat",
        "from ._mat import wipe, _brush",
        "import os\nos._exit(1)",
        "self = object()\nself._own",
        "from house import __version__",
    ],
)
def test_the_rooms_own_private_names_are_its_own_business(tmp_path: Path, line: str) -> None:
    files = {"kitchen/pantry.py": "def key(): ...", "hall/_mat.py": "wipe = _brush = 1", "hall/a.py": line}
    assert private_uses(make(tmp_path, files), "house") == set()


def test_an_import_upstairs_is_seen(tmp_path: Path) -> None:
    files = {
        "cellar/a.py": "def climb():\n    from house.roof import view",
        "roof/b.py": "from house.cellar.a import climb\nimport house.attic.c",
        "attic/c.py": "",
    }
    floors = {"house": (("roof", "attic"), ("cellar",))}
    assert upward(make(tmp_path, files), floors) == {
        "house.cellar -> house.roof",
        "house.roof -> house.attic",
    }


def test_the_distributions_meet_only_at_open_doors(tmp_path: Path) -> None:
    rooms = {"gptq_hybrid": ("checkpoint", "writer", "calibration"), "vllm_qwen36_plugin": ("tune", "cpu")}
    for top, names in rooms.items():
        (tmp_path / top).mkdir()
        for name in names:
            (tmp_path / top / f"{name}.py").touch()
    imports = "import gptq_hybrid.checkpoint, gptq_hybrid.writer, gptq_hybrid.calibration"
    for room in rooms["vllm_qwen36_plugin"]:
        (tmp_path / "vllm_qwen36_plugin" / f"{room}.py").write_text(imports)
    (tmp_path / "gptq_hybrid" / "checkpoint.py").write_text("import vllm_qwen36_plugin.cpu")
    floors = {top: (names,) for top, names in rooms.items()}
    assert upward(SourceTree(tmp_path, list(rooms)), floors) == {
        "gptq_hybrid.checkpoint -> vllm_qwen36_plugin.cpu",
        "vllm_qwen36_plugin.cpu -> gptq_hybrid.calibration",
        "vllm_qwen36_plugin.cpu -> gptq_hybrid.writer",
        "vllm_qwen36_plugin.tune -> gptq_hybrid.writer",
    }


def test_a_circle_of_files_is_seen_through_functions_but_not_through_type_checking(tmp_path: Path) -> None:
    files = {
        "hall/a.py": "from .b import x",
        "hall/b.py": "from house.hall import c\nx = 1",
        "hall/c.py": "def later():\n    import house.hall.a",
        "hall/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .e import y",
        "hall/e.py": "from .d import z\ny = 1",
    }
    members = {"house.hall.a", "house.hall.b", "house.hall.c"}
    assert circles(make(tmp_path, files).arrows()) == [members]


def test_a_package_and_its_modules_are_a_circle_only_if_one_asks_the_package(tmp_path: Path) -> None:
    files = {"hall/__init__.py": "from .a import x", "hall/a.py": "from . import b\nx = 1", "hall/b.py": ""}
    assert circles(make(tmp_path, files).arrows()) == []
    (tmp_path / "house" / "hall" / "b.py").write_text("from house.hall import x")
    assert circles(SourceTree(tmp_path, ["house"]).arrows()) == [
        {"house.hall", "house.hall.a", "house.hall.b"}
    ]


def test_what_exists_is_known_one_level_deep(tmp_path: Path) -> None:
    text = "import os\nif os:\n    A = 1\nelse:\n    B, C = 2, 3\nclass D:\n    E = 1\ndef f():\n    g = 1\nh: int"
    tree = make(tmp_path, {"hall/a.py": text})
    assert tree.defined("house.hall.a") == {"os", "A", "B", "C", "D", "f", "h"}
    assert tree.exists("house.hall.a")
    assert tree.exists("house.hall.a.D.E")
    assert not tree.exists("house.hall.a.E")
    assert not tree.exists("house.hall.b")


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ('"gptq_hybrid.room:Door"', set()),
        ('"gptq_hybrid.room:Window"', {"gptq_hybrid.room:Window"}),
        ('"gptq_hybrid.cellar:Door"', {"gptq_hybrid.cellar:Door"}),
        ('patch("gptq_hybrid.room.Door", 1)', set()),
        ('patch("gptq_hybrid.room.Wall", 1)', {"gptq_hybrid.room.Wall"}),
        ('run([python, "-m", "gptq_hybrid.room"])', set()),
        ('run([python, "-m", "gptq_hybrid"])', set()),
        ('run([python, "-m", "gptq_hybrid.attic"])', {"-m gptq_hybrid.attic", "gptq_hybrid.attic"}),
        ('"python -m gptq_hybrid.attic"', {"-m gptq_hybrid.attic", "gptq_hybrid.attic"}),
        (
            '"""Program:\n\nfrom gptq_hybrid.room import Door, Wall\n"""',
            {"from gptq_hybrid.room import Wall"},
        ),
        ('"""See :func:`gptq_hybrid.room.paint`."""', {"gptq_hybrid.room.paint"}),
        ('"gptq_hybrid/room.py, gptq_hybrid.toml"', set()),
    ],
)
def test_a_name_in_a_string_that_does_not_exist_is_seen(tmp_path: Path, text: str, absent: set[str]) -> None:
    (tmp_path / "gptq_hybrid").mkdir()
    (tmp_path / "gptq_hybrid" / "__init__.py").touch()
    (tmp_path / "gptq_hybrid" / "room.py").write_text("class Door: ...")
    (tmp_path / "gptq_hybrid" / "text.py").write_text(text)
    tree = SourceTree(tmp_path, ["gptq_hybrid"])
    assert absent_names(tree, tree.sources["gptq_hybrid.text"]) == {
        f"gptq_hybrid.text: {name}" for name in absent
    }


def test_strings_and_programs_are_found_where_they_stand(tmp_path: Path) -> None:
    tree = make(tmp_path, {"hall/a.py": '"""Doc."""\nrun("python", "-m", "house.hall")\nx = f"{1} part"'})
    source = tree.sources["house.hall.a"]
    assert sorted(strings(source)) == [(1, "Doc."), (2, "-m"), (2, "house.hall"), (2, "python"), (3, " part")]
    assert list(programs(source)) == [(2, "house.hall")]
