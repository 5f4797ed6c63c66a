"""Stage index: compute a vector for each picture of the region store, and put them into a search index."""

from pathlib import Path

from tqdm import tqdm

from camp_model.checkpoint import load_checkpoint
from camp_model.files import remove_unused, replacing_folder, sha256_of, write_sealed
from camp_model.regions import RegionStore
from stages.contracts import check_trained_on, input_errors
from stages.entry import read_params, stage_main
from stages.indexing.opening import (
    FAISS,
    IndexFacts,
    build_faiss_engine,
    collection_name,
    open_server,
    record_name,
    update_collection,
)
from stages.indexing.vectors import store_vectors, vector_file, weights_key
from stages.params.index import IndexParams
from stages.params.section import StageSections
from stages.workspace import main_root


class IndexSections(StageSections):
    """The sections of params.yaml that the stage reads."""

    index: IndexParams = IndexParams()


def index(params: IndexParams, *, regions: Path, model: Path, out: Path, work: Path) -> None:
    """Write `out`: index.json, which identifies regions and weights, and index.faiss if faiss is the engine.

    Args:
        regions, model: folders of the region store and the checkpoint.
        work: folder that caches vectors by shard and model, and records what a server holds.

    Raises:
        InputError: the store or the checkpoint cannot be read or do not fit, or a server does not answer.
    """
    with input_errors():
        store = RegionStore(regions)
        camp, _, _ = load_checkpoint(model)
    check_trained_on(model, camp.config, store)
    weights = weights_key(model)
    bar = tqdm(total=len(store), unit="image", desc="vectors")
    with bar, input_errors():
        vectors = store_vectors(camp, weights, store, work, bar.update)
    facts = IndexFacts(
        params.engine, collection_name(weights, store.detector), camp.config.dim, len(store), weights,
        sha256_of(regions / "manifest.parquet"),
    )  # fmt: skip
    with replacing_folder(out) as building:
        if params.engine == FAISS:
            build_faiss_engine(vectors, store.image_ids).save(building / "index.faiss")
        else:
            server = open_server(params.engine, facts.collection, facts.dim)
            shards = {store.image_ids[row]: name for name, rows in store.rows_of_shards().items() for row in rows}
            in_store_order = {name: shards[name] for name in store.image_ids}
            update_collection(server, vectors, in_store_order, work / record_name(params.engine, facts.collection))
        write_sealed(building / "index.json", facts.to_dict())
    remove_unused(work, {vector_file(weights, shard) for shard in store.rows_of_shards()})
    print(f"{len(store)} pictures, vectors of {facts.dim}, engine {params.engine}")


def main() -> None:
    index(
        read_params(IndexSections).index,
        regions=Path("data/regions"),
        model=Path("models/camp"),
        out=Path("data/index"),
        work=main_root() / ".work" / "vectors",
    )


if __name__ == "__main__":
    stage_main(main)
