"""Data sets as lists of images: a folder or a zip of class folders, listed without decoding."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from qhdm.data.layout import Item, arrange
from qhdm.data.zips import entry_parts, open_zip, read_entry
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

#: `data.root` of a set that a program handed over (`qhdm.data.given`).
GIVEN = "given"
#: What `data.root` may be besides a path.
NAMED_ROOTS = ("bundled", "eurosat", GIVEN)

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"})
#: Suffixes of files whose bands are read.
BAND_SUFFIXES = frozenset({".tif", ".tiff", ".jp2"})
#: The suffix of masks beside images, and why they are refused.
MASK = ".msk"
NO_MASK = (
    "masks beside images are not read; put them into the files "
    "(gdal_translate --config GDAL_TIFF_INTERNAL_MASK YES), or remove them"
)
#: Most suffixes of other files that a message lists.
_SHOWN = 8
_MAX_BYTES = 256 * 2**20
_LAYOUT = 'a folder or zip with one folder of images per class, "bundled" or "eurosat"'


@dataclass(frozen=True)
class Source:
    """An opened data set: a folder or zip of class folders. A context manager that closes it.

    Attributes:
        name: `bundled`, `eurosat`, or the name of the folder or zip.
        path: the folder or zip.
        items: the images, sorted by class, then by name.
        ignored: number of images outside any class folder.
        links: number of symbolic links not followed, because they leave the set or are folders.
        others: the suffixes of files that are not read, and how many have each.
        archive: the zip, read in place; None for a folder.
    """

    name: str
    path: Path
    items: tuple[Item, ...]
    ignored: int
    links: int
    others: Counter[str]
    archive: zipfile.ZipFile | None = None

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(sorted({item.class_name for item in self.items}))

    @property
    def not_read(self) -> str:
        """`others` for messages, most frequent first: `12 .jp2, 1 .csv`."""
        counts = sorted(self.others.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = [f"{count} {suffix or 'without suffix'}" for suffix, count in counts[:_SHOWN]]
        left = len(counts) - len(shown)
        return ", ".join(shown) + (f" and {left} more kinds" if left else "")

    def read(self, item: Item) -> bytes:
        """The bytes of the image file. Safe to call from several threads.

        Raises:
            DataError: the file cannot be read.
        """
        if self.archive is not None:
            return read_entry(self.archive, item.entry, self.path)
        path = self.path / item.entry
        try:
            _check_size(path.stat().st_size, str(path))
            return path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); repair or remove it, "
                "or set data.skip_broken: true"
            ) from None

    def version(self, item: Item) -> str:
        """A text that changes with the content of the file, found without reading it."""
        if self.archive is not None:
            info = self.archive.getinfo(item.entry)
            return f"{info.CRC} {info.file_size}"
        path = self.path / item.entry
        known = path.stat()
        # Names and times of modification may be exchanged or set; these identify the file.
        own = f"{known.st_ino} {known.st_ctime_ns}"
        return f"{path.resolve()} {known.st_size} {known.st_mtime_ns} {own}"

    def place(self, item: Item) -> str:
        """Where the image is, for messages."""
        if self.archive is None:
            return str(self.path / item.entry)
        return f"{self.path}: {item.entry}"

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self.archive is not None:
            self.archive.close()


def cache_folder() -> Path:
    """Where qhdm keeps what it downloads and computes: `$QHDM_DATA`, or the user's cache."""
    data = os.environ.get("QHDM_DATA")
    if data:
        return Path(os.path.expanduser(data))
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "qhdm"


def eurosat_folder() -> Path:
    """Where EuroSAT RGB lies, in the cache folder."""
    return cache_folder() / "EuroSAT_RGB"


def locate(root: str) -> Path:
    """The path that `data.root` stands for, whether or not it exists."""
    if root == "bundled":
        return Path(__file__).parent / "bundled" / "eurosat_103.zip"
    if root == "eurosat":
        return eurosat_folder()
    if root == GIVEN:
        return Path(__file__).parent / GIVEN  # nothing is there
    return Path(os.path.expanduser(root))


def open_source(
    root: str, *, classes: Collection[str] | None = None, bands: bool = False
) -> Source:
    """List the images of a data set by class (`qhdm.data.layout` says how classes are found).

    Images beside the class folders are counted, not used; so are files of other formats. Hidden
    files and `__MACOSX` are skipped.

    Args:
        root: `bundled`, `eurosat` (as `qhdm data download eurosat` leaves it), or the path of a
            folder or zip.
        classes: names that are known to be classes, if any.
        bands: list the formats whose bands are read, instead of pictures.

    Raises:
        DataError: the set is absent, or has no class folders; the zip is damaged or encrypted, or
            has an entry with an unsafe path or of more than 256 MiB; or there are masks beside
            files whose bands are read.
    """
    path = locate(root)
    name = root if root in NAMED_ROOTS else path.resolve().name
    suffixes = BAND_SUFFIXES if bands else _SUFFIXES
    with ExitStack() as on_error:
        archive = None
        if os.path.isdir(path):
            listing = _list_folder(path, suffixes)
        elif os.path.isfile(path):
            archive = on_error.enter_context(open_zip(path))
            listing = _list_zip(archive, path, suffixes)
        else:
            raise _absent(root, path)
        if bands and (masks := listing.others[MASK]):
            raise DataError(f"{path}: {masks} {MASK} file(s): {NO_MASK}")
        items, ignored = arrange(listing.images.items(), classes=classes, root=path)
        source = Source(name, path, items, ignored, listing.links, listing.others, archive)
        if not items:
            raise _empty(source, suffixes)
        for class_name in source.class_names:
            if any("\ud800" <= letter <= "\udfff" for letter in class_name):
                raise DataError(
                    f"{path}: the name of the class folder {class_name!r} is not UTF-8; rename it"
                )
        on_error.pop_all()
    return source


@dataclass
class _Listing:
    """The files of a set: components of the path of each image by entry, and what is not read."""

    images: dict[str, Sequence[str]] = field(default_factory=dict)
    links: int = 0
    others: Counter[str] = field(default_factory=Counter)


def _list_folder(path: Path, suffixes: Collection[str]) -> _Listing:
    listing = _Listing()
    base = os.path.realpath(path)
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(path / folder) as entries:
                for entry in entries:
                    relative = folder + entry.name
                    if _is_hidden(entry.name):
                        continue
                    if entry.is_symlink() and (entry.is_dir() or not _is_below(entry.path, base)):
                        listing.links += 1
                    elif entry.is_dir():
                        pending.append(f"{relative}/")
                    elif entry.is_file() and _suffix(entry.name) in suffixes:
                        listing.images[relative] = relative.split("/")
                    elif entry.is_file():
                        listing.others[_suffix(entry.name)] += 1
        except OSError as error:
            raise DataError(
                f"{path / folder}: cannot be listed ({error.strerror}); check its permissions"
            ) from None
    return listing


def _list_zip(archive: zipfile.ZipFile, path: Path, suffixes: Collection[str]) -> _Listing:
    listing = _Listing()
    for info in archive.infolist():
        parts = entry_parts(info, path)
        if info.is_dir() or any(map(_is_hidden, parts)):
            continue
        if _suffix(info.filename) not in suffixes:
            listing.others[_suffix(info.filename)] += 1
        elif stat.S_ISLNK(info.external_attr >> 16):
            listing.links += 1
        elif info.flag_bits & 1:
            raise DataError(f"{path}: {info.filename}: encrypted; give a zip without password")
        else:
            _check_size(info.file_size, f"{path}: {info.filename}")
            listing.images[info.filename] = parts
    return listing


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_below(path: str, base: str) -> bool:
    return os.path.realpath(path).startswith(os.path.join(base, ""))


def _check_size(size: int, place: str) -> None:
    if size > _MAX_BYTES:
        raise DataError(f"{place}: {size} bytes are more than 256 MiB; remove it, or shrink it")


def _absent(root: str, path: Path) -> DataError:
    if root == GIVEN:
        return DataError(
            "data.root: given: a program handed the data set over, which cannot be read again; "
            "hand it over again, or name it (--set data.root=PATH)"
        )
    if root == "eurosat":
        return DataError(
            f'data.root: no EuroSAT RGB at {path}; download it with "qhdm data download eurosat" '
            "(90 MiB), or give your own folder or zip with --set data.root=PATH"
        )
    hint = did_you_mean(root, NAMED_ROOTS)
    return DataError(f"data.root: {path}: no such folder or zip; give {_LAYOUT}{hint}")


def _empty(source: Source, suffixes: frozenset[str]) -> DataError:
    problem = f"{source.ignored} image(s), but no class folders" if source.ignored else "no images"
    if source.others:
        problem += f"; not read: {source.not_read} ({', '.join(sorted(suffixes))} are"
        bands, pictures = (
            {*source.others} & kind - suffixes for kind in (BAND_SUFFIXES, _SUFFIXES)
        )
        problem += f"; {', '.join(bands)} with data.bands, by name or number" if bands else ""
        problem += f"; {', '.join(pictures)} without data.bands" if pictures else ""
        problem += ")"
    if source.links:
        problem += f" ({source.links} link(s) that lead elsewhere are not followed)"
    return DataError(f"data.root: {source.path}: {problem}; give {_LAYOUT}")
