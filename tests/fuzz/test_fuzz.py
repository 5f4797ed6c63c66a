"""Damaged and made-up inputs: a clear error or a right result, whatever stands in a file.

CAMP_FUZZ_CASES: how many cases in all; `make chaos` asks for 100,000.
"""

import json
import os
import random
import resource
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.cost import RUSAGE_UNIT
from stages.errors import InputError
from stages.params import document
from stages.params.pipeline import Params
from tests.fuzz.damage import damaged_bytes, damaged_values
from tests.fuzz.samples import Target, targets

CASES = int(os.environ.get("CAMP_FUZZ_CASES", "5000"))
LONGEST = 2000
"""Letters of an error's message: it never holds an input whole."""
HANGS = timedelta(seconds=20)
MEMORY = 1 << 30


def damaged(target: Target, seed: int) -> bytes:
    choice = random.Random(seed)
    if target.name.endswith(".json") and choice.random() < 0.6:
        values = json.loads(target.sample)
        values.pop("camp.seal", None)
        for _ in range(choice.randint(1, 3)):
            values = damaged_values(values, choice)
        return json.dumps(values).encode()
    return damaged_bytes(target.sample, choice)


def check(target: Target, path: Path, content: bytes) -> None:
    """Read what stands there: a result, or an error that names the file and is short."""
    path.write_bytes(content)
    try:
        target.read(path)
    except target.errors as error:
        message = str(error)
        assert 0 < len(message) < LONGEST, message[:500]
        # The libraries' own errors are of these classes, too.
        assert path.name in message or message.startswith(("dataset", "params.yaml: dataset")), message[:500]


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {target.name: target for target in targets(tmp_path_factory.mktemp("samples"))}


NAMES = [
    "captions.txt", "lines.txt", "vocabulary.json", "fingerprint.json", "params.yaml", "preset.yaml", "dataset.json",
    "instances.json", "captions.csv", "captions.parquet", "features.tsv", "features.npz", "test_ims.npy",
    "weights.safetensors", "weights.pth", "vectors.txt", "lexicon.json", "train.parquet", "old.parquet", "any.parquet",
    "shard.arrow", "old.arrow", "released.pth.tar", "released.pkl",
]  # fmt: skip
"""Of `targets`."""
SHARE = -(-CASES // (len(NAMES) + 2))
"""Cases of one weight: those of NAMES add up to 23, the values of params have 2, requests to the search API 1.5."""


def fuzzing(weight: float = 1.0) -> settings:
    return settings(
        max_examples=max(1, int(SHARE * weight)), deadline=HANGS, derandomize=CASES <= 5000, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


SEEDS = st.integers(0, 2**64 - 1)


def test_every_reader_is_fuzzed_and_the_cases_are_as_many_as_they_say(readers: dict[str, Target]) -> None:
    assert list(readers) == NAMES
    assert sum(int(SHARE * weight) for weight in [*(t.weight for t in readers.values()), 2.0, 1.0, 0.5]) >= CASES


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_a_clear_error_or_a_right_result(
    name: str, readers: dict[str, Target], tmp_path: Path
) -> None:
    target, path = readers[name], tmp_path / name
    path.write_bytes(target.sample)
    target.read(path)  # as it is, it is right
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @fuzzing(target.weight)
    @given(SEEDS)
    def fuzz(seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(target, path, damaged(target, seed))

    fuzz()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * RUSAGE_UNIT < MEMORY


@pytest.mark.timeout(1800)
def test_values_of_params_are_right_or_a_clear_error(repository: Path) -> None:
    values = document.read(repository / "params.yaml")

    @fuzzing(2.0)
    @given(SEEDS)
    def fuzz(seed: int) -> None:
        choice = random.Random(seed)
        changed = values
        for _ in range(choice.randint(1, 3)):
            changed = damaged_values(changed, choice)
        try:
            params = Params.from_dict(changed)
        except InputError as error:
            assert 0 < len(str(error)) < LONGEST
        else:
            assert Params.from_dict(params.to_dict()) == params

    fuzz()
