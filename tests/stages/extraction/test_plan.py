"""The plan: which images go into which shard."""

import pytest

from stages.extraction.plan import boundaries


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
