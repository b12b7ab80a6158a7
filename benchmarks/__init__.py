"""Measurements of kreg beside its peers; see README.md."""
