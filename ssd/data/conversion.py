"""Writing a data set of any format in another one.

The pictures are neither decoded nor changed. Sizes and boxes are those of the upright pictures, see `ssd.data`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from ssd.data import BoxDataset, open_dataset
from ssd.data.archives import folders_of
from ssd.data.folder import Folder, Root
from ssd.data.writers import WRITERS, Annotated, Writer, Written, check_name
from ssd.options import ReadOptions
from ssd.runtime.faults import first_of
from ssd.runtime.files import Names, check_new, new_folder


def convert_dataset(
    roots: Sequence[Root],
    out: Path,
    format: str,
    splits: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    *,
    link: bool = False,
    options: ReadOptions = ReadOptions(),
) -> list[str]:
    """Writes a data set in another format, with the same splits.

    Args:
        roots, classes: see `BoxDataset`.
        out: the folder to write, which must not exist. After an error there is none.
        format: a key of `WRITERS`.
        splits: those to write; empty: all.
        link: whether pictures become symbolic links; else they are hard links where the file system allows it, and
            otherwise copies.
        options: how the data set is read.

    Returns:
        Lines for the user: what was written, then what was left out.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError, ImageReadError, ValueError: see `BoxDataset`; or a name cannot be written.
    """
    folders = folders_of(roots)
    for folder in folders:
        if folder.holds(out):
            raise ValueError(f"{out}: is inside of {folder.root}, where it would be read too; choose another place")
    check_new(out)
    dataset = open_dataset(folders, None, classes, options=options)
    parts = _parts(dataset, folders, splits)
    joined: dict[str, list[str]] = {}
    if WRITERS[format].COPIES:
        parts, joined = _without_joined(parts)
    pictures = _first_of_each(dataset)
    chosen = [index for index, path in pictures.items() if not parts or any(path in part for part in parts.values())]
    with new_folder(out) as temporary:
        writer = WRITERS[format](temporary, dataset.classes, list(parts))
        for picture in _written(dataset, chosen, parts, writer):
            writer.place(picture, dataset.pictures[picture.number - 1], link)
            writer.add(picture)
        writer.finish()
    counts = "".join(f", {split} {len(its)}" for split, its in parts.items())
    left_out = {
        "pictures are described more than once; the first description is written": len(dataset) - len(pictures),
        "pictures are in no split to write, and left out": len(pictures) - len(chosen),
        **writer.notes,
    }
    notes = [f"{split} is not written, since its pictures are in {' and '.join(its)}" for split, its in joined.items()]
    notes += [f"{number} {note}" for note, number in left_out.items() if number]
    return [f"wrote {out}: {len(chosen)} pictures{counts}", *notes, *dataset.notes, *first_of(dataset.dropped)]


def _first_of_each(dataset: BoxDataset) -> dict[int, str]:
    """The path of each picture by its first index: files of splits that overlap describe pictures twice."""
    first: dict[str, int] = {}
    for index, path in enumerate(dataset.pictures):
        first.setdefault(str(path), index)
    return {index: path for path, index in first.items()}


def _parts(dataset: BoxDataset, folders: Sequence[Folder], wanted: Sequence[str]) -> dict[str, set[str]]:
    """The pictures of each split; the smallest first. Pascal VOC's lists for single classes are left out."""
    known = sorted({split for folder in folders for split in type(dataset).splits(folder)})
    splits = wanted or [name for name in known if not any(name.endswith(f"_{other}") for other in known)]
    for split in splits:
        if not split.isprintable() or "/" in split or "\\" in split:
            raise ValueError(f"the split {split!r} cannot be the name of a file; choose others with --split")
    opened = {
        split: open_dataset(folders, split, dataset.classes, options=dataset.options) for split in dict.fromkeys(splits)
    }
    return {split: set(map(str, its.pictures)) for split, its in sorted(opened.items(), key=lambda item: len(item[1]))}


def _without_joined(parts: dict[str, set[str]]) -> tuple[dict[str, set[str]], dict[str, list[str]]]:
    """Leaves out the splits that other splits make up, as train and val make up trainval; says for each which ones."""
    left, joined = dict(parts), {}
    for split, pictures in reversed(parts.items()):
        inside = [name for name, its in left.items() if name != split and its <= pictures]
        if pictures and set().union(*(left[name] for name in inside)) == pictures:
            joined[split] = inside
            del left[split]
    return left, joined


def _written(
    dataset: BoxDataset, chosen: Sequence[int], parts: dict[str, set[str]], writer: Writer
) -> Iterator[Written]:
    """What a writer has to write of the chosen pictures of a data set."""
    taken: dict[str, Names] = defaultdict(Names)
    sizes = dataset.sizes.tolist()
    for index in chosen:
        path = dataset.pictures[index]
        splits = [split for split, pictures in parts.items() if str(path) in pictures]
        home = splits[0] if splits and writer.IN_PARTS else ""
        check_name(path)
        name = writer.name(path, taken[home])
        columns = dataset.annotated[index]
        rows = zip(*(columns[key].numpy() for key in ("labels", "boxes", "difficult", "crowd", "areas")), strict=True)
        objects = [
            Annotated(int(label), tuple(Decimal(str(edge)) for edge in box), bool(difficult), bool(crowd), float(area))
            for label, box, difficult, crowd, area in rows
        ]
        width, height = sizes[index]
        yield Written(index + 1, home, name, splits, (width, height), objects)
