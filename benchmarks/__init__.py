"""Measures this jobserver beside upstream's and beside no server at all; see docs/performance.rst."""
