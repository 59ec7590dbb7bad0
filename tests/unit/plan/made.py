"""A small valid VM and a machine that suits it, to be varied with dataclasses.replace."""

from __future__ import annotations

from pathlib import Path

from launcher.facts import Address, DiskFacts, HostFacts, ImageFacts, Link, NetworkFacts, Route, VmmFacts
from launcher.plan.fitness import CAPABILITIES
from launcher.spec.types import (
    BridgeBinding,
    CloudInitVolume,
    ContainerRootfsVolume,
    Cpu,
    Disk,
    Instance,
    Interface,
    Kernel,
    Memory,
    PodNetwork,
    RunPolicy,
    VmSpec,
)

GIB = 1 << 30

SPEC = VmSpec(
    name="ubuntu",
    namespace="default",
    uid="0b6c2c4e-6f6c-4f0e-9d3c-3b1f0c9a7d11",
    run_policy=RunPolicy.ONCE,
    instance=Instance(
        memory=Memory(GIB),
        cpu=Cpu(),
        kernel=Kernel("registry.example/kernel:1", "console=ttyS0 root=/dev/vda rw"),
        disks=(Disk("root"), Disk("seed")),
        interfaces=(Interface("pod", "52:54:00:11:22:33", BridgeBinding()),),
    ),
    volumes=(
        ContainerRootfsVolume("root", "registry.example/ubuntu:22.04", 4 * GIB),
        CloudInitVolume("seed", user_data=b"#cloud-config\npassword: hunter2\n"),
    ),
    networks=(PodNetwork("pod"),),
)

FACTS = HostFacts(
    arch="x86_64",
    page_size=4096,
    cpus=(0, 1, 2, 3),
    vmm=VmmFacts("/usr/bin/cloud-hypervisor", (53, 0, 0)),
    capabilities=tuple(CAPABILITIES),
    kernel_image=ImageFacts("kernel", "OCI layout", "sha256:" + "1" * 64, "bzimage", initramfs=True),
    images=(ImageFacts("root", "OCI layout", "sha256:" + "2" * 64),),
    disks=(DiskFacts("root", folder=True), DiskFacts("seed", folder=True)),
    network=NetworkFacts(
        links=(
            Link("lo", 1, "", "00:00:00:00:00:00", 65536, up=True),
            Link(
                "eth0",
                2,
                "veth",
                "0a:58:0a:f4:01:05",
                1450,
                up=True,
                addresses=(Address(4, "10.244.1.5", 24, broadcast="10.244.1.255"),),
                routes=(
                    Route(4, "0.0.0.0/0", gateway="10.244.1.1"),
                    Route(4, "10.244.1.0/24", source="10.244.1.5", protocol=2, scope=253),
                ),
            ),
        ),
        nameservers=("10.96.0.10",),
        search=("default.svc.cluster.local", "svc.cluster.local", "cluster.local"),
    ),
    dnsmasq=str(Path("/usr/sbin/dnsmasq")),
)
