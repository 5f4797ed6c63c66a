"""The plan: which images go into which shard."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import InputError
from stages.extraction.plan import ExtractSections, boundaries, plan_shards
from stages.params.dataset import DatasetParams


def test_added_images_touch_few_shards() -> None:
    ids = [f"{i:06d}" for i in range(10_000)]
    size = 128

    def runs(names: list[str]) -> set[tuple[str, ...]]:
        return {tuple(names[start:stop]) for start, stop in boundaries(names, size)}

    base = runs(ids)
    lengths = [len(run) for run in base]
    assert max(lengths) <= size and sum(length > size // 3 for length in lengths) > 0.9 * len(lengths)
    added = [f"new{i:03d}" for i in range(100)]
    for position in (0, 3_333, 10_000):
        changed = runs(ids[:position] + added + ids[position:]) - base
        assert len(changed) <= 5, "the added images are most of a shard; its neighbours may be cut elsewhere"
    taken = runs(ids[:5_000] + ids[5_100:]) - base
    assert len(taken) <= 4
    assert [name for start, stop in boundaries(ids, size) for name in ids[start:stop]] == ids


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_small_lists_are_cut_whole(count: int, size: int) -> None:
    runs = boundaries([str(i) for i in range(count)], size)
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(count))
    assert all(0 < stop - start <= size for start, stop in runs)


def test_a_shard_may_be_larger_than_any_memory() -> None:
    assert boundaries(list("01234"), 10**12) == boundaries(list("01234"), 11) == [(0, 2), (2, 5)]


@pytest.mark.parametrize(
    "changes", [{"batch_size": 1}, {"max_rejected_share": 0.1}, {"device": "cpu"}, {"grids": (1, 2)}]
)
def test_how_fast_and_where_changes_no_key(workplace, changes: dict[str, object]) -> None:
    assert keys(workplace, workplace.changed(**changes)) == keys(workplace, workplace.params)


@pytest.mark.parametrize(
    "changes", [{"per_image": 5}, {"min_per_image": 3}, {"min_score": 0.1}, {"dtype": "float32"}, {"geometry": True}]
)
def test_what_is_known_of_a_picture_changes_every_key(workplace, changes: dict[str, object]) -> None:
    assert not {*keys(workplace, workplace.changed(**changes))} & {*keys(workplace, workplace.params)}


def test_grids_change_the_keys_of_cells(workplace) -> None:
    few, more = (workplace.changed(boxes="grid", grids=grids, per_image=9) for grids in ((2,), (1, 2)))
    assert not {*keys(workplace, few)} & {*keys(workplace, more)}


def test_another_id_of_the_same_picture_changes_the_key_of_its_shard_alone(workplace) -> None:
    before = keys(workplace, workplace.params)
    path = workplace.dataset / "images.parquet"
    table = pq.read_table(path)
    ids = ["a" if name == "000" else name for name in table["image_id"].to_pylist()]
    pq.write_table(table.set_column(0, "image_id", pa.array(ids)), path)
    after = keys(workplace, workplace.params)
    assert before[0] != after[0] and before[1:] == after[1:]


def test_each_image_gets_its_own_boxes_and_they_change_its_shard_alone(workplace) -> None:
    params = workplace.params.replace(
        dataset=DatasetParams(source="coco", root=str(workplace.pictures)),
        regions=workplace.params.regions.replace(boxes="given"),
    )

    def plan(*rows: tuple[str, int, int, int, int]) -> tuple[dict[str, list[list[float]]], list[str]]:
        names = ("image_id", "x0", "y0", "x1", "y1")
        table = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        pq.write_table(pa.table(table), workplace.dataset / "boxes.parquet")
        shards = plan_shards(params, workplace.dataset, workplace.detector).shards
        boxes = {image.image_id: np.array(image.boxes).tolist() for shard in shards for image in shard.images}
        return {name: some for name, some in boxes.items() if some}, [shard.key for shard in shards]

    rows = [("001", 5, 6, 7, 8), ("000", 1, 2, 3, 4), ("001", 9, 10, 11, 12), ("002", 0, 0, 1, 1)]
    boxes, before = plan(*rows)
    assert boxes == {"000": [[1, 2, 3, 4]], "001": [[5, 6, 7, 8], [9, 10, 11, 12]], "002": [[0, 0, 1, 1]]}
    # One coordinate, a box that goes to the image before, and the order of two.
    others = ([("001", 5, 6, 7, 9), *rows[1:]], [rows[1], ("000", 5, 6, 7, 8), *rows[2:]], [*rows[2:], *rows[:2]])
    for other in others:
        after = plan(*other)[1]
        assert before[0] != after[0] and before[1:] == after[1:]
    with pytest.raises(InputError, match=r"boxes\.parquet: is empty; regions\.boxes: given needs a dataset"):
        plan()


def keys(workplace, params: ExtractSections) -> list[str]:
    return [shard.key for shard in plan_shards(params, workplace.dataset, workplace.detector).shards]
