"""Where the code removes files, and whose they are: a new place has to say it here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
REMOVING = {"rmtree", "unlink", "rmdir", "removedirs"}

PLACES = {
    "tcl/files/atomic.py atomic_folder": "the hidden folders .NAME.partial and .NAME.old, which it makes itself",
    "tcl/files/atomic.py atomic_file": "the hidden file .NAME.partial, which it makes itself",
    "tcl/files/atomic.py shared_file": "its temporary file, with a name that no other process has",
    "tcl/files/locks.py _remove_unused": "its lock, the recipe of a run that began, and empty folders that it has made",
    "tcl/files/locks.py writing": "its lock",
    "tcl/files/remote.py _download": "the stamp of its copy in the cache",
    "tcl/files/cache.py make_room": "files of the cache that were longest not used, by the names that it gives them",
    "tcl/data/arrow_file.py write_index": "its temporary file in the cache",
    "tcl/data/arrow_file.py _remove": "an index of this process, when it is no longer used",
    "tcl/data/pack/shard.py write": "its temporary shard",
    "tcl/data/pack/pack.py write": "its lock",
    "tcl/data/pack/pack.py _remove": "its own records, by name",
    "tcl/vectors/files.py publish": "vectors that the user replaces, by the names that belong to them",
    "tcl/vectors/writer.py finish": "the folder that it has made, after moving its files",
    "tcl/embedding/folder.py remove": "its lock, and its folder where that is empty",
    "tcl/embedding/folder.py clear_final": "files of the names that a job writes",
    "tcl/embedding/folder.py _clear": "files of the names that a job writes",
    "tcl/embedding/parts.py __exit__": "the folder of parts where it is empty",
    "tcl/embedding/parts.py finish": "the folder of parts where it is empty",
    "tcl/embedding/parts.py _remove_parts": "files of the names that parts have, at --restart",
    "tcl/search/faiss_build.py _write": "the report of the index that is replaced",
    "tcl/training/loop.py __enter__": "the recipe of a run that has begun, once its config.yaml is there",
    "tcl/training/checkpoint.py prune_checkpoints": "checkpoints of the run, by the names that it gives them",
    "tcl/training/runlog.py point_latest_at": "its temporary link",
    "tcl/encoders/tensorrt/engines.py build_engine": "the description of the engine that is replaced",
    "export/graphs/write.py _source": "a graph that it has just written for another precision",
}


def _removes(call: ast.Attribute) -> bool:
    return call.attr in REMOVING or (call.attr == "remove" and ast.unparse(call.value) == "os")


def removals() -> Iterator[str]:
    for package in ("tcl", "tcl_cli", "export"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef):
                    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                    if any(isinstance(call, ast.Attribute) and _removes(call) for call in calls):
                        yield f"{path.relative_to(ROOT)} {function.name}"


def test_every_place_that_removes_says_what() -> None:
    assert set(removals()) == set(PLACES)
