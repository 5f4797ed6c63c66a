"""params.yaml, a module for each section; each is read and checked once, where a stage starts."""
