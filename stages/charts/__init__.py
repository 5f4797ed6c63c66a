"""Charts that the project draws itself, as SVG: on the report's page, on pages of their own, beside a study."""
