"""Examples that run as they are: ``demo.py`` first of all."""
