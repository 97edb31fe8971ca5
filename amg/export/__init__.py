"""Annotations in other formats."""
