"""A cloud-hypervisor without a guest, for the contract tests. It shares no code with launcher.vmm, on purpose."""
