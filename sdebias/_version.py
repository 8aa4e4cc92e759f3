"""The version, in one place: packaging, datasets and citations read it here."""

__version__ = "0.1.0"
