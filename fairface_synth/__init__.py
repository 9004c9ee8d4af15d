"""fairface_synth: demographically balanced faces from a biased generator."""

from .models.demo import load_demo as load_demo

__version__ = "0.1.0"
