"""What `make` runs beside the tests, and what makes the example files of the template."""
