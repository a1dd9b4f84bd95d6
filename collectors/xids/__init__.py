"""XIDs: what a code means, and which reports of the kernel log and of NVML are one occurrence."""

from collectors.xids.ledger import GpuIdentity, Origin, XidLedger

__all__ = ["GpuIdentity", "Origin", "XidLedger"]
