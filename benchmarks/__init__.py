"""This jobserver measured beside upstream's, and beside no server at all (docs/performance.rst)."""
