"""Holdfast: change a language model, keep what made it safe, and show it with numbers that were computed."""

from importlib.metadata import version

__version__ = version("holdfast")
