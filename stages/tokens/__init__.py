"""Converts captions to word ids: the vocabulary, and the treatment of unknown words."""
