"""The student alone: artefact, prediction, export. Imports no method, loss or engine."""
