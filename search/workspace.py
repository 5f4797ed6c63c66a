"""The pictures of a workspace, from data/regions, data/dataset and data/index."""

import os
import sys
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from camp_model.files import sha256_of
from camp_model.model import CAMP
from camp_model.regions import ImageRegions, RegionStore
from camp_model.seal import check_seal
from search.features import RegionFinder
from search.pictures import PictureFile, Pictures, Status
from search.sample import TOLERANCE, difference
from stages.contracts import check_trained_on, input_errors, read_fingerprint, read_table
from stages.detectors.images import RejectedImage, read_image
from stages.errors import InputError, shown
from stages.extraction.plan import ExtractSections, plan_shards
from stages.indexing.engines import Engine
from stages.indexing.opening import IndexFacts, build_faiss_engine, open_index
from stages.indexing.vectors import picture_vectors, weights_key
from stages.params.captions import CaptionsParams
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.index import IndexParams
from stages.params.regions import RegionsParams
from stages.params.section import StageSections


class WorkspaceSections(StageSections):
    """The sections of params.yaml that search reads."""

    dataset: DatasetParams = DatasetParams()
    detector: DetectorParams = DetectorParams()
    regions: RegionsParams = RegionsParams()
    captions: CaptionsParams = CaptionsParams()
    index: IndexParams = IndexParams()


COMPARED = 8
"""Number of pictures whose features are computed again, to compare them."""


@dataclass(frozen=True)
class Workspace:
    """The folders of a repository in which the pipeline has run."""

    root: Path

    @cached_property
    def params(self) -> WorkspaceSections:
        """The workspace's params; the defaults where it has none."""
        path = self.root / "params.yaml"
        return WorkspaceSections.load(path) if path.exists() else WorkspaceSections()

    @cached_property
    def trained_captions(self) -> CaptionsParams:
        """How captions are tokenized: by the params, but with what the model records of its training captions.

        Raises:
            InputError: the record is wrong; the message names the key.
        """
        recorded = read_fingerprint(self.model)
        known = {name: recorded[name] for name in ("start_end", "max_words") if recorded.get(name) is not None}
        try:
            return self.params.captions.replace(**known)
        except InputError as error:
            raise InputError(f"{self.model / 'fingerprint.json'}: {error}") from None

    @property
    def model(self) -> Path:
        return self.root / "models/camp"

    @property
    def captions(self) -> Path:
        """The file of the training captions."""
        return self.root / "data/captions/train.parquet"

    def files(self) -> dict[str, PictureFile]:
        """The file of each image of the dataset.

        Raises:
            InputError: the table cannot be read, or a file would lie outside the root of the images.
        """
        dataset = self.root / "data/dataset"
        path = dataset / "images.parquet"
        table = read_table(path, {"image_id": pa.string(), "path": pa.string(), "sha256": pa.string()})
        root = self.root / self.params.dataset.image_root(dataset)
        columns = [table[name].to_pylist() for name in ("image_id", "path", "sha256")]
        files = {}
        for name, relative, sha256 in zip(*columns, strict=True):
            if not Path(os.path.normpath(root / relative)).is_relative_to(os.path.normpath(root)):
                raise InputError(f"{path}: path: {shown(relative)} leads out of the folder of the images")
            files[name] = PictureFile(root, sha256, relative)
        return files

    def finder(self) -> RegionFinder:
        """The extractor with which the workspace's regions were extracted."""
        return RegionFinder(self.root / "data/detector", self.params.detector, self.params.regions)

    def planned_shards(self) -> set[str]:
        """File names of the shards that the params, the dataset and the detector lead to now."""
        sections = ExtractSections(
            dataset=self.params.dataset, detector=self.params.detector, regions=self.params.regions
        )
        plan = plan_shards(sections, self.root / "data/dataset", self.root / "data/detector")
        return {shard.file_name for shard in plan.shards}

    def check_features(self, finder: RegionFinder, store: RegionStore) -> None:
        """Check that `finder` extracts from a picture what the store has of it.

        If shards would get other names now, because of other params, code or libraries, some pictures are extracted
        again to compare their features.

        Raises:
            InputError: a picture cannot be read, or its features differ.
        """
        if finder.extractor().fingerprint == store.detector and self.planned_shards().issuperset(
            store.rows_of_shards()
        ):
            return
        files = self.files()
        for row in np.unique(np.linspace(0, len(store) - 1, COMPARED).astype(np.int64)).tolist():
            file = files[store.image_ids[row]]
            try:
                image = read_image(file.path, file.sha256, self.params.regions.max_pixels)
            except RejectedImage as error:
                raise InputError(f"{file.path}: {error}; expected the pictures that were trained on") from None
            features, mask = store.features([row])
            size = difference(finder.find_regions(image).features, features[0][mask[0]])
            if size > TOLERANCE:
                raise InputError(
                    f"{store.path}: {shown(store.image_ids[row])}: its features differ by up to {size:.2g} standard "
                    "deviations from what the detector extracts now; expected a model trained on that (dvc repro)"
                )


class WorkspaceSource:
    """A finished store; only missing vectors are computed."""

    def __init__(self, workspace: Workspace, model: CAMP, name: str) -> None:
        self.model, self.name = model, name
        self._weights = weights_key(workspace.model)
        self._problem: str | None = None
        self._reading = threading.Lock()
        self._read(workspace, None)
        self._stop = threading.Event()
        self._checking: threading.Thread | None = None

    def _read_pictures(self, workspace: Workspace, before: Pictures | None) -> Pictures:
        manifest = workspace.root / "data/regions/manifest.parquet"
        regions = sha256_of(manifest)
        with input_errors():
            store = RegionStore(manifest.parent, check=False)
            store.map_all()  # another run of the pipeline may remove the files during a search
        check_trained_on(workspace.model, self.model.config, store)
        files = _files_of(workspace, store, before)
        engine = self._engine(workspace.root / "data/index", store, regions)
        if sha256_of(manifest) != regions:
            raise InputError(f"{manifest.parent}: was replaced while it was read; expected to be read once it is whole")
        return Pictures(store, store.image_ids, np.arange(len(store), dtype=np.int64), files, engine)

    def _engine(self, folder: Path, store: RegionStore, regions: str) -> Engine:
        """The engine of data/index; if it is missing, or of other weights or `regions`, vectors are computed now.

        Args:
            regions: sha256 of the manifest of data/regions.
        """
        if (folder / "index.json").is_file():
            facts = IndexFacts.load(folder)
            if (facts.weights, facts.regions) == (self._weights, regions):
                return open_index(folder, facts)
            print(
                f"{folder}: belongs to other regions or another model; the vectors are computed again", file=sys.stderr
            )
        with input_errors():
            return build_faiss_engine(picture_vectors(self.model, store, range(len(store))), store.image_ids)

    def start(self) -> None:
        """As `PictureSource.start`: checks all shards once, in the background."""
        self._checking = threading.Thread(target=self._check, args=[self._pictures], name="check", daemon=True)
        self._checking.start()

    def close(self) -> None:
        """As `PictureSource.close`."""
        self._stop.set()
        if self._checking:
            self._checking.join()

    def _check(self, pictures: Pictures) -> None:
        for path in pictures.store.shard_paths:
            try:
                check_seal(path)
            except FileNotFoundError:  # another run of the pipeline has removed it; it stays mapped
                continue
            except (ValueError, OSError) as error:
                if self._pictures is pictures:
                    self._problem = (
                        f"regions cannot be read as they were written, and answers may be wrong: {str(error)[:500]}; "
                        "remove the file, run `dvc repro` (docs/reliability.md, Seals), and look for new pictures"
                    )
                return
            if self._stop.is_set() or self._pictures is not pictures:
                return

    def rescan(self) -> None:
        """Read the workspace after another run of the pipeline, and check its shards.

        Raises:
            InputError: as `_read`.
        """
        with self._reading:  # one at a time: what a later one reads is not replaced by what an earlier one has read
            self._read(Workspace(self.workspace.root), self._pictures)  # with its params.yaml as it is now
            self.start()

    def _read(self, workspace: Workspace, before: Pictures | None) -> None:
        """Read the workspace, after its pictures `before`.

        Raises:
            InputError: something is missing or damaged, or another model has been trained meanwhile, whose vectors this
                one cannot use.
        """
        try:
            if weights_key(workspace.model) != self._weights:
                raise InputError(f"{workspace.model}: is another model now; restart the search to use it")
            pictures, finder = self._read_pictures(workspace, before), workspace.finder()
        except OSError as error:  # DVC removes what a stage will make before it runs the stage
            path = error.filename or workspace.root
            raise InputError(f"{path}: cannot be read ({error.strerror}); expected a pipeline that has run") from None
        rejected = read_table(workspace.root / "data/regions/rejected.parquet", ("path", "reason"))
        self._rejected = list(zip(rejected["path"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
        self.workspace, self._finder = workspace, finder
        self._pictures, self._problem, self._unchecked = pictures, None, True

    def pictures(self) -> Pictures:
        """As `PictureSource.pictures`."""
        return self._pictures

    def status(self) -> Status:
        """As `PictureSource.status`."""
        pictures = self._pictures
        return Status(
            len(pictures), len(pictures), self._rejected, len(self._rejected), False, self.name,
            self._problem, version=pictures.version,
        )  # fmt: skip

    def find_regions(self, image: npt.NDArray[np.uint8]) -> ImageRegions:
        """As `PictureSource.find_regions`; also raises InputError if the store's features were extracted otherwise."""
        if self._unchecked:
            with input_errors():
                self.workspace.check_features(self._finder, self._pictures.store)
            self._unchecked = False
        return self._finder.find_regions(image)


def _files_of(workspace: Workspace, store: RegionStore, before: Pictures | None) -> dict[str, PictureFile]:
    """The file of each image of the store, with the sha256 of the bytes that its regions were extracted from."""
    files = workspace.files()
    if missing := [name for name in store.image_ids if name not in files]:
        raise InputError(
            f"data/dataset/images.parquet: image_id: {shown(missing[0])} is missing ({len(missing)} such); "
            "expected every image of data/regions"
        )
    own = {name: files[name] for name in store.image_ids}
    if before is None:
        return own
    # A shard's name depends on its pictures' bytes. So while it stays and is not what data/dataset leads to, these
    # are as before, and data/dataset has those of pictures whose regions are still to be extracted.
    shard_of, earlier = _shards(store), _shards(before.store)
    same = [name for name in own if earlier.get(name) == shard_of[name]]
    changed = [name for name in same if before.files[name].sha256 != own[name].sha256]
    planned = workspace.planned_shards() if changed else set()
    return own | {
        name: own[name]._replace(sha256=before.files[name].sha256) for name in changed if shard_of[name] not in planned
    }


def _shards(store: RegionStore) -> dict[str, str]:
    """The file name of each image's shard."""
    return {store.image_ids[row]: shard for shard, rows in store.rows_of_shards().items() for row in rows}
