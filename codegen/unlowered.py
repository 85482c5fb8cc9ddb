"""What is raised for a part of a graph that has no native form."""

from torch import fx


class Unlowered(Exception):
    """A node that has no native form."""

    def __init__(self, node: fx.Node, reason: str, *, final: bool = False) -> None:
        """Say which node and why; `final` if a native program cannot leave it to torch either."""
        super().__init__(f"{node.name}: {reason}")
        self.node, self.reason, self.final = node, reason, final
