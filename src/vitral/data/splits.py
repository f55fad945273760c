"""From a name to labelled pictures: a folder, a tar archive, a manifest, or "digits".

```
photos/<class>/….jpg                      one set
photos/{train,val,test}/<class>/….jpg     splits
photos.tar, photos.tar.gz                 either of them, packed
photos.csv, photos.jsonl                  a manifest, with or without splits; also in a folder or an archive, if it is
                                          called manifest.csv or manifest.jsonl
digits                                    the handwritten digits that come with scikit-learn: train and test
```

`vitral.data.tree` and `vitral.data.manifest` say exactly how these are read.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from vitral.base.numbers import real_number, whole_number
from vitral.data.archive import Archive, is_archive, open_archive
from vitral.data.digits import digit_pictures
from vitral.data.manifest import CLASSES_FILE, MANIFEST_NAMES, MANIFEST_SUFFIXES, read_manifest
from vitral.data.pictures import Files, PictureSet
from vitral.data.tree import SPLITS, WHOLE, Listing, Tree, check_classes, chosen_split, class_folders, only_folders, walk
from vitral.errors import PictureError, UsageError

__all__ = ["Splits", "all_splits", "read_pictures", "read_splits"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """What a training learns from, and what it is judged by. All have the same classes, in the same order.

    Attributes:
        train: the pictures to learn from.
        held_out: the pictures to judge by during the training.
        test: pictures for the very end; None where there are none, and where they already serve as `held_out`.
    """

    train: PictureSet
    held_out: PictureSet | None
    test: PictureSet | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.train.classes


def all_splits(path: str | os.PathLike[str]) -> dict[str, PictureSet]:
    """Every split of a source by its name, "train", "val" or "test"; "all", where it has none.

    Args:
        path: a folder, a tar archive, a manifest; or the string "digits". (A folder of that name is "./digits".)

    Raises:
        UsageError: it is none of these, or cannot be understood; the message says where and why.
        MissingExtraError: "digits" without scikit-learn.
    """
    if isinstance(path, str) and path == "digits":
        train, test = digit_pictures()
        return {"train": train, "test": test}
    root = Path(os.path.expanduser(path))  # noqa: PTH111 - unlike pathlib's, it lets a stranger's home be
    shown = str(path)
    if not shown.strip():
        raise UsageError('An empty name came. Give a folder, a tar archive, a manifest, or "digits".')
    if root.is_dir():
        return _sets(root.resolve().name or shown, *_of_folder(root, shown))
    if not root.exists():
        raise UsageError(f"There is no file or folder {shown}.{_near(root)}")
    if not root.is_file():  # opening a pipe could wait for ever
        raise UsageError(f"{shown} is a pipe, a device or a socket, not a folder or a file of labelled pictures.")
    if root.name.lower().endswith(MANIFEST_SUFFIXES):
        return _sets(root.name, *_of_manifest(root, shown))
    try:
        packed = is_archive(root)
    except OSError as error:
        raise UsageError(f"{shown} cannot be read ({error.strerror or error}).") from error
    if not packed:
        raise UsageError(
            f"{shown} is neither a folder nor a tar archive (.tar, .tar.gz) nor a manifest ({', '.join(MANIFEST_SUFFIXES)})."
        )
    return _sets(root.name, *_of_archive(open_archive(root, shown)))


def read_pictures(path: str | os.PathLike[str], split: str | None = None) -> PictureSet:
    """One labelled set of pictures.

    Args:
        path: see `all_splits`.
        split: which, where the source has several: "train", "val" (or "valid", "validation") or "test".

    Raises:
        UsageError: see `all_splits`; or there are several splits and none was named, or not the one that was.
    """
    return chosen_split(all_splits(path), split, path)


def read_splits(
    path: str | os.PathLike[str], held_out: str | os.PathLike[str] | float | None = None, *, seed: int = 0
) -> Splits:
    """Pictures to train on, and to judge by.

    Args:
        path: see `all_splits`. Without splits, all of it is for training.
        held_out: None: the split val, else test, else none. A share in (0, 1): that much of the training pictures of each
            class, at least one of it and not all; a class of one picture keeps it. Or another source, of which val, else
            test, else all that has no splits is taken, in place of the first one's own.
        seed: another seed holds out other pictures. Which ones depends on it and on their names alone, not on the machine
            or on their order.

    Raises:
        UsageError: see `all_splits`; there is nothing to train on; a share that is none, or although there is a split val;
            the classes of the two sources differ.
    """
    found = all_splits(path)
    train = found.get("train", found.get(WHOLE))
    if train is None:
        raise UsageError(f"{path} has no split train, only {', '.join(found)}. Nothing is there to learn from.")
    val, test = found.get("val"), found.get("test")
    if held_out is None:
        return Splits(train=train, held_out=val, test=test) if val else Splits(train=train, held_out=test, test=None)
    if isinstance(held_out, str | os.PathLike):
        judge = _aligned(_to_judge_by(held_out), train, f"{path} and {held_out}")
        return Splits(train=train, held_out=judge, test=test)
    share = real_number("held_out", held_out)
    if not 0 < share < 1:
        raise UsageError(f"A share to hold out must lie between 0 and 1, both excluded; {held_out!r} came.")
    if val is not None:
        raise UsageError(f"{path} has a split val with {len(val):,} pictures to judge by. Leave held_out out to use it.")
    apart = _held_out(train, share, whole_number("seed", seed, least=0))
    return Splits(
        train=train.subset(np.flatnonzero(~apart)),
        held_out=train.subset(np.flatnonzero(apart), name=f"{train.name}, held out"),
        test=test,
    )


def _to_judge_by(path: str | os.PathLike[str]) -> PictureSet:
    """The part of a source that judges: val, else test, else all of one without splits."""
    found = all_splits(path)
    for name in ("val", "test", WHOLE):
        if name in found:
            return found[name]
    raise UsageError(f"{path} has only a split train, which nothing should be judged by. Name its folder if it should.")


def _aligned(pictures: PictureSet, train: PictureSet, shown: str) -> PictureSet:
    """A set with the classes of another in their order; that they have the same ones is checked."""
    check_classes({train.name: train.classes, pictures.name: pictures.classes}, shown)
    place = {name: number for number, name in enumerate(train.classes)}
    moved = np.array([place[name] for name in pictures.classes], dtype=np.int64)
    return replace(pictures, classes=train.classes, labels=moved[pictures.labels])


def _held_out(train: PictureSet, share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Which pictures are held out: of each class those whose names, hashed with the seed, come first."""
    digests = [hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest() for name in train.names]
    apart = np.zeros(len(train), dtype=bool)
    for label in range(len(train.classes)):
        ordered = sorted(np.flatnonzero(train.labels == label).tolist(), key=lambda index: (digests[index], index))
        least, most = min(1, len(ordered) - 1), len(ordered) - 1
        apart[ordered[: max(0, min(max(round(share * len(ordered)), least), most))]] = True
    return apart


# -- sources ----------------------------------------------------------------------------------------------------------


def _sets(name: str, listing: Listing, store: Files | Archive) -> dict[str, PictureSet]:
    """A set for each split; they share the store, which lists their pictures one split after the other."""
    sets: dict[str, PictureSet] = {}
    begin = 0
    for split, samples in listing.splits.items():
        sets[split] = PictureSet(
            name=name if split == WHOLE else f"{name}/{split}",
            classes=listing.classes,
            labels=np.array([label for _, label in samples], dtype=np.int64),
            places=np.arange(begin, begin + len(samples), dtype=np.int64),
            store=store,
        )
        begin += len(samples)
    return sets


def _names(listing: Listing) -> tuple[str, ...]:
    """All names of a listing, one split after the other."""
    return tuple(name for samples in listing.splits.values() for name, _ in samples)


def _of_folder(root: Path, shown: str) -> tuple[Listing, Files]:
    tree = walk(root)
    manifest = _manifest_in(tree, shown)
    if manifest is not None:
        return _of_manifest(root / manifest, str(Path(shown) / manifest))
    listing = class_folders(tree, shown)
    return listing, Files(root, _names(listing))


def _of_manifest(path: Path, shown: str) -> tuple[Listing, Files]:
    classes = path.with_name(CLASSES_FILE)
    try:
        listing = read_manifest(path.read_bytes(), shown, classes.read_bytes() if classes.is_file() else None)
    except OSError as error:
        raise UsageError(f"{error.filename or shown} cannot be read ({error.strerror or error}).") from error
    return listing, Files(path.parent, _names(listing))


def _of_archive(archive: Archive) -> tuple[Listing, Archive]:
    top = _top(archive.tree)
    manifest = _manifest_in(archive.tree, archive.shown, top)
    if manifest is None:
        listing = class_folders(archive.tree, archive.shown, top)
    else:
        wanted = [name for name in (manifest, f"{top}{CLASSES_FILE}") if name in archive.tree.files]
        content = archive.select(wanted)
        try:
            listing = read_manifest(content.source(0), content.where(0), content.source(1) if len(wanted) > 1 else None)
        except PictureError as error:
            raise UsageError(str(error)) from error
        moved = {split: [(top + name, label) for name, label in samples] for split, samples in listing.splits.items()}
        listing = Listing(listing.classes, moved)
    return listing, archive.select(_names(listing))


def _top(tree: Tree) -> str:
    """The folder that a data set lies in: tar makes an archive of a folder with that folder in it. It ends with a slash.

    It is gone into as long as it is the only one, and holds a manifest, or folders and no pictures.
    """
    top = ""
    while not any(f"{top}{name}" in tree.files for name in MANIFEST_NAMES):
        below = [name[len(top) :].split("/") for name in (*tree.files, *tree.folders) if name.startswith(top)]
        folders = {parts[0] for parts in below if len(parts) > 1} | {
            name[len(top) :] for name in tree.folders if name.startswith(top) and "/" not in name[len(top) :]
        }
        if len(folders) != 1 or folders & SPLITS.keys():
            break
        deeper = f"{top}{folders.pop()}/"
        if not any(f"{deeper}{name}" in tree.files for name in MANIFEST_NAMES) and not only_folders(tree, deeper):
            break
        top = deeper
    return top


def _manifest_in(tree: Tree, shown: str, top: str = "") -> str | None:
    """The manifest in a folder, if there is one."""
    found = [f"{top}{name}" for name in MANIFEST_NAMES if f"{top}{name}" in tree.files]
    if len(found) > 1:
        raise UsageError(f"{shown} holds {' and '.join(found)}. Name the one that is meant, or remove the other.")
    return found[0] if found else None


def _near(path: Path) -> str:
    """What a name that leads nowhere may have meant."""
    try:
        # Names are all that is wanted; a link that leads nowhere is no help.
        names = [name for name in os.listdir(path.parent) if name != path.name]  # noqa: PTH208
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, [*names, "digits"], n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
