"""The command behind tools/analyze.py, one module for each of its parts."""
