"""What a model is in llmc: an FX graph of ATen and `llmc::` ops, weights as recipes, rewrites with their proof."""
