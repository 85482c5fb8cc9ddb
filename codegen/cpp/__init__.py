"""The C++ emitter: regions to one readable translation unit over the template headers in `include/llmc`."""
