"""Captions as word ids: which vocabulary, and what becomes of a caption's words."""
