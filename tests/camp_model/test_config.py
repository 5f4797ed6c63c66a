import pytest

from camp_model import CampConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": "soft"}, "model.gate: 'soft' is not one of scalar, elementwise, none"),
        ({"dim": 0}, "model.dim"),
        ({"dim": True}, "model.dim"),
        ({"hops": 3}, "model.hops"),
        ({"gate_context": -1.0}, "model.gate_context: -1.0 is not a number of 0 or more"),
        ({"gate_context": "3"}, "model.gate_context"),
        ({"hops": 2, "message_passing": "none"}, "model.hops: 2 needs messages"),
        ({"matcher": "clip"}, "model.matcher: 'clip' is not one of camp, scan, joint"),
        ({"text": "bert"}, "model.text: 'bert' is not one of gru"),
        ({"fusion": "message"}, "model.fusion: message needs"),
    ],
)
def test_a_wrong_switch_is_an_error_that_names_it(change, message):
    with pytest.raises(ValueError, match=message):
        CampConfig(vocab_size=5, **change)
