"""Recording: rows become segments, segments become templates and bindings."""
