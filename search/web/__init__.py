"""The page and the HTTP API of a collection."""
