"""The parts of the stage extract_regions."""
