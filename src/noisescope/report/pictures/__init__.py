"""The figures of page and directory, each drawn once, and what they share."""
