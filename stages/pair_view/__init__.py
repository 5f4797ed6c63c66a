"""Explains the score of an image and a sentence, and draws the explanation, for the report and for search."""
