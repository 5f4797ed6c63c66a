"""What a checkpoint of an ensemble must have in common with the captions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from camp_model.vocabulary import Vocabulary
from stages.errors import InputError
from tests.stages.conftest import SmallRun
from tests.stages.evaluation.running import PARAMS, run


def test_a_model_of_an_ensemble_reads_captions_with_start_and_end_only_if_it_was_trained_on_such(
    small: SmallRun, make_checkpoint: Callable[..., None], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    make_checkpoint(other, Vocabulary.load(small.token_tables / "vocabulary.json"), seed=1)
    facts = json.loads((small.model / "fingerprint.json").read_text())
    for start_end in (None, False, True):
        (other / "fingerprint.json").write_text(json.dumps(facts | {"start_end": start_end}))
        if start_end:
            with pytest.raises(
                InputError, match=r"other/fingerprint\.json: start_end: True, but the captions of .* with"
            ):
                run(small, PARAMS.replace(ensemble=(str(other),)))
        else:
            run(small, PARAMS.replace(ensemble=(str(other),)))


def test_a_copy_of_a_model_is_no_further_model_of_an_ensemble(small: SmallRun, tmp_path: Path) -> None:
    shutil.copytree(small.model, tmp_path / "copy")
    with pytest.raises(InputError, match=r"copy/model\.safetensors: holds the same weights as .*; expected each model"):
        run(small, PARAMS.replace(ensemble=(str(tmp_path / "copy"),)))
