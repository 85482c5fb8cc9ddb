"""The engines that `llmc bench` measures, each in one file.

A file defines `Engine` (see `llmc.bench.worker`) and imports nothing of llmc but what it measures, as it runs in the
Python where its engine is installed, which may be another one than llmc's.
"""
