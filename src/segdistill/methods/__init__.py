"""One paper = one file."""
