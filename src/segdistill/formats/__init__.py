"""One file in, arrays out, and back; all size and safety limits. Imports no torch."""
