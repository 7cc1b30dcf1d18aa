"""Pure functions of tensors; formula and source in each docstring."""
