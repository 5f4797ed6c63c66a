"""The model that is shipped, on photographs that it was not trained on."""

import json
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from camp_model.checkpoint import load_checkpoint
from camp_model.config import CampConfig
from camp_model.encoders.pretrained import weights_location
from camp_model.encoding import encode_sentences
from camp_model.files import write_sealed
from search.collection import PictureCollection, open_folder
from search.features import Extraction
from search.sentences import SentenceReader
from search.web.application import create_application
from stages.contracts import read_fingerprint
from stages.params.presets import compose
from tests.search.folders import wait_for


@pytest.fixture(scope="module")
def shipped(repository: Path) -> Path:
    return repository / "pretrained" / "flickr8k"


def test_the_shipped_model_is_whole_small_and_says_what_it_reads(shipped: Path) -> None:
    model, vocabulary, _ = load_checkpoint(shipped)
    extraction = Extraction.of_model(shipped)
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) <= 16_000_000
    assert (extraction.detector.backend, extraction.regions.boxes) == ("timm", "grid")
    assert model.config.region_dim == 1752 and model.config.no_gates_reason() is None
    assert read_fingerprint(shipped)["joint_weight"] > 0, "it has a shortlist"
    assert vocabulary.encode(["dog", "snow"]) != vocabulary.encode(["unheard", "unheard"])
    assert (shipped / "README.md").is_file()


def test_words_that_no_training_caption_had_reach_the_text_encoder(shipped: Path) -> None:
    """The states of `a zebra` by hand: the mean of MiniLM's pieces of each word, through the model's linear layer."""
    transformers = pytest.importorskip("transformers")
    model, vocabulary, _ = load_checkpoint(shipped)
    reader = SentenceReader(model, vocabulary, Extraction.of_model(shipped).captions)
    sentence = reader.read("a Zebra, two xylophonists and \U00013080")
    assert sentence.words == ("a", "zebra", "two", "xylophonists", "and", "\U00013080")
    assert not {"zebra", "xylophonists"} & set(vocabulary.words)
    assert sentence.unknown == ["\U00013080"] and sentence.by_spelling == ["zebra", "xylophonists"]
    folder = weights_location(model.config.transformer)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    read = tokenizer(" ".join(sentence.words), return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(folder).eval()(**read).last_hidden_state[0]
        owners = read.word_ids()
        assert owners.count(3) > 1, "several pieces"
        states = torch.stack(
            [hidden[[at for at, own in enumerate(owners) if own == word]].mean(0) for word in range(6)]
        )
        words, _ = encode_sentences(model, [sentence.ids])
        assert (words[0] - model.caption_encoder.linear(states)).abs().max() < 2e-3
        assert (words[0, 1] - encode_sentences(model, [vocabulary.encode(["a", "zebra"])])[0][0, 1]).abs().max() > 0.1


def test_words_that_do_not_fit_into_the_text_encoders_input_are_counted(shipped: Path) -> None:
    """MiniLM reads 512 pieces: each of these words has 16, and the sentence fewer words than captions.max_words."""
    pytest.importorskip("transformers")
    model, vocabulary, _ = load_checkpoint(shipped)
    reader = SentenceReader(model, vocabulary, Extraction.of_model(shipped).captions)
    sentence = reader.read(" ".join(["qxzv" * 8] * 50))
    assert (len(sentence.words), len(sentence.ids), sentence.dropped) == (31, 31, 19)
    words, mask = encode_sentences(model, [sentence.ids])
    assert bool((words[mask] != model.caption_encoder.linear.bias).any(1).all()), "each has a state of its own"


def test_the_commands_of_its_card_are_those_that_make_it(shipped: Path, repository: Path) -> None:
    """What they write into params.yaml is what the model was made with; none of them is run here."""
    card = (shipped / "README.md").read_text(encoding="utf-8")
    data, joint, first, camp, ship = re.findall(r"^\$ (.*)$", card, re.MULTILINE)
    data = re.fullmatch(r"data=\((.*)\)", data)[1].split()
    assert ship == "python -m search.shipping pretrained/flickr8k"
    assert joint.endswith("${data[@]} presets/best_1_joint.yaml")
    assert first == "dvc repro train && rm -rf models/best_1 && cp -r models/camp models/best_1"
    assert camp.endswith("presets/best_2_camp.yaml && dvc repro")
    config = json.loads((shipped / "config.json").read_text())
    for command in (joint, camp):
        presets = re.fullmatch(r"python -m stages\.params \$\{data\[@\]\} ([^&]+?)( && .*)?", command)[1].split()
        params, _ = compose([repository / preset for preset in [*data, *presets]])
        extraction = Extraction(detector=params.detector, regions=params.regions, captions=params.captions)
        assert extraction == Extraction.of_model(shipped)
    assert params.train.start_from == "models/best_1"
    model = params.model.config(vocab_size=config["vocab_size"], region_dim=config["region_dim"])
    assert model == CampConfig(**config)


def test_the_shipped_model_starts_in_silence(shipped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its features are looked at, not the version of what computes them; another detector's are told apart."""
    (tmp_path / "images").mkdir()
    other = tmp_path / "other"
    shutil.copytree(shipped, other)
    record = read_fingerprint(other)
    write_sealed(other / "fingerprint.json", record | {"detector": "0" * 64})  # computed by other code than today's
    for model in (shipped, other, other):
        open_folder(tmp_path / "images", model=model, cache=tmp_path / "cache")
        assert capfd.readouterr() == ("", "")
    sample = np.load(shipped / "detector/sample.npy")
    np.save(other / "detector/sample.npy", sample + np.float16(0.02) * sample.std(dtype=np.float64).astype(np.float16))
    open_folder(tmp_path / "images", model=other, cache=tmp_path / "cache")
    assert "they differ by up to 0.0" in capfd.readouterr().err
    (other / "detector/sample.npy").unlink()
    open_folder(tmp_path / "images", model=other, cache=tmp_path / "cache")
    assert "they may differ a little" in capfd.readouterr().err


def _zebra(collection: PictureCollection) -> None:
    """What is said of a word that the vocabulary lacks: to a person, to a program, and of one picture."""
    answer = collection.search("a zebra", top=3)
    assert (answer.unknown, answer.by_spelling) == ([], ["zebra"])
    view = collection.pair(answer.hits[0].picture_id, "a zebra")
    assert (view.details["unknown"], view.details["spelt"]) == ([], [1]) and view.effects[1] is not None
    client = TestClient(create_application(collection), base_url="http://127.0.0.1")
    page = client.get("/", params={"q": "a zebra"}).text.replace('<bdi lang="">', "").replace("</bdi>", "")
    assert "The vocabulary that was trained on lacks \u201czebra\u201d; the text encoder reads it by spelling." in page
    assert "does not know" not in page
    assert client.get("/api/search", params={"q": "a zebra"}).json()["by_spelling"] == ["zebra"]
    address = {"id": answer.hits[0].picture_id, "q": "a zebra"}
    assert client.get("/api/pair", params=address).json()["by_spelling"] == [1]
    assert 'lacks \u201c<bdi lang="">zebra</bdi>\u201d' in client.get("/picture", params=address).text


@pytest.mark.timeout(600)
def test_captions_of_photographs_find_them(shipped: Path, coco_mini: Path, tmp_path: Path) -> None:
    """79 photographs: by chance half of the captions would find theirs among the first 40."""
    annotated = json.loads((coco_mini / "annotations/captions_val2017.json").read_text())
    files = {image["id"]: image["file_name"] for image in annotated["images"]}
    first = {caption["image_id"]: caption["caption"] for caption in annotated["annotations"]}
    collection = open_folder(coco_mini / "val2017", model=shipped, cache=tmp_path)
    collection.start()
    try:
        assert wait_for(collection, 500).ready >= 79
        ranks = []
        for image_id, caption in first.items():
            names = [hit.file.name for hit in collection.search(caption, top=1000).hits]
            ranks.append(names.index(files[image_id]) + 1)
        print(sorted(ranks))
        assert statistics.median(ranks) <= 8
        sentence = next(iter(first.values()))
        view = collection.pair(collection.search(sentence, top=1).hits[0].picture_id, sentence)
        _zebra(collection)
        assert len(view.boxes) == 36 and len(view.effects) == len(view.details["words"])
    finally:
        collection.close()
