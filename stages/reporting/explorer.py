"""The data of the page's interactive part: queries, their results, and how the model scored each pair."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from stages.errors import InputError
from stages.pair_view.details import region_labels
from stages.params.report import ReportParams
from stages.reporting.foils import foil_entry, shown_foils
from stages.reporting.pictures import ReportedPicture, show_pictures
from stages.reporting.queries import DIRECTIONS, Inspector, Pair, Query, choose_queries


def explorer_data(
    table: pa.Table,
    foils: Sequence[dict[str, Any]],
    inspector: Inspector,
    params: ReportParams,
    *,
    pictures: Mapping[str, ReportedPicture],
    limit: int,
    max_pixels: int,
) -> dict[str, Any]:
    """Return everything that page.js reads.

    Args:
        table: the rows of an evaluation.
        foils: the rows of its foils.
        inspector: explains pairs.
        params: how many queries and results to show.
        pictures: the file of each image.
        limit: most characters that the data may take as JSON.
        max_pixels: regions.max_pixels.

    Returns:
        images: {id: uri, alt, w, h (pixels of the original), boxes (XYXY in those), labels}; queries: {direction:
            list}; foils: a list of the same form; gates, attention and pooling weights in thousandths.

    Raises:
        InputError: a query or picture is missing, or the data would exceed `limit`.
    """
    queries: dict[str, list[dict[str, Any]]] = {}
    for direction, chosen in choose_queries(table, params).items():
        queries[direction] = [
            _query(f"{direction}-{number}", query, inspector.pairs(query, params.top_k), inspector)
            for number, query in enumerate(chosen)
        ]
    entries = [foil_entry(f"foils-{i}", row, inspector) for i, row in enumerate(shown_foils(foils, params))]
    listed = [*(query for direction in DIRECTIONS for query in queries[direction]), *entries]
    used = sorted({pair["image"] for query in listed for pair in query["results"]})
    missing = [image_id for image_id in used if image_id not in pictures]
    if missing:
        raise InputError(
            f"data/dataset/images.parquet: image_id: {missing[0]!r} is missing; expected every image that ranks first"
        )
    images = {image_id: _image(image_id, inspector) for image_id in used}
    data = {"images": images, "queries": queries, "foils": entries}
    budget = limit - len(json.dumps(data))
    sizes = {image_id: _size(image) for image_id, image in images.items()}
    shown = show_pictures(
        {image_id: pictures[image_id] for image_id in used}, budget, sizes=sizes, max_pixels=max_pixels
    )  # fmt: skip
    for image_id, picture in shown.items():
        image = images[image_id]
        image["uri"] = picture.uri
        if not (image["w"] and image["h"]):  # regions without the size of their image
            image["w"], image["h"] = picture.size
    if grey := [image_id for image_id, picture in shown.items() if picture.problem]:
        first = f"{pictures[grey[0]].path}: {shown[grey[0]].problem}"
        print(f"{len(grey)} of {len(shown)} pictures are shown grey: {first}")
    return data


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height, or the extent of the boxes if the size is unknown."""
    if image["w"] and image["h"]:
        return image["w"], image["h"]
    return max((box[2] for box in image["boxes"]), default=1), max((box[3] for box in image["boxes"]), default=1)


def _query(key: str, query: Query, pairs: Sequence[Pair], inspector: Inspector) -> dict[str, Any]:
    texts = inspector.captions.texts
    if query.direction == "i2t":
        text = None
        sought = [texts[row] for row in inspector.captions_of[query.query_id]]
    else:
        text = texts[inspector.row_of[query.query_id]]
        sought = [text]
    return {
        "key": key,
        "id": query.query_id,
        "image": query.query_id if query.direction == "i2t" else None,
        "text": text,
        "search": " ".join([query.query_id, *sought]).lower(),
        "rank": query.rank,
        "worst": query.is_worst,
        "results": [
            {
                "image": pair.image_id,
                "text": texts[pair.caption_row],
                "at": pair.rank,
                "right": pair.is_right,
                "beyond": pair.is_extra,
                "score": round(pair.score, 3),
                **{name: value for name, value in pair.details.items() if name != "logit"},
            }
            for pair in pairs
        ],
    }


def _image(image_id: str, inspector: Inspector) -> dict[str, Any]:
    row = inspector.store.row_of(image_id)
    width, height = inspector.store.size(row)
    return {
        "alt": f"image {image_id}: {inspector.captions.texts[inspector.captions_of[image_id][0]]}",
        "w": width,
        "h": height,
        "boxes": inspector.store.boxes(row).round().astype(int).tolist(),
        "labels": region_labels(inspector.store, row),
    }
