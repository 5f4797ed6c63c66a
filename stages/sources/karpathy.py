"""The split JSON of Karpathy and Fei-Fei for Flickr8K, Flickr30K and COCO (dataset_*.json), and its pictures."""

from pathlib import Path
from typing import Any, NamedTuple

from stages.contracts import read_json
from stages.errors import shown
from stages.params.dataset import SPLITS, DatasetParams, KarpathyParams
from stages.sources.base import (
    BadRecord,
    Source,
    SourceCaption,
    SourceImage,
    image_ids,
    join_path,
    normalise_split,
    require_field,
)
from stages.workspace import named_path


def _text(sentence: Any, where: str) -> str:
    """The sentence as written, or its tokens if the raw text is missing."""
    if not isinstance(sentence, dict) or "raw" in sentence or "tokens" not in sentence:
        return require_field(sentence, "raw", str, where)
    return " ".join(str(token) for token in require_field(sentence, "tokens", list, where))


class _Record(NamedTuple):
    where: str
    path: str
    split: str
    sentences: list[Any]


def _record(record: Any, where: str, options: KarpathyParams, seen: dict[int, str]) -> _Record | None:
    """Read one image's record; None if its split is skipped."""
    split = normalise_split(require_field(record, "split", str, where))
    if split not in (*SPLITS, "restval"):
        raise BadRecord(f"{where}.split", f"{shown(split)} is not one of {', '.join(SPLITS)}, restval")
    split = options.restval if split == "restval" else split
    if split == "skip":
        return None
    if "imgid" in record:
        imgid = require_field(record, "imgid", int, where)
        if imgid in seen:
            raise BadRecord(f"{where}.imgid", f"{imgid} is there twice, first at {seen[imgid]}")
        seen[imgid] = where.rpartition(" ")[2]
    folder = require_field(record, "filepath", str, where) if "filepath" in record else ""
    path = join_path(options.images, folder, require_field(record, "filename", str, where))
    return _Record(where, path, split, require_field(record, "sentences", list, where))


def read_source(params: DatasetParams, image_out: Path) -> Source:
    """Read the split JSON.

    A record that lacks a key, has a wrong split, or repeats an id or a picture is set aside.

    Raises:
        InputError: the file is missing or in another form.
    """
    options, root = params.karpathy, named_path(params.root)
    file = root / options.annotations
    content = read_json(file, "the file that dataset.karpathy.annotations names")
    source = Source(images=[], captions=[], folders={"dataset.karpathy.images": root / options.images})
    records: list[_Record] = []
    seen: dict[int, str] = {}
    skipped = 0
    for number, raw in enumerate(require_field(content, "images", list, str(file))):
        with source.reject_errors("image"):
            record = _record(raw, f"{file}: images[{number}]", options, seen)
            if record is None:
                skipped += 1
            else:
                records.append(record)
    if skipped:
        print(f"{file}: {skipped} images of the split restval are skipped (dataset.karpathy.restval)")
    first: dict[str, str] = {}
    for image_id, record in zip(image_ids([record.path for record in records]), records, strict=True):
        entry = record.where.rpartition(" ")[2]
        if first.setdefault(record.path, entry) != entry:
            # Its captions are dropped too: the first record may be of another split.
            reason = f"the picture {shown(record.path)} is there twice, first at {first[record.path]}"
            source.reject("image", record.where, reason)
            continue
        source.images.append(SourceImage(image_id, record.path, record.split, record.where, join_path(options.images)))
        for number, sentence in enumerate(record.sentences):
            where = f"{record.where}.sentences[{number}]"
            with source.reject_errors("caption"):
                source.captions.append(SourceCaption(image_id, _text(sentence, where), where, sentence.get("sentid")))
    return source
