"""Ways in: each front end turns one kind of source into a `llmc.ir.model.Model`."""
