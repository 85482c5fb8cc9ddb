"""Every error a user of llmc can meet.

This module imports nothing, so that every layer may raise from it. A message says what went wrong, where, what was
expected and the way out: lower case, no full stop.
"""


class LlmcError(Exception):
    """Base of all errors that llmc raises on purpose."""


class UnsupportedModel(LlmcError):
    """The model is well formed, but llmc cannot compile it; the message names the op, the module and the line."""


class InvalidGraph(LlmcError):
    """A graph breaks an invariant of the IR (see `llmc.ir.verify`)."""


class BuildFailed(LlmcError):
    """A step of the build failed: a rewrite that is not equal to what it replaces, a pass that raised."""


class BadOption(LlmcError):
    """An option or an argument has a value that llmc does not accept."""


class BadInput(LlmcError):
    """A model file (GGUF, safetensors, configuration) is damaged or inconsistent."""


class ArtifactRejected(LlmcError):
    """An artifact is damaged, incomplete, altered, or of a version that this llmc does not read."""


class BadRequest(LlmcError):
    """A request to a loaded model lies outside what its artifact serves."""


class MissingTool(LlmcError):
    """The environment lacks something that the work needs (a package, a compiler)."""


class DeviceFailed(LlmcError):
    """A GPU or its driver refused or failed at what the runtime asked of it."""


class OutOfMemory(LlmcError, MemoryError):
    """This machine or its GPU has not the memory that is asked for."""


class NumericsGateFailed(LlmcError):
    """The compiled model differs from its source by more than the numbers promise allows."""
