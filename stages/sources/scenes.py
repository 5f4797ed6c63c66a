"""The embedded dataset: scenes rendered from a seed, with captions, boxes and the ground truth for both."""

import dataclasses
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from stages import usable_cores
from stages.entry import end_with_parent
from stages.params.dataset import SPLITS, DatasetParams, ScenesParams
from stages.sources.base import Source, SourceBox, SourceCaption, SourceImage
from stages.sources.scene_captions import ClaimIndex, SceneCaption, captions_of_scene
from stages.sources.scene_drawing import Geometry, draw_family
from stages.sources.scene_graph import Scene, plan_split

_OBJECT = pa.struct([(name, pa.string()) for name in ("shape", "colour", "texture", "size")])
_MENTION = pa.struct(
    [
        ("objects", pa.list_(pa.int32())),
        *((name, pa.string()) for name in ("shape", "colour", "texture", "size")),
        ("count", pa.int32()),
    ]
)
_RELATION = pa.struct([("subject", pa.int32()), ("relation", pa.string()), ("object", pa.int32())])
GROUND_TRUTH = pa.schema(
    [
        ("image_id", pa.string()),
        ("split", pa.string()),
        ("twin_of", pa.string()),  # null if the scene has no near twin
        ("family", pa.string()),  # the same for all near twins of one another
        ("change", pa.string()),  # what was changed in twin_of; null if nothing was
        ("objects", pa.list_(_OBJECT)),
        ("centres", pa.list_(pa.list_(pa.int32(), 2))),  # x, y in pixels, in the order of objects
        ("visible", pa.list_(pa.float32())),  # share of each object that is not covered
        (
            "captions",  # in the order of captions.parquet; mentions and relations use canonical words
            pa.list_(
                pa.struct([("text", pa.string()), ("mentions", pa.list_(_MENTION)), ("relations", pa.list_(_RELATION))])
            ),
        ),
    ]
)


def plan(params: ScenesParams) -> list[Scene]:
    """Plan all scenes, split by split."""
    return [
        scene
        for number, split in enumerate(SPLITS)
        for scene in plan_split(split, (params.seed, number), getattr(params, split), params.twin_share)
    ]


def draw(scenes: list[Scene], side: int, folder: Path, workers: int | None = None) -> dict[str, Geometry]:
    """Render every scene into `folder`; pictures do not depend on `workers`, the number of processes."""
    families: defaultdict[str, list[Scene]] = defaultdict(list)
    for scene in scenes:
        families[scene.family].append(scene)
    jobs = [sorted(family, key=lambda scene: scene.image_id != scene.family) for family in families.values()]
    job = partial(draw_family, side=side, folder=folder)
    geometries: dict[str, Geometry] = {}
    with ProcessPoolExecutor(workers or usable_cores(), initializer=end_with_parent) as pool:
        done = pool.map(job, jobs, chunksize=8)
        with tqdm(total=len(scenes), desc="render scenes") as bar:
            for family, drawn in zip(jobs, done, strict=True):
                geometries |= {scene.image_id: geometry for scene, geometry in zip(family, drawn, strict=True)}
                bar.update(len(family))
    return geometries


def caption_scenes(scenes: list[Scene], geometries: dict[str, Geometry], side: int) -> dict[str, list[SceneCaption]]:
    """Write the captions of every scene; those of near twins must not be true of the rest of their family."""
    captions = {}
    for split in SPLITS:
        members = [scene for scene in scenes if scene.image_id.startswith(f"{split}-")]
        index = ClaimIndex(members)
        families: defaultdict[str, int] = defaultdict(int)
        for bit, scene in enumerate(members):
            families[scene.family] |= 1 << bit
        for bit, scene in enumerate(members):
            others = families[scene.family] & ~(1 << bit)
            captions[scene.image_id] = captions_of_scene(scene, geometries[scene.image_id], index, others, side)
    return captions


def ground_truth(
    scenes: list[Scene], geometries: dict[str, Geometry], captions: dict[str, list[SceneCaption]]
) -> pa.Table:
    """One row per scene: its objects, their places, the scene that it is a near twin of, and what each caption
    claims."""
    rows = []
    for scene in scenes:
        geometry = geometries[scene.image_id]
        rows.append(
            {
                "image_id": scene.image_id,
                "split": scene.image_id.partition("-")[0],
                "twin_of": scene.twin_of or None,
                "family": scene.family,
                "change": scene.change or None,
                "objects": [dataclasses.asdict(item) for item in scene.objects],
                "centres": geometry.centres,
                "visible": geometry.visible,
                "captions": [
                    {
                        "text": caption.text,
                        "mentions": [dataclasses.asdict(mention) for mention in caption.mentions],
                        "relations": [
                            dict(zip(("subject", "relation", "object"), relation, strict=True))
                            for relation in caption.relations
                        ],
                    }
                    for caption in captions[scene.image_id]
                ],
            }
        )
    return pa.Table.from_pylist(rows, schema=GROUND_TRUTH)


def read_source(params: DatasetParams, image_out: Path) -> Source:
    """Render the scenes into `image_out`, and write their captions."""
    scenes, side = plan(params.scenes), params.scenes.image_size
    image_out.mkdir(parents=True, exist_ok=True)
    geometries = draw(scenes, side, image_out)
    captions = caption_scenes(scenes, geometries, side)
    source = Source(images=[], captions=[])
    for scene in scenes:
        image_id, split = scene.image_id, scene.image_id.partition("-")[0]
        source.images.append(SourceImage(image_id, f"{image_id}.jpg", split, f"scene {image_id}"))
        source.captions += [
            SourceCaption(image_id, caption.text, f"scene {image_id}") for caption in captions[image_id]
        ]
        for item, box in zip(scene.objects, geometries[image_id].boxes, strict=True):
            source.boxes.append(SourceBox(image_id, box, item.shape, (item.colour, item.texture, item.size)))
    source.ground_truth["scenes"] = ground_truth(scenes, geometries, captions)
    return source
