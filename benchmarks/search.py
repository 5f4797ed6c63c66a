"""Search under load: engines by the number of vectors, queries, memory and start-up of large collections, 32 clients.

`python -m benchmarks.search` runs all; the parts alone: `python -m benchmarks.search engines small large clients`.
Pictures, vectors and regions are made up, the model is untrained: what is measured does not depend on either. Its form
is that of the model that is shipped. Disk: 1.3 GB for `small` and `clients`, 13 GB for `large`. Set
OMP_WAIT_POLICY=PASSIVE, as `make bench` does, where other processes run.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
import torch

from camp_model.checkpoint import save_checkpoint
from camp_model.config import CampConfig
from camp_model.files import write_table
from camp_model.model import CAMP
from camp_model.regions import ImageRegions, StoreInfo, write_manifest, write_rejected, write_shard
from camp_model.vocabulary import Vocabulary
from search.collection import open_workspace
from stages.cost import resident_bytes
from stages.index import index
from stages.indexing.engines import Vectors
from stages.indexing.faiss_engine import FaissEngine
from stages.params.index import IndexParams

R, D, DIM, SHARD = 36, 1752, 256, 256
"""Regions of a picture, width of their features, of the model, pictures in a shard: as the shipped model has them."""
SMALL, LARGE = 10_000, 100_000
VECTORS = (10_000, 100_000, 1_000_000)
QUERIES = 60
CLIENTS, SECONDS = 32, 60
WORDS = [f"word{i}" for i in range(2000)]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of ten words, no two the same."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 10)) for _ in range(count)]


def percentiles(seconds: list[float]) -> str:
    half, most = np.percentile(np.array(seconds) * 1000, [50, 95])
    return f"{half:8.1f} ms (half) {most:8.1f} ms (95 %)"


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _clustered(count: int, seed: int) -> Vectors:
    """Unit vectors around a thousand centres, as those of pictures lie around subjects."""
    centres = np.random.default_rng(0).normal(size=(1000, DIM)).astype(np.float32)
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, len(centres), count)] + rng.normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def engines() -> None:
    """faiss by the number of vectors: the figures of docs/scaling.md."""
    print(f"faiss, vectors of {DIM}, the {IndexParams().shortlist} nearest of one query at a time")
    queries = _clustered(QUERIES, 1)
    for count in VECTORS:
        vectors, ids = _clustered(count, 2), np.arange(count, dtype=np.int64)
        exact = FaissEngine(DIM)
        exact.add(ids, vectors)
        nearest = exact.search(queries, IndexParams().shortlist)[0]
        for size in dict.fromkeys((0, count)):  # exact, and what that many are searched with
            engine = FaissEngine(DIM, size)
            if size and type(engine._index) is type(exact._index):
                continue
            started = time.perf_counter()
            engine.add(ids, vectors)
            built = time.perf_counter() - started
            seconds, hits = [], 0
            for row, query in enumerate(queries):
                started = time.perf_counter()
                numbers, _ = engine.search(query[None], nearest.shape[1])
                seconds.append(time.perf_counter() - started)
                hits += len(np.intersect1d(numbers, nearest[row]))
            kind = "inverted" if size else "exact"
            share = hits / nearest.size
            print(
                f"{count:9,} {kind:9} built in {built:6.1f} s  {percentiles(seconds)}  finds {share:6.1%}", flush=True
            )
            del engine


def make_workspace(root: Path, count: int, joint: bool) -> None:
    """A workspace of made-up pictures: every shard a file of its own, with the same numbers in it."""
    rng = np.random.default_rng(0)
    info = StoreInfo(D, R, "a" * 64)
    zeros = np.zeros(R, np.float32)
    boxes = np.tile(np.array([[0, 0, 9, 9]], np.float32), (R, 1))
    regions = root / "data/regions"
    regions.mkdir(parents=True)
    pictures = [
        ImageRegions(
            rng.normal(size=(R, D)).astype(np.float32), boxes, zeros, zeros.astype(np.int32), zeros.astype(np.int32),
            zeros, 9, 9,
        )
        for _ in range(SHARD)
    ]  # fmt: skip
    write_shard(regions / "0.arrow", info, "0", [(str(i), picture) for i, picture in enumerate(pictures)])
    shards = -(-count // SHARD)
    for number in range(1, shards):
        shutil.copyfile(regions / "0.arrow", regions / f"{number}.arrow")
    names = [f"picture-{i:07d}" for i in range(count)]
    write_manifest(regions, info, [(name, f"{i // SHARD}.arrow", i % SHARD, R) for i, name in enumerate(names)])
    write_rejected(regions, info, [])
    columns = {"image_id": names, "path": [f"{name}.jpg" for name in names], "sha256": ["0" * 64] * count}
    write_table(root / "data/dataset/images.parquet", pa.table(columns))
    vocabulary = Vocabulary.build([WORDS])
    torch.manual_seed(0)
    model = CAMP(CampConfig(len(vocabulary), D, dim=DIM, text="transformer", joint_score=True))
    model.caption_encoder.read_vocabulary(vocabulary)
    save_checkpoint(root / "models/camp", model, vocabulary)
    (root / "models/camp/fingerprint.json").write_text(json.dumps({"joint_weight": float(joint)}))
    index(
        IndexParams(), regions=regions, model=root / "models/camp", out=root / "data/index", work=root / ".work/vectors"
    )


def ask(root: Path, queries: int) -> None:
    """In a process of its own: queries and memory of a workspace."""
    collection = open_workspace(root)
    collection.start()
    first = sentences(1, seed=9)[0]
    collection.search(first, 20)
    for sentence in sentences(5, seed=8):
        collection.search(sentence, 20)
    seconds = [timed(partial(collection.search, sentence, 20)) for sentence in sentences(queries)]
    answer = collection.search(first, 1)
    print(f"  query, CAMP ranks {answer.scored:,} of {answer.total:,}: {percentiles(seconds)}")
    print(f"  peak memory {resident_bytes('VmHWM') / 2**30:.2f} GiB, pages of mapped files included", flush=True)
    collection.close()


@contextmanager
def workspace(count: int, joint: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="camp-search-") as folder:
        root = Path(folder)
        make_workspace(root, count, joint)
        yield root


def collection_of(count: int, speeds: tuple[bool, ...], queries: int) -> None:
    with workspace(count, speeds[0]) as root:
        for joint in speeds:
            print(f"{count:,} pictures, {'shortlist' if joint else 'all ranked'}", flush=True)
            (root / "models/camp/fingerprint.json").write_text(json.dumps({"joint_weight": float(joint)}))
            start_up(root)
            command = [sys.executable, "-m", "benchmarks.search", "ask", str(root), str(queries)]
            subprocess.run(command, check=True)


def start_up(root: Path) -> None:
    """Seconds until the page is there, and until it has answered."""
    begun = time.monotonic()
    with _server(root) as (address, _):
        httpx.get(address, timeout=60).raise_for_status()
        served = time.monotonic() - begun
        httpx.get(f"{address}api/search", params={"q": sentences(1)[0]}, timeout=60).raise_for_status()
        answered = time.monotonic() - begun
    print(f"  start-up with the finished index {served:.1f} s, to the first answer {answered:.1f} s", flush=True)


def small() -> None:
    """10,000 pictures at both speeds."""
    collection_of(SMALL, (True, False), QUERIES)


def large() -> None:
    """100,000 pictures, regions read from the mapped store."""
    collection_of(LARGE, (True,), QUERIES)


def clients() -> None:
    """Many at once for a minute, of a server: no error, and no answer that differs from that of one alone."""
    with workspace(SMALL, joint=True) as root, _server(root) as (address, process):
        asked = sentences(200, seed=3)
        with httpx.Client(base_url=address, timeout=60) as client:
            alone = {sentence: client.get("/api/search", params={"q": sentence}).json() for sentence in asked}
        seconds, wrong, errors = _storm(address, asked, alone)
        peak = psutil.Process(process.pid).memory_info().rss
    counts = f"{len(seconds):,} answers, {errors} errors, {wrong} differ from one alone"
    print(f"{CLIENTS} clients for {SECONDS} s, {SMALL:,} pictures: {counts}")
    print(f"  {percentiles(seconds)}, {len(seconds) / SECONDS:.0f} a second")
    print(f"  memory of the server {peak / 2**30:.2f} GiB, pages of mapped files included", flush=True)


@contextmanager
def _server(root: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen([sys.executable, "-m", "search"], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.terminate()
        process.wait()


def _storm(address: str, asked: list[str], alone: dict[str, object]) -> tuple[list[float], int, int]:
    """Seconds of each answer, how many differ, and how many are none."""
    barrier = threading.Barrier(CLIENTS)

    def client(number: int) -> tuple[list[float], int, int]:
        rng, seconds, wrong, errors = np.random.default_rng(number), [], 0, 0
        with httpx.Client(base_url=address, timeout=60) as session:
            barrier.wait()
            ends = time.monotonic() + SECONDS
            while time.monotonic() < ends:
                sentence = asked[rng.integers(len(asked))]
                started = time.perf_counter()
                try:
                    answer = session.get("/api/search", params={"q": sentence})
                except httpx.HTTPError:
                    errors += 1
                    continue
                seconds.append(time.perf_counter() - started)
                errors += answer.status_code != 200
                wrong += answer.status_code == 200 and answer.json() != alone[sentence]
        return seconds, wrong, errors

    with ThreadPoolExecutor(CLIENTS) as pool:
        seconds, wrong, errors = zip(*pool.map(client, range(CLIENTS)), strict=True)
    return [second for some in seconds for second in some], sum(wrong), sum(errors)


PARTS: dict[str, Callable[[], None]] = {"engines": engines, "small": small, "large": large, "clients": clients}


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["ask"]:
        ask(Path(arguments[1]), int(arguments[2]))
        return
    if unknown := [name for name in arguments if name not in PARTS]:
        sys.exit(f"error: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    for name in arguments or PARTS:
        load = os.getloadavg()[0]
        print(f"-- {name} ({torch.get_num_threads()} threads, {load:.1f} other processes running before)", flush=True)
        PARTS[name]()


if __name__ == "__main__":
    main()
