"""What lies at a path, as a hash."""
