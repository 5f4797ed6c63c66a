"""Charts that the project draws itself, as SVG: in the report, on separate pages, and for studies."""
