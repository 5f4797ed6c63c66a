"""Foils: captions with one word changed so that they are false of their picture, and the lexicon of these words."""
