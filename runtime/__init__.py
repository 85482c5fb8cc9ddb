"""Artifact to tokens. Imports numpy and tokenizers only: nothing of the compiler, no torch."""
