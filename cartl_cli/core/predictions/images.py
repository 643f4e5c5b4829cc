"""The images that a user names: files, folders, zips, or names on standard input."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cartl_cli.core.config import ImportConfig
from cartl_cli.core.data.layout import READ, UNREAD, class_name, ending, split_named
from cartl_cli.core.data.listings import is_hidden, listed, read_image
from cartl_cli.core.errors import CartlError, DataError, UsageError
from cartl_cli.core.runs.manifest import Run

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Found:
    """An image by the name that is shown; ``read`` gives its bytes and raises CartlError.

    ``folders``: the names of those that it lies in, as names of classes, the innermost first, up to
    the one that was named.
    """

    name: str
    read: Callable[[], bytes]
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bad:
    """A file without an answer, and why."""

    name: str
    reason: str


def training_images(run: Run) -> Callable[[str], bool]:
    """Whether an image of that name lies where a run found its training images.

    That is its folder or zip, but for a split in there that is not to train on.
    """
    if isinstance(run.making, ImportConfig):
        return lambda name: False
    place = Path(os.path.expanduser(run.making.dataset)).resolve()

    def trained_on(name: str) -> bool:
        path = Path(os.path.expanduser(name)).resolve()
        if not path.is_relative_to(place):
            return False
        return all(split_named(part) in (None, "train") for part in path.relative_to(place).parts)

    return trained_on


@contextmanager
def named_images(
    paths: Iterable[str], lines: Iterable[str]
) -> Iterator[tuple[int | None, Iterator[Found | Bad]]]:
    """All images in the order given, and how many there are, which standard input does not tell.

    Its ``lines`` are paths as well, read when their turn comes; those without images are bad. Zips
    stay open. Raises UsageError for another path that is not there, DataError for one without
    images.
    """
    with ExitStack() as held:
        groups = [None if path == STDIN else _images(path, held) for path in paths]
        known = [len(group) for group in groups if group is not None]

        def images() -> Iterator[Found | Bad]:
            for group in groups:
                yield from _of_lines(lines, held) if group is None else group

        yield (sum(known) if len(known) == len(groups) else None), images()


def _of_lines(lines: Iterable[str], held: ExitStack) -> Iterator[Found | Bad]:
    for line in lines:
        if path := line.rstrip("\r\n"):
            try:
                found = _images(path, held)
            except CartlError as error:
                yield Bad(path, str(error))
            else:
                yield from found


def _images(path: str, held: ExitStack) -> list[Found]:
    """The images of one path; an archive stays open as long as it is ``held``.

    Files of a folder are known by their endings; a file that is named is taken whatever its name.
    """
    place = Path(os.path.expanduser(path))
    if not os.path.lexists(place):
        raise UsageError(f"no such file or folder: {path!r}")
    if not (place.is_dir() or ending(place.name) == ".zip"):
        folder = class_name(Path(os.path.abspath(place)).parent.name)
        return [Found(path, partial(read_image, place.resolve(), path), (folder,))]
    listing = held.enter_context(listed(place))
    outermost = Path(os.path.abspath(place)).name
    found = [
        Found(
            os.path.join(path, *parts),
            partial(listing.read, parts),
            tuple(class_name(name) for name in (*reversed(parts[:-1]), outermost)),
        )
        for parts, _ in listing.entries
        if ending(parts[-1]) in READ | UNREAD and not is_hidden(parts)
    ]
    if not found:
        raise DataError(f"no images in {path!r}")
    return found
