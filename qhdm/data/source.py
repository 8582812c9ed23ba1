"""Data sets as lists of images: a folder or a zip of class folders, listed without decoding."""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qhdm.data.layout import Item, arrange
from qhdm.data.zips import entry_parts, is_link, open_zip, read_entry
from qhdm.errors import DataError, did_you_mean

EUROSAT_CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)

#: Values of `data.root` besides a path.
#: `data.root` of a data set passed from Python (`qhdm.data.given`).
GIVEN = "given"
NAMED_ROOTS = ("bundled", "eurosat", GIVEN)

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"})
#: Kinds of other files that are named.
_SHOWN = 8
_MAX_BYTES = 256 * 2**20
_LAYOUT = 'a folder or zip with one folder of images per class, "bundled" or "eurosat"'


@dataclass(frozen=True)
class Source(ABC):
    """An opened data set; a context manager that closes it.

    Attributes:
        name: `bundled`, `eurosat`, or the name of the folder or zip.
        path: the folder or file.
        items: the images, sorted by class, then by name.
        ignored: number of images outside any class folder.
        links: number of symbolic links not followed, because they leave the set or are folders.
        others: the suffixes of files that are passed over, and how many have each; most first.
    """

    name: str
    path: Path
    items: tuple[Item, ...]
    ignored: int
    links: int
    others: tuple[tuple[str, int], ...]

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(sorted({item.class_name for item in self.items}))

    @property
    def passed_over(self) -> str:
        """`others` for messages: `12 .jp2, 1 .csv`."""
        shown = [f"{count} {suffix or 'without suffix'}" for suffix, count in self.others[:_SHOWN]]
        left = len(self.others) - len(shown)
        return ", ".join(shown) + (f" and {left} more kinds" if left else "")

    @abstractmethod
    def read(self, item: Item) -> bytes:
        """The bytes of the image file. Safe to call from several threads.

        Raises:
            DataError: the file cannot be read.
        """

    @abstractmethod
    def place(self, item: Item) -> str:
        """The location of an image, for messages."""

    @abstractmethod
    def close(self) -> None:
        """Release what the source holds open."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class FolderSource(Source):
    """A folder of class folders."""

    def read(self, item: Item) -> bytes:
        path = self.path / item.entry
        try:
            _check_size(path.stat().st_size, str(path))
            return path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); repair or remove it, "
                "or set data.skip_broken: true"
            ) from None

    def place(self, item: Item) -> str:
        return str(self.path / item.entry)

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True)
class ZipSource(Source):
    """A zip of class folders, read in place."""

    archive: zipfile.ZipFile

    def read(self, item: Item) -> bytes:
        return read_entry(self.archive, item.entry, self.path)

    def place(self, item: Item) -> str:
        return f"{self.path}: {item.entry}"

    def close(self) -> None:
        self.archive.close()


def cache_folder() -> Path:
    """The cache folder of downloads and trained classifiers: `$QHDM_DATA`, or the user's cache."""
    data = os.environ.get("QHDM_DATA")
    if data:
        return Path(os.path.expanduser(data))
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "qhdm"


def eurosat_folder() -> Path:
    """The folder of EuroSAT RGB in the cache."""
    return cache_folder() / "EuroSAT_RGB"


def locate(root: str) -> Path:
    """The path that `data.root` refers to, whether or not it exists."""
    if root == "bundled":
        return Path(__file__).parent / "bundled" / "eurosat_103.zip"
    if root == "eurosat":
        return eurosat_folder()
    if root == GIVEN:
        return Path(__file__).parent / GIVEN  # nothing is there
    return Path(os.path.expanduser(root))


def open_source(root: str, *, classes: Collection[str] | None = None) -> Source:
    """List the images of a data set and their classes (see `qhdm.data.layout`).

    Images beside the class folders are counted, not used; so are files of other formats. Hidden
    files and `__MACOSX` are passed over.

    Args:
        root: `bundled`, `eurosat` (as `qhdm data download eurosat` leaves it), or the path of a
            folder or zip.
        classes: known classes, if any.

    Raises:
        DataError: the set is absent or has no class folders, or what look like these are something
            else; the zip is damaged or encrypted, or
            has an entry with an unsafe path or of more than 256 MiB.
    """
    path = locate(root)
    name = root if root in NAMED_ROOTS else path.resolve().name
    if os.path.isdir(path):
        source: Source = _open_folder(name, path, classes)
    elif os.path.isfile(path):
        source = _open_zip(name, path, classes)
    else:
        raise _absent(root, path)
    try:
        if not source.items:
            raise _empty(source)
        for class_name in source.class_names:
            _check_name(class_name, path)
    except DataError:
        source.close()
        raise
    return source


def _open_folder(name: str, path: Path, classes: Collection[str] | None) -> FolderSource:
    base = os.path.realpath(path)
    entries: list[str] = []
    others: Counter[str] = Counter()
    links = 0
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(path / folder) as listing:
                for entry in listing:
                    relative = folder + entry.name
                    if _is_hidden(entry.name):
                        continue
                    if entry.is_symlink() and (entry.is_dir() or not _is_below(entry.path, base)):
                        links += 1
                    elif entry.is_dir():
                        pending.append(f"{relative}/")
                    elif entry.is_file() and _is_image(entry.name):
                        entries.append(relative)
                    elif entry.is_file():
                        others[_suffix(entry.name)] += 1
        except OSError as error:
            raise DataError(
                f"{path / folder}: cannot be listed ({error.strerror}); check its permissions"
            ) from None
    paths = ((entry, entry.split("/")) for entry in entries)
    items, ignored = arrange(paths, classes=classes, root=path)
    return FolderSource(name, path, items, ignored, links, _most_first(others))


def _open_zip(name: str, path: Path, classes: Collection[str] | None) -> ZipSource:
    archive = open_zip(path)
    try:
        paths: dict[str, list[str]] = {}
        others: Counter[str] = Counter()
        links = 0
        for info in archive.infolist():
            parts = entry_parts(info, path)
            if info.is_dir() or any(map(_is_hidden, parts)):
                continue
            if not _is_image(info.filename):
                others[_suffix(info.filename)] += 1
                continue
            if is_link(info):
                links += 1
                continue
            if info.flag_bits & 1:
                raise DataError(f"{path}: {info.filename}: encrypted; give a zip without password")
            _check_size(info.file_size, f"{path}: {info.filename}")
            paths[info.filename] = parts
        items, ignored = arrange(paths.items(), classes=classes, root=path)
    except BaseException:
        archive.close()
        raise
    return ZipSource(name, path, items, ignored, links, _most_first(others), archive)


def _check_name(class_name: str, path: Path) -> None:
    try:
        class_name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{path}: the name of the class folder {class_name!r} is not UTF-8; rename it"
        ) from None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return _suffix(name) in _SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _most_first(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _is_below(path: str, base: str) -> bool:
    return os.path.realpath(path).startswith(os.path.join(base, ""))


def _check_size(size: int, place: str) -> None:
    if size > _MAX_BYTES:
        raise DataError(f"{place}: {size} bytes are more than 256 MiB; remove it, or shrink it")


def _absent(root: str, path: Path) -> DataError:
    if root == GIVEN:
        return DataError(
            "data.root: given: the data set was passed from Python and cannot be read again; "
            "pass it again, or name it (--set data.root=PATH)"
        )
    if root == "eurosat":
        return DataError(
            f'data.root: no EuroSAT RGB at {path}; download it with "qhdm data download eurosat" '
            "(90 MiB), or give your own folder or zip with --set data.root=PATH"
        )
    hint = did_you_mean(root, NAMED_ROOTS)
    return DataError(f"data.root: {path}: no such folder or zip; give {_LAYOUT}{hint}")


def _empty(source: Source) -> DataError:
    problem = f"{source.ignored} image(s), but no class folders" if source.ignored else "no images"
    if source.others:
        problem += f"; not read: {source.passed_over} (JPEG, PNG, TIFF, BMP, WebP and GIF are)"
    if source.links:
        problem += f" ({source.links} link(s) that lead elsewhere are not followed)"
    return DataError(f"data.root: {source.path}: {problem}; give {_LAYOUT}")
