"""The in-pod launcher for cloud-hypervisor VMs: spec → facts → plan → effects → VMM → supervision."""

__version__ = "0.1.0"
