"""Two studies or two models beside each other: terminal, page, result file."""
