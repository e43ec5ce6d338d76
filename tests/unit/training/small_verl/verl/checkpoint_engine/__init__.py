"""Nothing: its modules are imported by name."""
