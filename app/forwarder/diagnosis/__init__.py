"""Diagnosis: an error of a library in, its cause and remedy out."""
