"""Graph to graph: one idea a file, named by verbs. The order is in `llmc.pipeline`."""
