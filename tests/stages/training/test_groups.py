"""Parts of a model with a learning rate of their own."""

import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.checkpoint import load_checkpoint
from stages.errors import InputError
from stages.training.groups import parameter_groups
from stages.training.start import new_model
from tests.stages.training.killing import Killed, kill_after


def model():
    return CAMP(CampConfig(vocab_size=8, region_dim=5, word_dim=4, dim=8))


def factor_of(camp, factors):
    groups = parameter_groups(camp, factors)
    of = {id(parameter): group["factor"] for group in groups for parameter in group["params"]}
    return {name: of[id(parameter)] for name, parameter in camp.named_parameters() if id(parameter) in of}


def test_the_longest_beginning_of_a_name_counts():
    camp = model()
    factors = factor_of(camp, {"caption_encoder": 0.1, "caption_encoder.embedding": 0.0, "messages": 2.0})
    assert factors.keys() == dict(camp.named_parameters()).keys()
    for name, factor in factors.items():
        own = {"caption_encoder": 0.1, "matcher.messages": 2.0}  # the latter by its name from before matchers
        expected = next((value for prefix, value in own.items() if name.startswith(prefix)), 1.0)
        assert factor == (0.0 if name == "caption_encoder.embedding.weight" else expected), name
    assert set(factor_of(camp, {}).values()) == {1.0} and len(parameter_groups(camp, {})) == 1


def test_what_names_nothing_that_is_trained_is_an_error():
    camp = model()
    with pytest.raises(InputError, match=r"train\.learning_rates: no trained parameter begins with 'text'; there are"):
        parameter_groups(camp, {"text": 0.1})
    camp.region_encoder.requires_grad_(False)
    with pytest.raises(InputError, match=r"begins with 'region_encoder'"):
        parameter_groups(camp, {"region_encoder": 0.1})


@pytest.mark.parametrize("killed_after", [None, 3])
def test_every_step_of_the_schedule_is_shared_and_a_killed_training_keeps_it(
    make_data, params, run_train, killed_after
):
    """One step of AdamW moves a weight by its learning rate, whatever the gradient: the first one shows it."""
    settings = {"epochs": 2, "schedule": "cosine", "warmup_steps": 3, "checkpoint_steps": 1, "gradient_clip": 0.0}
    groups = {"region_encoder": 0.0, "caption_encoder": 0.25}
    paths = make_data("groups", images=15)
    own = params(learning_rates=groups, **settings)
    if killed_after:
        with pytest.raises(Killed):
            run_train(own, paths, stop=kill_after(killed_after))
    run_train(own, paths)
    trained, vocabulary, _ = load_checkpoint(paths.model)
    before = new_model(own.model, own.train, vocabulary, region_dim=trained.config.region_dim)
    moved = {name: (new - old).abs().max().item() for (name, old), new in
             zip(before.named_parameters(), trained.parameters(), strict=True)}  # fmt: skip
    assert all((value == 0) == name.startswith("region_encoder") for name, value in moved.items()), moved

    whole = make_data("whole", images=15)
    run_train(own, whole)
    for name, value in load_checkpoint(whole.model)[0].state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


def test_a_share_of_the_learning_rate_is_what_the_first_step_moves_by(make_data, params, run_train):
    paths = make_data(images=6, captions=2)
    own = params(epochs=1, learning_rates={"caption_encoder": 0.25}, learning_rate=0.01, gradient_clip=0.0)
    run_train(own, paths)  # one batch of 12 pairs: one step
    trained, vocabulary, _ = load_checkpoint(paths.model)
    before = new_model(own.model, own.train, vocabulary, region_dim=trained.config.region_dim)
    for part, rate in (("region_encoder", 0.01), ("caption_encoder.gru", 0.0025)):
        pairs = zip(before.named_parameters(), trained.parameters(), strict=True)
        moved = [(new - old).abs().max().item() for (name, old), new in pairs if name.startswith(part)]
        assert max(moved) == pytest.approx(rate, rel=1e-3), part
