"""Finds a source's picture files and reads their headers; nothing is decoded."""

import configparser
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from camp_model.files import is_unicode
from stages.content.hashes import file_hashes
from stages.errors import printable, shown
from stages.sources.base import BadRecord, Source, SourceImage
from stages.sources.formats import FORMATS
from stages.sources.frames import Frame, frame_of

_THREADS = 8
UNKNOWN = Frame(0, 0, 1)


class PictureFacts(NamedTuple):
    """The frame in a file's header, and the file's hash; 0 x 0 and an empty hash if they cannot be read."""

    frame: Frame
    sha256: str
    problem: str = ""
    """Why the size cannot be read."""


class MissingFile(BadRecord):
    """There is no file of that name."""


class ImageRoot:
    """The folder that all paths of a source start from and may not leave.

    Args:
        root: may itself be a link, and so may a folder below it that the params name.
        linked: other folders that links below the root may lead to, besides the DVC cache of the root's repository.
    """

    def __init__(self, root: Path, linked: Sequence[Path]) -> None:
        self.root = root
        self.allowed = [folder.resolve() for folder in (*linked, *_dvc_caches(root))]
        self._resolved = cache(lambda folder: (root / folder).resolve())
        self._names = cache(_names_in)

    def file_of(self, image: SourceImage) -> Path:
        """Return the file of an image, spelled as on disk; it is checked to be below the folder that the params name.

        Raises:
            BadRecord: the path is absolute, leaves the folder by `..` or through a link, or names no file.
        """
        pure = PurePosixPath(image.path)
        if "\0" in image.path or not is_unicode(image.path):
            raise BadRecord(image.where, f"{shown(image.path)} is not a path")
        leaves = f"path {shown(image.path)} leaves the image root {self.root}"
        if pure.is_absolute() and pure.is_relative_to(self.root.absolute()):
            raise BadRecord(image.where, f"path {shown(image.path)} is absolute; expected it as below {self.root}")
        if pure.is_absolute() or ".." in pure.parts:
            raise BadRecord(image.where, leaves)
        file = self.root / pure
        if not _is_file(file):
            file = self._as_on_disk(pure) or file
        link = self._link_of(file)
        if link and not self._is_allowed(file, image.folder):
            raise BadRecord(
                image.where,
                f"{leaves}: {link} is a link to {link.readlink()}; dataset.linked_folders names folders that links may "
                "lead to",
            )
        if not _is_file(file):
            gone = f": {link} is a link to {link.readlink()}, where nothing is" if link else ""
            other = self._as_on_disk(pure, any_case=True)
            there = f"; {_short(other.relative_to(self.root))} is there, in other case" if other else ""
            raise MissingFile(image.where, f"no image file {_short(file)}{gone}{there}")
        return file

    def _link_of(self, file: Path) -> Path | None:
        """The last link on the path from the root to a file."""
        way = file.parents[: len(file.relative_to(self.root).parts) - 1]
        try:
            return next((path for path in (file, *way) if path.is_symlink()), None)
        except OSError:  # a name that is too long for the file system
            return None

    def _is_allowed(self, file: Path, folder: str) -> bool:
        try:
            target = file.resolve()
        except (OSError, RuntimeError):  # a link that leads to itself
            return False
        return any(target.is_relative_to(allowed) for allowed in (self._resolved(folder), *self.allowed))

    def _as_on_disk(self, path: PurePosixPath, any_case: bool = False) -> Path | None:
        """The file whose name differs only in how accents are composed, or in case if `any_case`; None without one."""
        file = self.root
        for part in path.parts:
            name = self._names(file, any_case).get(_spelled(part, any_case))
            if name is None:
                return None
            file /= name
        return file if _is_file(file) else None


def _short(file: Path) -> str:
    text = printable(str(file)[:300])
    return text if len(str(file)) < 300 else f"{text}..."


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long for the file system
        return False


def _spelled(name: str, any_case: bool) -> str:
    """A name with its accents composed (NFC), and case-folded if `any_case`."""
    return unicodedata.normalize("NFC", name.casefold() if any_case else name)


def _names_in(folder: Path, any_case: bool) -> dict[str, str]:
    """The names in a folder: name as of `_spelled` -> name on disk."""
    try:
        return {_spelled(path.name, any_case): path.name for path in folder.iterdir()}
    except OSError:
        return {}


def _dvc_caches(root: Path) -> list[Path]:
    """The cache of the DVC repository that `root` is in: with `cache.type symlink`, its files are links to the cache.

    Allowing this is safe: a file is in the cache only if it was added to DVC, under a name that is its hash.
    """
    for folder in (root.absolute(), *root.absolute().parents):
        if (folder / ".dvc").is_dir():
            config = configparser.ConfigParser(interpolation=None)
            try:
                config.read([folder / ".dvc" / name for name in ("config", "config.local")], encoding="utf-8")
                cache_folder = config.get("cache", "dir", fallback="cache").strip("\"' ")
            except (configparser.Error, UnicodeDecodeError):
                cache_folder = "cache"
            return [folder / ".dvc" / cache_folder]
    return []


def _measure(file: Path, sha256: str | OSError) -> PictureFacts:
    if isinstance(sha256, OSError):
        return PictureFacts(UNKNOWN, "", f"cannot be read ({sha256.strerror})")
    try:
        with Image.open(file, formats=FORMATS) as picture:
            frame = frame_of(picture)
    except UnidentifiedImageError:
        return PictureFacts(UNKNOWN, sha256, f"its size cannot be read: is none of {', '.join(FORMATS)}")
    except Exception as error:  # a broken header can raise almost anything from the decoders
        return PictureFacts(UNKNOWN, sha256, f"its size cannot be read ({type(error).__name__})")
    if max(frame.width, frame.height) >= 2**31:
        return PictureFacts(UNKNOWN, sha256, "claims a side of more than 2^31 pixels")
    return PictureFacts(frame, sha256)


def measure_all(files: list[Path], hashes: Path | None = None) -> list[PictureFacts]:
    """Read each file's header, and compute its SHA-256; no picture is decoded.

    Args:
        hashes: the cache of hashes (`stages.content.hashes`).
    """
    progress = tqdm(file_hashes(files, hashes), total=len(files), desc="hash images")
    digests = list(progress)
    # Only headers are read, so a picture that claims a vast size does no harm here and must not raise an error.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(_measure, files, digests))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def find_pictures(source: Source, root: ImageRoot, needed: bool) -> dict[str, Path]:
    """Find the file of every image, by id, and change the paths in `source.images` to those on disk.

    An image without a file is set aside, or kept if files are not `needed`.
    """
    files: dict[str, Path] = {}
    images: list[SourceImage] = []
    for image in source.images:
        try:
            file = root.file_of(image)
        except BadRecord as error:
            if needed or not isinstance(error, MissingFile):
                source.reject("image", error.where, error.reason)
                continue
            images.append(image)
        else:
            files[image.image_id] = file
            images.append(image._replace(path=file.relative_to(root.root).as_posix()))
    source.images = images
    return files


def read_headers(source: Source, files: dict[str, Path], hashes: Path | None) -> None:
    """Add frame and hash to `source.images`. An image whose size cannot be read stays: extract_regions says why."""
    known = [image.image_id for image in source.images if image.image_id in files]
    measured = dict(zip(known, measure_all([files[image_id] for image_id in known], hashes), strict=True))
    images = []
    for image in source.images:
        if (header := measured.get(image.image_id)) is None:
            images.append(image)
            continue
        if header.problem:
            file = _short(files[image.image_id])
            source.reject("size", image.where, f"{file}: {header.problem}; listed with 0 x 0")
        images.append(image._replace(frame=header.frame, sha256=header.sha256))
    source.images = images
