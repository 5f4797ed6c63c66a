"""Search: a sentence finds pictures, of a workspace or of any folder."""
