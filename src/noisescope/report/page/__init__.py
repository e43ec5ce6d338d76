"""The page: one HTML file, its sections, and what they are made of."""
