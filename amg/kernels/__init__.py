"""Compiled twins of the plain arithmetic behind `masks` and `sam`."""
