"""Version of mmspec, in a file of its own so that the build and `mmspec --version` read it without importing torch."""

__version__ = "0.1.0"
