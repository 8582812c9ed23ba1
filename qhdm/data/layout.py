"""The layout of a data set: which folders are classes, and which define a split.

Classes are found as torchvision's `ImageFolder` finds them, but for two kinds of folders:

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

#: Words in the names of folders that split a set: is what they hold kept out of training?
_HELD_OUT = {
    "train": False, "training": False, "val": True, "valid": True, "validation": True, "dev": True,
    "test": True, "testing": True, "eval": True, "evaluation": True, "holdout": True,
}  # fmt: skip

#: Names of folders that hold the images of a set, and those of what belongs to these.
_IMAGES = frozenset({"image", "images", "img", "imgs"})
_LABELS = frozenset({"label", "labels", "mask", "masks", "annotation", "annotations"})


@dataclass(frozen=True, order=True)
class Item:
    """One image of a set.

    Attributes:
        class_name: the name of its class folder.
        name: its path within the set, starting with the class: `Forest/Forest_1.jpg`.
        entry: its path below the root folder or in the zip, wrapping directories included.
        part: its folder in the split (`train`); empty if there is none.
    """

    class_name: str
    name: str
    entry: str
    part: str = ""

    @property
    def is_held_out(self) -> bool:
        """Whether its folder keeps it out of training."""
        return any(map(_held_out, self.part.split("/")))


def arrange(
    paths: Iterable[tuple[str, Sequence[str]]], *, classes: Collection[str] | None, root: Path
) -> tuple[tuple[Item, ...], int]:
    """The images of a set, sorted, and the number of images outside class folders.

    Leading directories shared by all images are stripped while a directory level remains; the class
    is the first component left, and deeper images belong to it.

    Args:
        paths: entry of each image, and the components of its path.
        classes: known classes, if any.
        root: the folder or zip, for messages.

    Raises:
        DataError: the class folders are not classes, or the split leaves images out.
    """
    paths = list(paths)
    folders = {tuple(components[:-1]) for _, components in paths}
    levels = _splitting_levels(folders)
    inner = {_without(folder, levels) for folder in folders}
    depth = _wrapper_depth(inner)
    items = []
    for entry, components in paths:
        folder, file = components[:-1], components[-1]
        rest = _without(folder, levels)[depth:]
        if rest:
            part = "/".join(folder[level] for level in levels if level < len(folder))
            name = "/".join(filter(None, [rest[0], part, *rest[1:], file]))
            items.append(Item(rest[0], name, entry, part))
    below = [folder for folder in inner if len(folder) > depth]
    top = "/".join(below[0][:depth]) if below and not levels else None
    found = _ClassFolders({folder[depth:] for folder in below}, root, top)
    found.check_parts()
    found.check_labels()
    if not classes or not {*classes} <= {*found.names}:
        found.check_distinct()
    return tuple(sorted(_with_split(items, root))), len(paths) - len(items)


def _with_split(items: list[Item], root: Path) -> list[Item]:
    """The images, none of them with a part unless all have one and there are held-out ones."""
    parts = sorted({item.part for item in items if item.part})
    if not any(item.is_held_out for item in items):  # those have no classes, and are not used
        return [replace(item, part="") for item in items]
    for item in items:
        if not item.part:
            raise DataError(
                f"{root}: {item.entry}: in none of the folders of the split, {_listed(parts)}; "
                "move it into one of them"
            )
    if all(item.is_held_out for item in items):
        raise DataError(
            f"{root}: only {_listed(parts)} has class folders; put the training images into class "
            "folders, too"
        )
    return items


def _splitting_levels(folders: Collection[tuple[str, ...]]) -> list[int]:
    """The directory levels whose names separate training from held-out images."""
    return [
        level
        for level, names in enumerate(_names_at_levels(folders))
        if {*map(_held_out, names)} == {True, False}
    ]


def _held_out(name: str) -> bool | None:
    """Whether a folder's name says that its images are held out; None if it says neither."""
    words = re.findall("[a-z]+", name.casefold())
    kinds = {_HELD_OUT[word] for word in words if word in _HELD_OUT}
    return kinds.pop() if len(kinds) == 1 else None


def _without(components: Sequence[str], levels: Sequence[int]) -> tuple[str, ...]:
    return tuple(name for level, name in enumerate(components) if level not in levels)


def _wrapper_depth(folders: Iterable[tuple[str, ...]]) -> int:
    """The number of leading directories that wrap the class folders.

    `folders` are the directories that contain images. A directory that contains images is a class,
    unless it has several subdirectories with images: then those are the classes.
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
    """The folders taken as classes, and checks that they are.

    Attributes:
        folders: those that hold images, without what wraps or splits the set.
        root: the folder or zip.
        top: the folder in `root` that contains them; None if there are several.
    """

    folders: Collection[tuple[str, ...]]
    root: Path
    top: str | None

    @property
    def names(self) -> list[str]:
        return sorted({folder[0] for folder in self.folders})

    def check_parts(self) -> None:
        """Refuse the parts of a split that is none as it is."""
        parts = {name: kind for name in self.names if (kind := _held_out(name)) is not None}
        others = [name for name in self.names if name not in parts]
        if not parts or (others and {*parts.values()} != {True, False}):
            return
        first = min(parts, key=lambda name: (parts[name], name))
        if self._holds_folders(first):
            remedy = f"move {_listed(others)} away" if others else "add a folder to train on"
            remedy += f", or {self._give(first)}"
        else:
            remedy = "put the images into class folders, or, if these are classes, rename them"
        raise DataError(f"{self.root}: {_listed(parts)}: parts of a split, not classes; {remedy}")

    def check_labels(self) -> None:
        """Refuse masks and the like beside the images they belong to."""
        for names in _names_at_levels(self.folders):
            lower = {name.casefold(): name for name in sorted(names)}
            images, labels = sorted(_IMAGES & lower.keys()), sorted(_LABELS & lower.keys())
            if images and labels:
                image, label = lower[images[0]], lower[labels[0]]
                remedy = f"{self._give(image)}, or " if self._holds_folders(image) else ""
                raise DataError(
                    f"{self.root}: the files in {label} belong to the images in {image} and are "
                    f"not images of the set; {remedy}move {label} away"
                )

    def check_distinct(self) -> None:
        """Refuse folders that hold others of the same names, as several sets or years do."""
        at_level = _names_at_levels(self.folders)
        varied = [level for level, names in enumerate(at_level) if level and len(names) > 1]
        shared = _shared(self.folders, varied)
        if shared is None:
            return
        first, second, name = shared
        beside = name.casefold() == first.casefold()
        where = f"beside {second} and in it" if beside else f"in {first} and in {second}"
        raise DataError(
            f"{self.root}: folders called {name} are {where}, so that not all of "
            f"{_listed(self.names)} are classes; {self._give(second if beside else first)}, or, if "
            "they are, name them in data.classes"
        )

    def _holds_folders(self, name: str) -> bool:
        return any(len(folder) > 1 for folder in self.folders if folder[0] == name)

    def _give(self, name: str) -> str:
        """The remedy: use one folder instead of all."""
        if self.top is None:
            return f"give {name} only"
        inside = "/".join(filter(None, [self.top, name]))
        if self.root.is_dir():
            return f"give {name} only (data.root: {self.root / inside})"
        return f"unpack the zip and give {inside} only"


def _shared(
    folders: Collection[tuple[str, ...]], levels: Sequence[int]
) -> tuple[str, str, str] | None:
    """Two class folders and a name that, at one of the levels, both have below them, or that the
    second has and the first is.

    Names without a letter (years, numbers) are no names of classes.
    """
    owners = {folder[0].casefold(): folder[0] for folder in folders}
    for folder in sorted(folders):
        for name in (folder[level] for level in levels if level < len(folder)):
            if any(map(str.isalpha, name)):
                owner = owners.setdefault(name.casefold(), folder[0])
                if owner != folder[0]:
                    return owner, folder[0], name
    return None


def _names_at_levels(folders: Collection[tuple[str, ...]]) -> list[set[str]]:
    """The names of folders at each level of directories."""
    deepest = max(map(len, folders), default=0)
    return [{folder[i] for folder in folders if len(folder) > i} for i in range(deepest)]


def _listed(names: Iterable[str]) -> str:
    """A short list of names for a message."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
