"""The parts of the report page: its content, charts, pictures and template."""
