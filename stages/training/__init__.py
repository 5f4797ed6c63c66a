"""The parts of the train stage."""
