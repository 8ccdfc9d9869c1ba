"""A metered, private front door to AI models. Importing the package does nothing."""

__version__ = "0.1.0"
