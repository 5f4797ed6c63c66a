import pytest

from camp_model import CampConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": "soft"}, "model.gate: 'soft' is not one of scalar, elementwise, none"),
        ({"dim": 0}, "model.dim"),
        ({"dim": True}, "model.dim"),
        ({"hops": 3}, "model.hops: 3 is not 1 or 2"),
        ({"hops": True}, "model.hops: True is not 1 or 2"),
        ({"transformer": ""}, "model.transformer: '' is not the name of a transformer"),
        ({"gate_context": -1.0}, "model.gate_context: -1.0 is not a number of 0 or more"),
        ({"gate_context": "3"}, "model.gate_context"),
        ({"hops": 2, "message_passing": "none"}, "model.hops: 2 needs messages"),
        ({"matcher": "clip"}, "model.matcher: 'clip' is not one of camp, scan, joint, sgraf"),
        ({"text": "bert"}, "model.text: 'bert' is not one of gru"),
        ({"text": ["gru"]}, r"model.text: \['gru'\] is not one of gru"),
        ({"matcher": {}}, "model.matcher: {} is not one of camp, scan, joint, sgraf"),
        ({"residual": None}, "model.residual: None is not true or false"),
        ({"feature_norm": -1.0}, "model.feature_norm: -1.0 is not a number of 0 or more"),
        ({"joint_score": 1}, "model.joint_score: 1 is not true or false"),
        ({"fusion": "message"}, "model.fusion: message needs"),
        ({"sgraf": "gat"}, "model.sgraf: 'gat' is not one of saf, sgr, both"),
        ({"similarity_dim": 0}, "model.similarity_dim: 0 is not a whole number of 1 to 16384"),
        ({"scan_direction": "t2i"}, "model.scan_direction: 't2i' is not one of text_to_image, image_to_text, both"),
    ],
)
def test_a_wrong_switch_is_an_error_that_names_it(change, message):
    with pytest.raises(ValueError, match=message):
        CampConfig(vocab_size=5, **change)


@pytest.mark.parametrize("key", ["gate", "dim", "gate_context", "hops", "matcher", "text"])
def test_no_message_holds_a_value_whole(key):
    with pytest.raises(ValueError, match=f"^model.{key}: 'xxx") as caught:
        CampConfig(vocab_size=10, **{key: "x" * 100_000})
    assert len(str(caught.value)) < 300
