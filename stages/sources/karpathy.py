"""The split JSON of Karpathy and Fei-Fei for Flickr8K, Flickr30K and COCO (dataset_*.json), and its pictures."""

from pathlib import Path

from stages.contracts import read_json
from stages.errors import InputError
from stages.params.dataset import SPLITS, DatasetParams
from stages.sources.base import (
    Source,
    SourceCaption,
    SourceImage,
    check_folder,
    image_ids,
    join,
    take,
)
from stages.workspace import named_path


def _text(sentence: dict[str, object], where: str) -> str:
    """The sentence as written, or its tokens where it is not there."""
    if "raw" in sentence or "tokens" not in sentence:
        return take(sentence, "raw", str, where)
    return " ".join(str(token) for token in take(sentence, "tokens", list, where))


def read_source(params: DatasetParams, image_out: Path) -> Source:
    """Read the split JSON.

    Raises:
        InputError: the file or the folder is missing, or a record lacks a key, names a wrong split or comes twice.
    """
    options, root = params.karpathy, named_path(params.root)
    file = root / options.annotations
    records = take(read_json(file, "the file that dataset.karpathy.annotations names"), "images", list, str(file))
    check_folder(root / options.images, "dataset.karpathy.images")
    kept: list[tuple[str, str, str, list[str]]] = []
    seen: dict[int, int] = {}
    for number, record in enumerate(records):
        where = f"{file}: images[{number}]"
        split = take(record, "split", str, where)
        if split not in (*SPLITS, "restval"):
            raise InputError(f"{where}.split: {split!r} is not one of {', '.join(SPLITS)}, restval")
        split = options.restval if split == "restval" else split
        if split == "skip":
            continue
        if "imgid" in record:
            imgid = take(record, "imgid", int, where)
            if imgid in seen:
                raise InputError(f"{where}.imgid: {imgid} is there twice, first at images[{seen[imgid]}]")
            seen[imgid] = number
        folder = take(record, "filepath", str, where) if "filepath" in record else ""
        path = join(options.images, folder, take(record, "filename", str, where))
        sentences = take(record, "sentences", list, where)
        texts = [_text(sentence, f"{where}.sentences[{i}]") for i, sentence in enumerate(sentences)]
        kept.append((path, split, where, texts))
    source = Source(images=[], captions=[])
    for image_id, (path, split, where, texts) in zip(image_ids([path for path, *_ in kept]), kept, strict=True):
        source.images.append(SourceImage(image_id, path, split, where))
        source.captions += [SourceCaption(image_id, text, f"{where}.sentences[{i}]") for i, text in enumerate(texts)]
    return source
