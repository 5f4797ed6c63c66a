"""How the report page is made: what is shown, the charts, the pictures, the template."""
