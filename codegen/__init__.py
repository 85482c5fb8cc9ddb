"""Graph to program: what runs on a machine. For now the reference program, which runs the graph in eager torch."""
