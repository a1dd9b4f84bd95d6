"""The ports of this node's network cards: InfiniBand, RoCE and Ethernet, as the kernel shows them in sysfs."""

from collectors.network.source import Network, NetworkSource

__all__ = ["Network", "NetworkSource"]
