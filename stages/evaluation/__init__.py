"""The measurements of the stage evaluate: scores and ranks, gates, foils, the recall table."""
