"""A bundle as one `.tar`, which commands take as they take the folder."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

from tcl.encoders.bundle import read_bundle
from tcl.errors import CheckpointError, UsageError
from tcl.files.atomic import atomic_file, atomic_folder
from tcl.files.cache import CacheError, cache_folder, locked
from tcl.files.hashes import file_sha256
from tcl.files.json_object import MAX_BYTES, parse_object
from tcl.files.locks import writing
from tcl.weights.find import BUNDLE_FILE

AGAIN = "copy the file again, or make it again with `tcl export --pack`"


def pack(folder: Path, target: Path) -> None:
    """Write the bundle in `folder` as `target`; the same bundle gives the same bytes.

    Raises:
        UsageError: `target` exists or cannot be written.
        CheckpointError: `folder` is no whole bundle.
        TclError: the disk is full.
    """
    if target.exists():
        raise UsageError(f"{target}: exists", hint="choose another --out")
    names = sorted(read_bundle(folder).hashes)
    with writing(target), atomic_file(target) as temporary, tarfile.open(temporary, "w") as tar:
        for name in (BUNDLE_FILE, *names):  # what names the bundle comes first
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = (folder / name).stat().st_size, 0o644
            with (folder / name).open("rb") as file:
                tar.addfile(entry, file)


def unpacked(path: Path) -> Path:
    """The folder that a packed bundle was unpacked to, in the cache; done once for each bundle.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is no packed bundle, cut short, or a file in it is not the one that was packed.
        CacheError: the cache cannot be written.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            manifest = tar.next()
            whole = manifest is not None and manifest.name == BUNDLE_FILE and _is_plain(manifest)
            file = tar.extractfile(manifest) if manifest is not None and whole else None
            if file is None:
                raise CheckpointError(f"{path}: is no packed bundle", hint=AGAIN)
            content = file.read(MAX_BYTES)
            own = hashlib.sha256(content).hexdigest()
            wanted = parse_object(content, {"files": {"*": str}})["files"]
            # The hash of what lists the hash of every file stands for the whole.
            folder = cache_folder() / "bundles" / own
            with locked(f"bundle-{folder.name}"):
                if not folder.exists():
                    _unpack(path, folder, wanted | {BUNDLE_FILE: own})
            return folder
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", hint="name a bundle, packed or not") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: is no packed bundle, or cut short: {error}", hint=AGAIN) from error
    except OSError as error:
        raise CacheError.of(path.name, error) from error


def _is_plain(entry: tarfile.TarInfo) -> bool:
    """A file whose bytes are all in the archive; a sparse one may claim any size."""
    return entry.isreg() and not entry.issparse()


def _unpack(path: Path, folder: Path, wanted: dict[str, str]) -> None:
    """Unpack the files of `wanted`, compared with their SHA-256; what is in the cache is trusted from then on."""
    left = dict(wanted)
    with tarfile.open(path, "r:") as tar, atomic_folder(folder) as temporary:
        for entry in tar:
            if entry.name not in left or Path(entry.name).name != entry.name or not _is_plain(entry):
                raise CheckpointError(f"{path}: is no packed bundle: holds {entry.name!r}", hint=AGAIN)
            tar.extract(entry, temporary, filter="data")
            if file_sha256(temporary / entry.name) != left.pop(entry.name):
                raise CheckpointError(f"{path}: {entry.name} is damaged", hint=AGAIN)
        if left:
            raise CheckpointError(f"{path}: lacks {min(left)}", hint=AGAIN)
