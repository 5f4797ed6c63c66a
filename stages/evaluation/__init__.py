"""How evaluation measures: scores and ranks, gates, the recall table."""
