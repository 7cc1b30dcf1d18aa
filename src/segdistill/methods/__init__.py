"""One paper = one file; METHODS is the one list."""

from .supervised import Supervised

METHODS = {"supervised": Supervised}
