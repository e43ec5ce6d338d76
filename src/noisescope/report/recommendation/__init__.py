"""A recommendation of formats: terminal, page, result file, files for engines."""
