"""Each rule of the API once broken and once kept, from one golden spec."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.spec.samples import INSTANCE, UNSET, changed, encode, problems_of

DEDICATED = {f"{INSTANCE}.cpu.dedicatedCPUPlacement": True}
HUGE = {f"{INSTANCE}.memory.hugepages": {"pageSize": "2Mi"}}
REQUESTS, LIMITS = "spec.resources.requests", "spec.resources.limits"
MASQUERADE = f"{INSTANCE}.interfaces.0.masquerade"
ROOTFS, SEED, CLAIM = (
    "spec.volumes.0.containerRootfs",
    "spec.volumes.1.cloudInit",
    "spec.volumes.2.persistentVolumeClaim",
)
VDPA = {f"{INSTANCE}.interfaces.1.sriov": UNSET}
EXTRA_POD = {"spec.networks.2": {"name": "more", "pod": {}}}
DATA_VOLUME = {"spec.volumes.2.persistentVolumeClaim": UNSET}
CONTAINER_DISK = {"spec.volumes.0.containerRootfs": UNSET}
LONG = "a" * 64

# (changes to the golden spec, the only path reported, a fragment of its message)
BROKEN: list[tuple[dict[str, Any], str, str]] = [
    # The object itself
    ({"apiVersion": "v1"}, "$.apiVersion", 'expected "virt.virtink.smartx.com/v1alpha1", got "v1"'),
    ({"apiVersion": UNSET}, "$.apiVersion", "required"),
    ({"apiVersion": 1}, "$.apiVersion", "expected string, got number"),
    ({"kind": "Pod"}, "$.kind", 'expected "VirtualMachine", got "Pod"'),
    ({"kind": "Pod", "spec": {}}, "$.kind", "expected"),
    ({"kind": None}, "$.kind", "required"),
    ({"metadata": UNSET}, "$.metadata.name", "required"),
    ({"metadata": []}, "$.metadata", "expected object, got array"),
    ({"metadata.name": UNSET}, "$.metadata.name", "required"),
    ({"metadata.name": ""}, "$.metadata.name", "required"),
    ({"metadata.name": 7}, "$.metadata.name", "expected string, got number"),
    ({"metadata.name": "a\nb"}, "$.metadata.name", "unprintable"),
    ({"metadata.namespace": {}}, "$.metadata.namespace", "expected string, got object"),
    ({"metadata.uid": True}, "$.metadata.uid", "expected string, got boolean"),
    ({"spec": UNSET}, "$.spec", "required"),
    ({"spec": None}, "$.spec", "required"),
    ({"spec": "x"}, "$.spec", "expected object, got string"),
    # spec
    ({"spec.instance": UNSET, "spec.networks": []}, "$.spec.instance", "required"),
    ({"spec.instance": 3, "spec.networks": []}, "$.spec.instance", "expected object, got number"),
    ({"spec.runPolicy": "Sometimes"}, "$.spec.runPolicy", "not one of Always, RerunOnFailure, Once, Manual, Halted"),
    ({"spec.runPolicy": "always"}, "$.spec.runPolicy", "not one of"),
    ({"spec.runPolicy": []}, "$.spec.runPolicy", "expected string, got array"),
    ({"spec.runpolicy": "Once"}, "$.spec.runpolicy", "unknown field, did you mean runPolicy?"),
    ({"spec.volume": []}, "$.spec.volume", "unknown field, did you mean volumes?"),
    ({"spec.zzz": 1}, "$.spec.zzz", "unknown field"),
    ({"spec.two words": 1}, '$.spec["two words"]', "unknown field"),
    ({"spec.resources": 1}, "$.spec.resources", "expected object, got number"),
    ({REQUESTS: []}, "$.spec.resources.requests", "expected object, got array"),
    ({f"{REQUESTS}.cpu": "two"}, "$.spec.resources.requests.cpu", "not a quantity"),
    ({f"{LIMITS}.memory": True}, "$.spec.resources.limits.memory", "expected quantity, got boolean"),
    ({f"{LIMITS}.hugepages-2Mi": "1 Gi"}, "$.spec.resources.limits.hugepages-2Mi", "not a quantity"),
    # instance.cpu
    ({f"{INSTANCE}.CPU": {}}, "$.spec.instance.CPU", "unknown field, did you mean cpu?"),
    ({f"{INSTANCE}.cpu": 4}, "$.spec.instance.cpu", "expected object, got number"),
    ({f"{INSTANCE}.cpu.sockets": 1.5}, "$.spec.instance.cpu.sockets", "expected integer, got number"),
    ({f"{INSTANCE}.cpu.sockets": "2"}, "$.spec.instance.cpu.sockets", "expected integer, got string"),
    ({f"{INSTANCE}.cpu.sockets": -1}, "$.spec.instance.cpu.sockets", "must not be negative"),
    ({f"{INSTANCE}.cpu.sockets": True}, "$.spec.instance.cpu.sockets", "expected integer, got boolean"),
    ({f"{INSTANCE}.cpu.coresPerSocket": 2**32}, "$.spec.instance.cpu.coresPerSocket", "must be at most 4294967295"),
    ({f"{INSTANCE}.cpu.cores": 2}, "$.spec.instance.cpu.cores", "unknown field"),
    (
        {f"{INSTANCE}.cpu.dedicatedCPUPlacement": "yes"},
        "$.spec.instance.cpu.dedicatedCPUPlacement",
        "expected boolean, got string",
    ),
    # instance.memory
    ({f"{INSTANCE}.memory": "1Gi"}, "$.spec.instance.memory", "expected object, got string"),
    ({f"{INSTANCE}.memory.size": "1Gib"}, "$.spec.instance.memory.size", '"1Gib" is not a quantity'),
    ({f"{INSTANCE}.memory.size": ""}, "$.spec.instance.memory.size", "not a quantity"),
    ({f"{INSTANCE}.memory.size": "-1Gi"}, "$.spec.instance.memory.size", "must be greater than 0"),
    ({f"{INSTANCE}.memory.size": "-0.5"}, "$.spec.instance.memory.size", "must be greater than 0"),
    ({f"{INSTANCE}.memory.size": -1}, "$.spec.instance.memory.size", "must be greater than 0"),
    ({f"{INSTANCE}.memory.size": "8Ei"}, "$.spec.instance.memory.size", "must be less than 8Ei"),
    ({f"{INSTANCE}.memory.size": ["1Gi"]}, "$.spec.instance.memory.size", "expected quantity, got array"),
    ({f"{INSTANCE}.memory.hugePages": {}}, "$.spec.instance.memory.hugePages", "did you mean hugepages?"),
    ({f"{INSTANCE}.memory.hugepages": True}, "$.spec.instance.memory.hugepages", "expected object, got boolean"),
    (
        {f"{INSTANCE}.memory.hugepages": {"pageSize": "4Mi"}},
        "$.spec.instance.memory.hugepages.pageSize",
        "not one of 2Mi, 1Gi",
    ),
    ({f"{INSTANCE}.memory.hugepages": {"pageSize": ""}}, "$.spec.instance.memory.hugepages.pageSize", "not one of"),
    (
        {f"{INSTANCE}.memory.hugepages": {"pageSize": 2}},
        "$.spec.instance.memory.hugepages.pageSize",
        "expected string, got number",
    ),
    (
        {f"{INSTANCE}.memory.hugepages": {"size": "2Mi"}},
        "$.spec.instance.memory.hugepages.size",
        "did you mean pageSize?",
    ),
    ({**HUGE, f"{INSTANCE}.memory.size": "3Mi"}, "$.spec.instance.memory.size", "not positive integer multiple of 2Mi"),
    ({f"{INSTANCE}.memory": {"size": "1.5Gi", "hugepages": {}}}, "$.spec.instance.memory.size", "multiple of 1Gi"),
    # instance.kernel
    ({f"{INSTANCE}.kernel": []}, "$.spec.instance.kernel", "expected object, got array"),
    ({f"{INSTANCE}.kernel.image": UNSET}, "$.spec.instance.kernel.image", "required"),
    ({f"{INSTANCE}.kernel.image": ""}, "$.spec.instance.kernel.image", "required"),
    ({f"{INSTANCE}.kernel.cmdline": None}, "$.spec.instance.kernel.cmdline", "required"),
    ({f"{INSTANCE}.kernel.cmdline": ["rw"]}, "$.spec.instance.kernel.cmdline", "expected string, got array"),
    (
        {f"{INSTANCE}.kernel.imagePullPolicy": 1},
        "$.spec.instance.kernel.imagePullPolicy",
        "expected string, got number",
    ),
    ({f"{INSTANCE}.kernel.cmdLine": "x"}, "$.spec.instance.kernel.cmdLine", "did you mean cmdline?"),
    ({f"{INSTANCE}.kernel": UNSET}, "$.spec.instance.kernel", 'required: the first disk, "root", is a containerRootfs'),
    ({f"{INSTANCE}.kernel": None}, "$.spec.instance.kernel", "containerRootfs"),
    # instance.disks
    ({f"{INSTANCE}.disks": {}}, "$.spec.instance.disks", "expected array, got object"),
    ({f"{INSTANCE}.disks.1": "seed"}, "$.spec.instance.disks[1]", "expected object, got string"),
    ({f"{INSTANCE}.disks.1": None}, "$.spec.instance.disks[1]", "required"),
    ({f"{INSTANCE}.disks.1.name": UNSET}, "$.spec.instance.disks[1].name", "required"),
    ({f"{INSTANCE}.disks.1.readOnly": "true"}, "$.spec.instance.disks[1].readOnly", "expected boolean, got string"),
    ({f"{INSTANCE}.disks.1.readOnly": 1}, "$.spec.instance.disks[1].readOnly", "expected boolean, got number"),
    (
        {f"{INSTANCE}.disks.0.readonly": True},
        "$.spec.instance.disks[0].readonly",
        "unknown field, did you mean readOnly?",
    ),
    ({f"{INSTANCE}.disks.2": {"name": "seed"}}, "$.spec.instance.disks[2].name", 'duplicate name "seed"'),
    (
        {f"{INSTANCE}.disks.2": {"name": "sead"}},
        "$.spec.instance.disks[2].name",
        'no volume named "sead", did you mean seed?',
    ),
    ({f"{INSTANCE}.disks.2": {"name": "../etc"}}, "$.spec.instance.disks[2].name", "DNS label"),
    # instance.fileSystems
    ({f"{INSTANCE}.fileSystems.0.name": ""}, "$.spec.instance.fileSystems[0].name", "required"),
    ({f"{INSTANCE}.fileSystems.1": {"name": "share"}}, "$.spec.instance.fileSystems[1].name", "duplicate name"),
    ({f"{INSTANCE}.fileSystems.0.name": "root"}, "$.spec.instance.fileSystems[0].name", "duplicate name"),
    ({f"{INSTANCE}.fileSystems.0.name": "other"}, "$.spec.instance.fileSystems[0].name", "there is no volume"),
    ({f"{INSTANCE}.fileSystems.0.readOnly": True}, "$.spec.instance.fileSystems[0].readOnly", "unknown field"),
    ({f"{INSTANCE}.fileSystems.0.name": "x" * 37}, "$.spec.instance.fileSystems[0].name", "room for 36 bytes"),
    ({f"{INSTANCE}.filesystems": []}, "$.spec.instance.filesystems", "did you mean fileSystems?"),
    # instance.interfaces
    ({f"{INSTANCE}.interfaces.1.name": UNSET}, "$.spec.instance.interfaces[1].name", "required"),
    ({f"{INSTANCE}.interfaces.2": {"name": "pod"}}, "$.spec.instance.interfaces[2].name", "duplicate name"),
    ({f"{INSTANCE}.interfaces.2": {"name": "pods"}}, "$.spec.instance.interfaces[2].name", "no network named"),
    ({f"{INSTANCE}.interfaces.1.mac": "52:54:00:zz:00:01"}, "$.spec.instance.interfaces[1].mac", "not a MAC address"),
    ({f"{INSTANCE}.interfaces.1.mac": "52:54:00-00:00:01"}, "$.spec.instance.interfaces[1].mac", "not a MAC address"),
    (
        {f"{INSTANCE}.interfaces.1.mac": "02:00:5e:10:00:00:00:01"},
        "$.spec.instance.interfaces[1].mac",
        "8 octets, not 6",
    ),
    ({f"{INSTANCE}.interfaces.1.mac": "0200.5e10.0000.0001"}, "$.spec.instance.interfaces[1].mac", "8 octets, not 6"),
    ({f"{INSTANCE}.interfaces.1.mac": ":".join(["00"] * 20)}, "$.spec.instance.interfaces[1].mac", "20 octets, not 6"),
    ({f"{INSTANCE}.interfaces.1.mac": "525400000001"}, "$.spec.instance.interfaces[1].mac", "not a MAC address"),
    ({f"{INSTANCE}.interfaces.1.mac": 5}, "$.spec.instance.interfaces[1].mac", "expected string, got number"),
    (
        {f"{INSTANCE}.interfaces.1.bridge": {}},
        "$.spec.instance.interfaces[1].sriov",
        "more than 1 binding method: bridge",
    ),
    (
        {MASQUERADE: {}, f"{INSTANCE}.interfaces.0.bridge": {}},
        "$.spec.instance.interfaces[0].masquerade",
        "more than 1 binding",
    ),
    ({f"{INSTANCE}.interfaces.1.vdpa": {}}, "$.spec.instance.interfaces[1].vdpa", "more than 1 binding method"),
    ({f"{INSTANCE}.interfaces.0.bridge": True}, "$.spec.instance.interfaces[0].bridge", "expected object, got boolean"),
    ({f"{INSTANCE}.interfaces.0.bridge": {"mtu": 1}}, "$.spec.instance.interfaces[0].bridge.mtu", "unknown field"),
    ({f"{INSTANCE}.interfaces.1.sriov": {"x": 1}}, "$.spec.instance.interfaces[1].sriov.x", "unknown field"),
    ({f"{INSTANCE}.interfaces.0.masqerade": {}}, "$.spec.instance.interfaces[0].masqerade", "did you mean masquerade?"),
    ({MASQUERADE: {"CIDR": ""}}, "$.spec.instance.interfaces[0].masquerade.CIDR", "did you mean cidr?"),
    ({MASQUERADE: {"cidr": "ten"}}, "$.spec.instance.interfaces[0].masquerade.cidr", "not a subnet"),
    ({MASQUERADE: {"cidr": "10.0.2.0"}}, "$.spec.instance.interfaces[0].masquerade.cidr", "not a subnet"),
    ({MASQUERADE: {"cidr": "10.0.2.0/255.255.255.0"}}, "$.spec.instance.interfaces[0].masquerade.cidr", "not a subnet"),
    ({MASQUERADE: {"cidr": "10.0.2.0/33"}}, "$.spec.instance.interfaces[0].masquerade.cidr", "not a subnet"),
    ({MASQUERADE: {"cidr": "10.0.2.0/31"}}, "$.spec.instance.interfaces[0].masquerade.cidr", "at least 4 IPs"),
    ({MASQUERADE: {"cidr": "fd00::/127"}}, "$.spec.instance.interfaces[0].masquerade.cidr", "at least 4 IPs"),
    (
        {f"{INSTANCE}.interfaces.1.masquerade": {}, f"{INSTANCE}.interfaces.1.sriov": UNSET},
        "$.spec.instance.interfaces[1].masquerade",
        "pod network only",
    ),
    (
        {**VDPA, f"{INSTANCE}.interfaces.1.vdpa": {"numQueues": -1}},
        "$.spec.instance.interfaces[1].vdpa.numQueues",
        "negative",
    ),
    (
        {**VDPA, f"{INSTANCE}.interfaces.1.vdpa": {"iommu": 1}},
        "$.spec.instance.interfaces[1].vdpa.iommu",
        "expected boolean",
    ),
    (
        {**VDPA, f"{INSTANCE}.interfaces.1.vdpa": {"queues": 1}},
        "$.spec.instance.interfaces[1].vdpa.queues",
        "numQueues",
    ),
    (
        {**VDPA, f"{INSTANCE}.interfaces.1.vhostUser": {}},
        "$.spec.instance.interfaces[1].vhostUser",
        "without dedicated CPU",
    ),
    (
        {**VDPA, **HUGE, f"{INSTANCE}.interfaces.1.vhostUser": {}},
        "$.spec.instance.interfaces[1].vhostUser",
        "without dedicated",
    ),
    (
        {**VDPA, **DEDICATED, f"{INSTANCE}.interfaces.1.vhostUser": {}},
        "$.spec.instance.interfaces[1].vhostUser",
        "hugepages",
    ),
    # volumes
    ({"spec.volumes": {}}, "$.spec.volumes", "expected array, got object"),
    ({"spec.volumes.3": None}, "$.spec.volumes[3]", "required"),
    (
        {"spec.volumes.3": {"name": "root", "dataVolume": {"volumeName": "x"}}},
        "$.spec.volumes[3].name",
        "duplicate name",
    ),
    ({"spec.volumes.3": {"name": "a/b", "dataVolume": {"volumeName": "x"}}}, "$.spec.volumes[3].name", "DNS label"),
    ({"spec.volumes.3": {"name": "-a", "dataVolume": {"volumeName": "x"}}}, "$.spec.volumes[3].name", "DNS label"),
    ({"spec.volumes.3": {"name": "a\n", "dataVolume": {"volumeName": "x"}}}, "$.spec.volumes[3].name", "DNS label"),
    ({"spec.volumes.3": {"name": "A", "dataVolume": {"volumeName": "x"}}}, "$.spec.volumes[3].name", "DNS label"),
    ({"spec.volumes.3": {"name": LONG, "dataVolume": {"volumeName": "x"}}}, "$.spec.volumes[3].name", "DNS label"),
    ({"spec.volumes.3": {"name": "x"}}, "$.spec.volumes[3]", "at least 1 volume source is required"),
    ({"spec.volumes.3": {"name": "x", "containerDisk": None}}, "$.spec.volumes[3]", "at least 1 volume source"),
    (
        {"spec.volumes.0.containerDisk": {"image": "x"}},
        "$.spec.volumes[0].containerRootfs",
        "more than 1 volume source",
    ),
    ({"spec.volumes.0.dataVolume": {"volumeName": "x"}}, "$.spec.volumes[0].dataVolume", "more than 1 volume source"),
    ({"spec.volumes.2.pvc": {}}, "$.spec.volumes[2].pvc", "unknown field"),
    ({**CONTAINER_DISK, "spec.volumes.0.containerDisk": {}}, "$.spec.volumes[0].containerDisk.image", "required"),
    ({**CONTAINER_DISK, "spec.volumes.0.containerDisk": "x"}, "$.spec.volumes[0].containerDisk", "expected object"),
    (
        {**CONTAINER_DISK, "spec.volumes.0.containerDisk": {"image": "x", "size": "1Gi"}},
        "$.spec.volumes[0].containerDisk.size",
        "unknown field",
    ),
    ({f"{ROOTFS}.image": ""}, "$.spec.volumes[0].containerRootfs.image", "required"),
    ({f"{ROOTFS}.size": UNSET}, "$.spec.volumes[0].containerRootfs.size", "required"),
    ({f"{ROOTFS}.size": "0"}, "$.spec.volumes[0].containerRootfs.size", "must be greater than 0"),
    ({f"{ROOTFS}.size": "-4Gi"}, "$.spec.volumes[0].containerRootfs.size", "must be greater than 0"),
    ({f"{ROOTFS}.size": "4GB"}, "$.spec.volumes[0].containerRootfs.size", "not a quantity"),
    ({f"{ROOTFS}.imagePullpolicy": ""}, "$.spec.volumes[0].containerRootfs.imagePullpolicy", "imagePullPolicy?"),
    ({f"{SEED}.userDataBase64": "eA=="}, "$.spec.volumes[1].cloudInit.userDataBase64", "more than 1 user data"),
    ({f"{SEED}.userDataSecretName": "s"}, "$.spec.volumes[1].cloudInit.userDataSecretName", "more than 1 user data"),
    (
        {SEED: {"networkData": "a", "networkDataBase64": "eA=="}},
        "$.spec.volumes[1].cloudInit.networkDataBase64",
        "network data",
    ),
    (
        {SEED: {"networkDataBase64": "eA==", "networkDataSecretName": "s"}},
        "$.spec.volumes[1].cloudInit.networkDataSecretName",
        "more than 1 network data",
    ),
    ({SEED: {"userDataBase64": "%%%"}}, "$.spec.volumes[1].cloudInit.userDataBase64", "not base64"),
    ({SEED: {"userDataBase64": "YQ"}}, "$.spec.volumes[1].cloudInit.userDataBase64", "not base64"),
    ({SEED: {"networkDataBase64": "é"}}, "$.spec.volumes[1].cloudInit.networkDataBase64", "not base64"),
    (
        {SEED: {"userData": "x" * 1048577}},
        "$.spec.volumes[1].cloudInit.userData",
        "1048577 bytes are more than 1048576",
    ),
    (
        {SEED: {"networkDataBase64": "eHh4" * 400000}},
        "$.spec.volumes[1].cloudInit.networkDataBase64",
        "1200000 bytes are more than 1048576",
    ),
    ({SEED: {"userData": {"a": 1}}}, "$.spec.volumes[1].cloudInit.userData", "expected string, got object"),
    ({SEED: {"userdata": "x"}}, "$.spec.volumes[1].cloudInit.userdata", "did you mean userData?"),
    ({f"{CLAIM}.claimName": UNSET}, "$.spec.volumes[2].persistentVolumeClaim.claimName", "required"),
    ({f"{CLAIM}.hotpluggable": "no"}, "$.spec.volumes[2].persistentVolumeClaim.hotpluggable", "expected boolean"),
    (
        {f"{CLAIM}.hotPluggable": True},
        "$.spec.volumes[2].persistentVolumeClaim.hotPluggable",
        "did you mean hotpluggable?",
    ),
    ({**DATA_VOLUME, "spec.volumes.2.dataVolume": {}}, "$.spec.volumes[2].dataVolume.volumeName", "required"),
    (
        {**DATA_VOLUME, "spec.volumes.2.dataVolume": {"claimName": "x", "volumeName": "x"}},
        "$.spec.volumes[2].dataVolume.claimName",
        "did you mean volumeName?",
    ),
    # networks
    ({"spec.networks": "pod"}, "$.spec.networks", "expected array, got string"),
    ({"spec.networks.1": {"name": "storage"}}, "$.spec.networks[1]", "at least 1 network source is required"),
    ({"spec.networks.0.multus": {"networkName": "n"}}, "$.spec.networks[0].multus", "more than 1 network source"),
    ({"spec.networks.1.multus": {}}, "$.spec.networks[1].multus.networkName", "required"),
    ({"spec.networks.0.pod": {"vmNetworkCIDR": ""}}, "$.spec.networks[0].pod.vmNetworkCIDR", "unknown field"),
    ({"spec.networks.0.Pod": {}}, "$.spec.networks[0].Pod", "did you mean pod?"),
    ({"spec.networks.2": {"name": "pod", "pod": {}}}, "$.spec.networks[2].name", "duplicate name"),
    (EXTRA_POD, "$.spec.networks[2].name", 'there is no interface named "more"'),
    ({"spec.networks.1.name": UNSET}, "$.spec.networks[1].name", "required"),
    # resources against dedicated CPUs and hugepages, after the webhook's defaults
    ({**DEDICATED, f"{REQUESTS}.cpu": "3"}, "$.spec.resources.requests.cpu", "must equal to number of vCPUs, 4"),
    ({**DEDICATED, f"{LIMITS}.cpu": "3999m"}, "$.spec.resources.limits.cpu", "must equal to CPU request"),
    ({**DEDICATED, f"{REQUESTS}.cpu": "3999m"}, "$.spec.resources.limits.cpu", "must equal to CPU request"),
    (
        {**DEDICATED, f"{REQUESTS}.memory": "2303Mi", f"{LIMITS}.memory": "2303Mi"},
        "$.spec.resources.requests.memory",
        "must not be less than 2304Mi",
    ),
    ({**DEDICATED, f"{REQUESTS}.memory": "3Gi"}, "$.spec.resources.limits.memory", "must equal to memory request"),
    ({**DEDICATED, f"{LIMITS}.memory": "3Gi"}, "$.spec.resources.limits.memory", "must equal to memory request"),
    (
        {**DEDICATED, **HUGE, f"{REQUESTS}.memory": "255Mi", f"{LIMITS}.memory": "255Mi"},
        "$.spec.resources.requests.memory",
        "must not be less than 256Mi",
    ),
    ({**HUGE, f"{LIMITS}.hugepages-2Mi": "1Gi"}, "$.spec.resources.requests.hugepages-2Mi", "instance memory size"),
    ({**HUGE, f"{REQUESTS}.hugepages-2Mi": "1Gi"}, "$.spec.resources.requests.hugepages-2Mi", "instance memory size"),
    (
        {**HUGE, f"{REQUESTS}.hugepages-2Mi": "2Gi", f"{LIMITS}.hugepages-2Mi": "2049Mi"},
        "$.spec.resources.limits.hugepages-2Mi",
        "must equal to hugepages request",
    ),
]

KEPT: list[dict[str, Any]] = [
    {},
    {"status": {"phase": 7, "anything": [1e300]}, "metadata.labels": {"a/b": None}, "metadata.creationTimestamp": None},
    {"other": 1},
    {"metadata.uid": UNSET, "metadata.namespace": UNSET},
    {"spec.runPolicy": UNSET},
    {"spec.runPolicy": ""},
    {"spec.runPolicy": None},
    *({"spec.runPolicy": policy} for policy in ("RerunOnFailure", "Once", "Manual", "Halted")),
    {"spec.nodeSelector": {"zone": 1}, "spec.affinity": {"wrong": []}, "spec.tolerations": "any"},
    {"spec.livenessProbe": {"httpGet": {}}, "spec.readinessProbe": 5},
    {f"{REQUESTS}.example.com/gpu": "not read", "spec.resources.claims": [1]},
    {"spec.resources": None},
    {f"{REQUESTS}.cpu": "250m", f"{LIMITS}.memory": 1e9},
    {f"{INSTANCE}.cpu": UNSET},
    {f"{INSTANCE}.cpu": {"sockets": 0, "coresPerSocket": 0}},
    {f"{INSTANCE}.cpu.sockets": 2.0},
    {f"{INSTANCE}.cpu.coresPerSocket": 2**32 - 1},
    {f"{INSTANCE}.memory": None},
    {f"{INSTANCE}.memory.size": "0"},
    *(
        {f"{INSTANCE}.memory.size": size}
        for size in ("1e9", "1.5Gi", "0.5", "1n", "1E3", "+1Gi", ".5Gi", "5.", 1 << 30, 1.5e9)
    ),
    {f"{INSTANCE}.memory.size": "9223372036854775807"},
    HUGE,
    {f"{INSTANCE}.memory.hugepages": {}},
    {**CONTAINER_DISK, "spec.volumes.0.containerDisk": {"image": "x"}, f"{INSTANCE}.kernel": UNSET},
    {f"{INSTANCE}.disks.0.name": "seed", f"{INSTANCE}.disks.1.name": "root", f"{INSTANCE}.kernel": UNSET},
    {f"{INSTANCE}.disks": None, f"{INSTANCE}.fileSystems": [], f"{INSTANCE}.kernel": UNSET},
    {f"{INSTANCE}.kernel.imagePullPolicy": "Always"},
    {f"{INSTANCE}.disks.1.readOnly": None},
    {f"{INSTANCE}.interfaces": UNSET, "spec.networks": UNSET},
    {f"{INSTANCE}.interfaces.0.mac": ""},
    *({f"{INSTANCE}.interfaces.1.mac": mac} for mac in ("52-54-00-00-00-01", "5254.0000.0001", "52:54:00:AB:cd:01")),
    {f"{INSTANCE}.interfaces.0.bridge": {}},
    {f"{INSTANCE}.interfaces.0.bridge": None, MASQUERADE: {}},
    *({MASQUERADE: {"cidr": cidr}} for cidr in ("", "10.7.0.0/24", "10.7.0.9/30", "0.0.0.0/0", "fd00::/126")),
    {**VDPA},
    {**VDPA, f"{INSTANCE}.interfaces.1.vdpa": {"numQueues": 4, "iommu": True}},
    {**VDPA, **DEDICATED, **HUGE, f"{INSTANCE}.interfaces.1.vhostUser": {}},
    {f"{INSTANCE}.interfaces.1.name": "Net_1.x y", "spec.networks.1.name": "Net_1.x y"},
    {f"{INSTANCE}.interfaces.1.name": LONG[1:], "spec.networks.1.name": LONG[1:]},
    {f"{INSTANCE}.interfaces.2": {"name": "more"}, **EXTRA_POD},
    {"spec.volumes.3": {"name": "0a-9", "dataVolume": {"volumeName": "x", "hotpluggable": True}}},
    {"spec.volumes.3": {"name": LONG[1:], "containerDisk": {"image": "x", "imagePullPolicy": "Never"}}},
    {f"{ROOTFS}.size": 4294967296},
    {SEED: {}},
    {SEED: {"userData": "", "userDataBase64": "I2Nsb3VkLWNvbmZpZwo="}},
    {SEED: {"userDataSecretName": "u", "networkDataSecretName": "n"}},
    {SEED: {"networkDataBase64": "YWFh\nYWFh\n"}},
    {f"{CLAIM}.hotpluggable": True},
    DEDICATED,
    {**DEDICATED, f"{REQUESTS}.cpu": "4", f"{LIMITS}.cpu": "4000m"},
    {**DEDICATED, f"{REQUESTS}.cpu": "3500m", f"{LIMITS}.cpu": "3.5"},  # the webhook compares whole CPUs, rounded up
    {**DEDICATED, f"{REQUESTS}.memory": "2304Mi"},
    {**DEDICATED, f"{REQUESTS}.memory": "3Gi", f"{LIMITS}.memory": "3072Mi"},
    {**DEDICATED, f"{REQUESTS}.memory": "0", f"{LIMITS}.cpu": "0"},
    {**DEDICATED, **HUGE, f"{REQUESTS}.memory": "256Mi"},
    {**HUGE, f"{LIMITS}.hugepages-2Mi": "2048Mi", f"{REQUESTS}.hugepages-2Mi": "2Gi"},
    {**HUGE, f"{LIMITS}.hugepages-1Gi": "7Gi"},
]

LINK_NAMES = [
    ("", "required"),
    (LONG, "at most 63"),
    ("a/b", "holds a /"),
    ("a\0b", "NUL"),
    ("__disk0", "starts with __"),
]


@pytest.mark.parametrize(("changes", "path", "text"), BROKEN)
def test_a_broken_rule_is_the_only_problem_and_names_its_place(changes: dict[str, Any], path: str, text: str) -> None:
    found = problems_of(encode(changed(changes)))
    assert [problem.path for problem in found] == [path]
    assert text in found[0].message


@pytest.mark.parametrize("changes", KEPT)
def test_what_the_api_allows_is_valid(changes: dict[str, Any]) -> None:
    assert problems_of(encode(changed(changes))) == ()


@pytest.mark.parametrize(("name", "text"), LINK_NAMES)
@pytest.mark.parametrize("place", ["spec.instance.interfaces.1", "spec.networks.1"])
def test_names_of_interfaces_and_networks_are_free_but_for_what_breaks_paths(place: str, name: str, text: str) -> None:
    both = changed({f"{INSTANCE}.interfaces.1.name": name, "spec.networks.1.name": name})
    found = {problem.path: problem.message for problem in problems_of(encode(both))}
    assert set(found) == {"$.spec.instance.interfaces[1].name", "$.spec.networks[1].name"}
    assert text in found["$." + place.replace(".1", "[1]") + ".name"]


def test_the_table_is_as_large_as_the_api_needs() -> None:
    assert len(BROKEN) >= 120
    assert len({path for _, path, _ in BROKEN}) >= 60
