from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import SpecInvalid
from launcher.spec.load import Loaded, load
from launcher.spec.mac import derive_mac
from launcher.spec.types import (
    BridgeBinding,
    CloudInitVolume,
    ContainerDiskVolume,
    ContainerRootfsVolume,
    Cpu,
    DataVolumeVolume,
    Disk,
    FileSystem,
    Instance,
    Interface,
    Kernel,
    MasqueradeBinding,
    Memory,
    MultusNetwork,
    PodNetwork,
    PvcVolume,
    RunPolicy,
    SecretRef,
    SriovBinding,
    VdpaBinding,
    VhostUserBinding,
    VmSpec,
)
from tests.unit.spec.samples import GOLDEN, INSTANCE, PROPERTY, UID, UNSET, changed, encode, problems_of, read

GIB = 1 << 30


def test_the_golden_spec_becomes_exactly_this_value() -> None:
    assert load(encode(GOLDEN)) == Loaded(
        spec=VmSpec(
            name="web",
            namespace="shop",
            uid=UID,
            run_policy=RunPolicy.ALWAYS,
            instance=Instance(
                cpu=Cpu(sockets=2, cores_per_socket=2),
                memory=Memory(2 * GIB),
                kernel=Kernel("example.org/kernel:6.1", "console=ttyS0 root=/dev/vda rw"),
                disks=(Disk("root"), Disk("seed", read_only=True)),
                file_systems=(FileSystem("share"),),
                interfaces=(
                    Interface("pod", derive_mac(UID, "pod"), BridgeBinding()),
                    Interface("storage", "52:54:00:00:00:01", SriovBinding()),
                ),
            ),
            volumes=(
                ContainerRootfsVolume("root", "example.org/rootfs:1", 4 * GIB),
                CloudInitVolume("seed", user_data=b"#cloud-config\n"),
                PvcVolume("share", "share"),
            ),
            networks=(PodNetwork("pod"), MultusNetwork("storage", "net-a")),
        ),
        warnings=(),
    )


def test_the_smallest_spec_gets_every_default() -> None:
    smallest = {
        "apiVersion": GOLDEN["apiVersion"],
        "kind": GOLDEN["kind"],
        "metadata": {"name": "a"},
        "spec": {"instance": {}},
    }
    assert load(encode(smallest)).spec == VmSpec("a", "default", "", RunPolicy.ONCE, Instance(Memory(GIB), Cpu(1, 1)))


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({f"{INSTANCE}.memory.size": "0.5"}, 1),
        ({f"{INSTANCE}.memory.size": "1.5Gi"}, 3 * GIB // 2),
        ({f"{INSTANCE}.memory.size": 1073741824}, GIB),
        ({f"{INSTANCE}.memory.size": "0", "spec.resources.requests.memory": "3Gi"}, 3 * GIB),
        ({f"{INSTANCE}.memory": UNSET, "spec.resources.requests.memory": 2.5e9}, 2_500_000_000),
        ({f"{INSTANCE}.memory": UNSET, "spec.resources.limits.memory": "3Gi"}, GIB),
        ({f"{INSTANCE}.memory": UNSET, "spec.resources.requests.memory": "0"}, GIB),
    ],
)
def test_memory_comes_from_its_size_else_the_request_else_one_gibibyte(changes: dict[str, Any], size: int) -> None:
    assert read(changes).instance.memory == Memory(size)


def test_numbers_are_read_as_written_not_as_floats() -> None:
    exact = encode(GOLDEN).replace(b'"2Gi"', b"9007199254740993.000000001")
    assert load(exact).spec.instance.memory.size == 9007199254740994


@pytest.mark.parametrize(
    ("page_size", "expected"), [({}, GIB), ({"pageSize": None}, GIB), ({"pageSize": "2Mi"}, 2 << 20)]
)
def test_huge_pages_are_one_gibibyte_unless_said(page_size: dict[str, Any], expected: int) -> None:
    assert read({f"{INSTANCE}.memory.hugepages": page_size}).instance.memory == Memory(2 * GIB, expected)


def test_dedicated_placement_is_kept() -> None:
    assert read({f"{INSTANCE}.cpu.dedicatedCPUPlacement": True}).instance.cpu == Cpu(2, 2, dedicated_cpu_placement=True)


@pytest.mark.parametrize(
    ("changes", "binding"),
    [
        ({"bridge": {}}, BridgeBinding()),
        ({"masquerade": {}}, MasqueradeBinding("10.0.2.0/30")),
        ({"masquerade": {"cidr": "10.7.0.9/24"}}, MasqueradeBinding("10.7.0.0/24")),
        ({"sriov": {}}, SriovBinding()),
        ({"vdpa": {}}, VdpaBinding(1, iommu=False)),
        ({"vdpa": {"numQueues": 3, "iommu": True}}, VdpaBinding(3, iommu=True)),
        ({"vhostUser": {}}, VhostUserBinding()),
    ],
)
def test_each_binding(changes: dict[str, Any], binding: object) -> None:
    fit = {f"{INSTANCE}.cpu.dedicatedCPUPlacement": True, f"{INSTANCE}.memory.hugepages": {"pageSize": "2Mi"}}
    spec = read({**fit, f"{INSTANCE}.interfaces.0": {"name": "pod", **changes}})
    assert spec.instance.interfaces[0].binding == binding


@pytest.mark.parametrize(
    ("source", "volume"),
    [
        ({"containerDisk": {"image": "d", "imagePullPolicy": "Never"}}, ContainerDiskVolume("seed", "d")),
        ({"containerRootfs": {"image": "r", "size": "1500m"}}, ContainerRootfsVolume("seed", "r", 2)),
        ({"cloudInit": {}}, CloudInitVolume("seed")),
        ({"cloudInit": {"userData": "", "networkData": "é"}}, CloudInitVolume("seed", None, "é".encode())),
        (
            {"cloudInit": {"userDataBase64": "AP8=\n", "networkDataSecretName": "n"}},
            CloudInitVolume("seed", b"\x00\xff", SecretRef("n")),
        ),
        (
            {"cloudInit": {"userDataSecretName": "u", "networkDataBase64": "eA=="}},
            CloudInitVolume("seed", SecretRef("u"), b"x"),
        ),
        (
            {"persistentVolumeClaim": {"claimName": "c", "hotpluggable": True}},
            PvcVolume("seed", "c", hotpluggable=True),
        ),
        ({"dataVolume": {"volumeName": "v"}}, DataVolumeVolume("seed", "v")),
    ],
)
def test_each_volume_source(source: dict[str, Any], volume: object) -> None:
    assert read({"spec.volumes.1": {"name": "seed", **source}}).volume("seed") == volume


def test_problems_come_in_the_order_of_the_document() -> None:
    document = changed(
        {"spec.volumes.1": {"name": "seed"}, f"{INSTANCE}.disks.0.name": "ghost", "metadata.name": UNSET}
    )
    document["spec"] = dict(reversed(document["spec"].items()))
    document["spec"]["extra"] = 1
    document["kind"] = document.pop("kind")  # to the end of the document
    del document["apiVersion"]
    assert [problem.path for problem in problems_of(encode(document))] == [
        "$.metadata.name",
        "$.spec.volumes[1]",
        "$.spec.instance.disks[0].name",
        "$.spec.extra",
        "$.apiVersion",
    ]


def test_forty_problems_are_reported_at_once() -> None:
    document = changed({f"{INSTANCE}.disks": [{"name": f"Disk {at}", "readonly": True} for at in range(20)]})
    with pytest.raises(SpecInvalid) as caught:
        load(encode(document))
    assert caught.value.message == "the spec has 40 problems"
    assert [problem.path for problem in caught.value.problems[-2:]] == [
        "$.spec.instance.disks[19].name",
        "$.spec.instance.disks[19].readonly",
    ]


def test_problems_of_one_object_do_not_hide_those_of_another() -> None:
    paths = {problem.path for problem in problems_of(encode(changed({
        f"{INSTANCE}.cpu": {"sockets": "x", "dedicatedCPUPlacement": True},
        f"{INSTANCE}.memory.size": "2Gib",
        f"{INSTANCE}.kernel": {},
        "spec.resources.requests": {"cpu": "?", "memory": "3Gi"},
        "spec.networks.0": 1,
    })))}  # fmt: skip
    assert paths == {
        "$.spec.instance.cpu.sockets",
        "$.spec.instance.memory.size",
        "$.spec.instance.kernel.image",
        "$.spec.instance.kernel.cmdline",
        "$.spec.resources.requests.cpu",
        "$.spec.networks[0]",
    }


def test_another_kind_of_object_is_one_problem_not_a_hundred() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": []}}
    assert [problem.path for problem in problems_of(encode(pod))] == ["$.apiVersion", "$.kind"]


def test_messages_are_one_printable_line_however_odd_the_names() -> None:
    document = changed({})
    document["spec"]["\n\x1b[2J" + "é" * 300] = 1
    (problem,) = problems_of(encode(document))
    assert str(problem).isprintable()
    assert len(str(problem)) < 500


def test_secret_data_is_never_repeated_in_a_message() -> None:
    for data in ({"userDataBase64": "hunter2!"}, {"userData": "hunter2!", "userDataSecretName": "s"}):
        (problem,) = problems_of(encode(changed({"spec.volumes.1.cloudInit": data})))
        assert "hunter2" not in str(problem)


def test_unknown_fields_can_warn_instead() -> None:
    document = changed(
        {f"{INSTANCE}.disks.0.readonly": True, f"{INSTANCE}.bootOrder": [], "apiVersion": UNSET, "kind": UNSET}
    )
    loaded = load(encode(document), unknown_fields="warn")
    assert loaded.spec == read({})
    assert [str(warning) for warning in loaded.warnings] == [
        "$.spec.instance.disks[0].readonly: unknown field, did you mean readOnly?",
        "$.spec.instance.bootOrder: unknown field",
    ]
    with pytest.raises(SpecInvalid):
        load(encode(changed({"kind": "Pod"})), unknown_fields="warn")


FIELDS = {
    field
    for names in (
        "apiVersion kind metadata name uid spec runPolicy instance volumes networks resources requests limits",
        "cpu sockets coresPerSocket dedicatedCPUPlacement memory size hugepages pageSize hugepages-2Mi kernel image cmdline",
        "disks readOnly fileSystems interfaces mac bridge masquerade cidr sriov vdpa numQueues iommu vhostUser",
        "containerDisk containerRootfs cloudInit userData userDataBase64 networkDataSecretName persistentVolumeClaim",
        "claimName hotpluggable dataVolume volumeName pod multus networkName",
    )
    for field in names.split()
}
# Shapes near to a spec reach far more of the code than arbitrary ones.
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(string.printable, max_size=8)
    | st.sampled_from(["pod", "root", "1Gi", "2Mi", "10.0.2.0/24", "Once", "52:54:00:00:00:01", "eA=="])
)
KEYS = st.sampled_from(sorted(FIELDS)) | st.text(max_size=4)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=30
)


@PROPERTY
@given(st.binary(max_size=200))
def test_arbitrary_bytes_load_or_are_refused(document: bytes) -> None:
    problems_of(document)


@PROPERTY
@given(TREES)
def test_arbitrary_json_loads_or_is_refused(tree: object) -> None:
    problems_of(encode(tree))


@PROPERTY
@given(st.dictionaries(KEYS, TREES, max_size=6), st.dictionaries(KEYS, TREES, max_size=4))
def test_arbitrary_json_inside_a_spec_loads_or_is_refused(instance: dict[str, Any], spec: dict[str, Any]) -> None:
    problems_of(
        encode(changed({INSTANCE: instance, **{f"spec.{key}": tree for key, tree in spec.items() if key.isalpha()}}))
    )


@PROPERTY
@given(st.integers(0, 2000), st.integers(0, 255))
def test_one_wrong_byte_loads_or_is_refused(at: int, byte: int) -> None:
    document = bytearray(encode(GOLDEN))
    document[at % len(document)] = byte
    problems_of(bytes(document))
