"""Where a name in params leads: the main workspace has what an experiment's own one lacks."""

import pytest

from stages.workspace import named_path


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """An experiment's own workspace below the main one, tmp_path; the test works in it."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "data/raw/photos").mkdir(parents=True)
    (tmp_path / "data/raw/photos/captions.csv").write_text("image,caption,split\n")
    (tmp_path / "lexicon.json").write_text("{}")
    own = tmp_path / ".dvc/tmp/exps/standalone/one"
    (own / "data/raw").mkdir(parents=True)
    (own / "data/raw/README.md").write_text("tracked by Git")
    monkeypatch.chdir(own)
    return own


def test_an_experiment_finds_what_git_does_not_track_in_the_main_workspace(experiment, tmp_path):
    assert named_path("data/raw/photos") == tmp_path / "data/raw/photos"
    assert named_path("data/raw") == tmp_path / "data/raw"  # here there is only what Git tracks of it
    assert named_path(str(tmp_path / "lexicon.json")) == tmp_path / "lexicon.json"
    assert str(named_path("nowhere")) == "nowhere"  # the name that the error says is the person's own


def test_a_file_of_the_experiment_itself_comes_first(experiment, tmp_path):
    assert named_path("lexicon.json") == tmp_path / "lexicon.json"
    (experiment / "lexicon.json").write_text("{}")
    assert str(named_path("lexicon.json")) == "lexicon.json"


def test_in_the_main_workspace_a_name_stands_for_itself(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir(exist_ok=True)
    assert str(named_path("data/raw/photos")) == "data/raw/photos"
