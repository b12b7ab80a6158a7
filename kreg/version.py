"""The version, where no import costs anything."""

__version__ = "0.1.0"
