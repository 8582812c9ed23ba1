"""Detects class folders, split folders, and folders that merely contain the others.

Classes are found as torchvision's `ImageFolder` finds them, except for two kinds of folders:

* those that wrap the whole set: `EuroSAT_RGB/Forest/x.jpg` and `Forest/x.jpg` are both of the class
  `Forest`;
* those that split it: `train/Forest/x.jpg` and `Forest/train/x.jpg` are training images of the
  class `Forest`, where there are held-out ones (`test`, `val`) beside them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qhdm.errors import DataError

#: Words in the names of folders that split a set: whether their images are held out.
_HELD_OUT = {
    "train": False, "training": False, "val": True, "valid": True, "validation": True, "dev": True,
    "test": True, "testing": True, "eval": True, "evaluation": True, "holdout": True,
}  # fmt: skip

#: Names of folders of images, and of what belongs to them and lies beside.
_IMAGES = frozenset({"image", "images", "img", "imgs"})
_LABELS = frozenset({"label", "labels", "mask", "masks", "annotation", "annotations"})

#: The names of the directories from the root of the set down to a folder.
Folder = tuple[str, ...]


@dataclass(frozen=True, order=True)
class Item:
    """One image of a set.

    Attributes:
        class_name: the class folder it is in.
        name: its path within the set, starting with the class: `Forest/Forest_1.jpg`.
        entry: its path below the root folder or in the zip, wrapping directories included.
        part: the folder of the split that it is in: `train`; empty where there is none.
    """

    class_name: str
    name: str
    entry: str
    part: str = ""

    @property
    def is_held_out(self) -> bool:
        """Whether its folder keeps it out of training."""
        return any(map(held_out_word, self.part.split("/")))


def arrange(
    paths: Iterable[tuple[str, Sequence[str]]], *, classes: Collection[str] | None, root: Path
) -> tuple[tuple[Item, ...], int]:
    """Sort the images of a set by class; also count those outside any class folder.

    Leading directories shared by all images are stripped while a directory level remains; the class
    is the first component left, and deeper images belong to it.

    Args:
        paths: entry of each image, and the components of its path.
        classes: names that are known to be classes, if any.
        root: the folder or zip, for messages.

    Raises:
        DataError: there are no class folders, or the split leaves images out.
    """
    paths = list(paths)
    folders = {tuple(components[:-1]) for _, components in paths}
    split_levels = [
        level
        for level, names in enumerate(_names_by_level(folders))
        if {*map(held_out_word, names)} == {True, False}
    ]
    inner = {_without(folder, split_levels) for folder in folders}
    depth = _wrapper_depth(inner)
    items = []
    for entry, components in paths:
        folder, file = components[:-1], components[-1]
        rest = _without(folder, split_levels)[depth:]
        if rest:
            part = "/".join(folder[level] for level in split_levels if level < len(folder))
            name = "/".join(filter(None, [rest[0], part, *rest[1:], file]))
            items.append(Item(rest[0], name, entry, part))
    below = [folder for folder in inner if len(folder) > depth]
    top = "/".join(below[0][:depth]) if below and not split_levels else None
    candidates = _ClassFolders({folder[depth:] for folder in below}, root, top)
    candidates.check_parts()
    candidates.check_labels()
    if not classes or not {*classes} <= {*candidates.names}:
        candidates.check_distinct()
    return tuple(sorted(_with_split(items, root))), len(paths) - len(items)


def _with_split(items: list[Item], root: Path) -> list[Item]:
    """The images, with parts only where the class folders hold training and held-out images."""
    if not any(item.is_held_out for item in items):  # the held-out images, if any, have no classes
        return [replace(item, part="") for item in items]
    parts = _listed({item.part for item in items if item.part})
    for item in items:
        if not item.part:
            raise DataError(
                f"{root}: {item.entry}: in none of the folders of the split, {parts}; move it into "
                "one of them"
            )
    if all(item.is_held_out for item in items):
        raise DataError(
            f"{root}: only {parts} has class folders; put the training images into class folders, "
            "too"
        )
    return items


def held_out_word(name: str) -> bool | None:
    """Whether a folder's name says that its images are held out; None if it says neither."""
    words = re.findall("[a-z]+", name.casefold())
    kinds = {_HELD_OUT[word] for word in words if word in _HELD_OUT}
    return kinds.pop() if len(kinds) == 1 else None


def _without(folder: Sequence[str], levels: Collection[int]) -> Folder:
    return tuple(name for level, name in enumerate(folder) if level not in levels)


def _wrapper_depth(folders: Iterable[Folder]) -> int:
    """How many leading directories wrap the class folders, of which `folders` hold images.

    A directory with images of its own is a class, unless several directories with images are in it:
    then those are the classes.
    """
    depth = 0
    while True:
        folders = [folder for folder in folders if len(folder) > depth]
        if len({folder[depth] for folder in folders}) != 1:
            return depth
        below = {folder[depth + 1] for folder in folders if len(folder) > depth + 1}
        has_images = any(len(folder) == depth + 1 for folder in folders)
        if not below or (has_images and len(below) == 1):
            return depth
        depth += 1


@dataclass(frozen=True)
class _ClassFolders:
    """Checks that the folders in the place of classes are classes.

    Attributes:
        folders: those that hold images, without directories that wrap or split the set.
        root: the folder or zip.
        top: the folder in `root` that contains them; None if there are several.
    """

    folders: Collection[Folder]
    root: Path
    top: str | None

    @property
    def names(self) -> list[str]:
        """The candidates for classes."""
        return sorted({folder[0] for folder in self.folders})

    def check_parts(self) -> None:
        """Refuse folders of a split that is incomplete or mixed with other folders."""
        parts = {name: kind for name in self.names if (kind := held_out_word(name)) is not None}
        others = [name for name in self.names if name not in parts]
        if not parts or (others and {*parts.values()} != {True, False}):
            return
        first = min(parts, key=lambda name: (parts[name], name))
        if self._holds_folders(first):
            remedy = f"move {_listed(others)} away" if others else "add a folder to train on"
            remedy += f", or {self._use(first)}"
        else:
            remedy = "put the images into class folders, or, if these are classes, rename them"
        raise DataError(f"{self.root}: {_listed(parts)}: parts of a split, not classes; {remedy}")

    def check_labels(self) -> None:
        """Refuse masks and the like beside the images they belong to."""
        for names in _names_by_level(self.folders):
            known = {name.casefold(): name for name in sorted(names)}
            images, labels = sorted(_IMAGES & known.keys()), sorted(_LABELS & known.keys())
            if images and labels:
                image, label = known[images[0]], known[labels[0]]
                remedy = f"{self._use(image)}, or " if self._holds_folders(image) else ""
                raise DataError(
                    f"{self.root}: {label} holds labels of the images in {image}, not images of "
                    f"the set; {remedy}move {label} away"
                )

    def check_distinct(self) -> None:
        """Refuse folders that hold others of the same names, as several sets or years do."""
        shared = self._shared()
        if shared is None:
            return
        first, second, name = shared
        beside = name.casefold() == first.casefold()
        where = f"beside {second} and in it" if beside else f"in {first} and in {second}"
        raise DataError(
            f"{self.root}: folders called {name} are {where}, so that not all of "
            f"{_listed(self.names)} are classes; {self._use(second if beside else first)}, or, if "
            "they are, name them in data.classes"
        )

    def _shared(self) -> tuple[str, str, str] | None:
        """Two class folders and a name that both have below them, or that the second has and the
        first is.

        Names without a letter (years, numbers), and levels of a single name, do not count.
        """
        by_level = _names_by_level(self.folders)
        levels = [level for level, names in enumerate(by_level) if level and len(names) > 1]
        owners = {name.casefold(): name for name in self.names}
        for folder in sorted(self.folders):
            for name in (folder[level] for level in levels if level < len(folder)):
                if any(map(str.isalpha, name)):
                    owner = owners.setdefault(name.casefold(), folder[0])
                    if owner != folder[0]:
                        return owner, folder[0], name
        return None

    def _holds_folders(self, name: str) -> bool:
        return any(len(folder) > 1 for folder in self.folders if folder[0] == name)

    def _use(self, name: str) -> str:
        """The remedy to use one folder instead of all."""
        if self.top is None:
            return f"give {name} only"
        inside = "/".join(filter(None, [self.top, name]))
        if self.root.is_dir():
            return f"give {name} only (data.root: {self.root / inside})"
        return f"unpack the zip and give {inside} only"


def _names_by_level(folders: Collection[Folder]) -> list[set[str]]:
    """The names of folders at each level of directories."""
    deepest = max(map(len, folders), default=0)
    return [{folder[i] for folder in folders if len(folder) > i} for i in range(deepest)]


def _listed(names: Iterable[str]) -> str:
    """Names for a message, at most five of them."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
