"""The verbs as functions: what `segdistill.train` and its like do, for Python and for the command line alike."""
