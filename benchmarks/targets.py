"""Accelerators for which XLA can compile without one, and what their data sheets say."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import TYPE_CHECKING

from drenet_jax.errors import InputError

if TYPE_CHECKING:
    import jax

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine with several accelerators of one kind.

    Attributes:
      name: of the target.
      device: full name of the accelerator.
      platform: "gpu" or "tpu".
      devices: accelerators of the machine.
      topology: their arrangement, in the form of the platform's compiler.
      bf16_flops: operations a second of one device, bfloat16, dense (data sheet).
      bandwidth: bytes a second between one device and its memory (data sheet).
      memory_bytes: of one device.
      description: what XLA:GPU must know of the device, as a text proto; '' for a TPU.
    """

    name: str
    device: str
    platform: str
    devices: int
    topology: str
    bf16_flops: float
    bandwidth: float
    memory_bytes: int
    description: str = ""

    def check_compiler(self) -> None:
        """Raises InputError unless the platform's compiler is installed."""
        package, extra = {"gpu": ("jax_cuda12_plugin", "cuda12"), "tpu": ("libtpu", "tpu")}[
            self.platform
        ]
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"--target={self.name}: the compiler for it is not installed; install "
                f"drenet_jax[{extra}], or call launch/compile_check.sh, which does so."
            )

    def mesh(self) -> jax.sharding.Mesh:
        """The described devices along the axis `parallel.AXIS`; see `compiler_environment`."""
        # Imported here: names and data sheets need no JAX.
        import jax
        import numpy as np
        from jax.experimental import topologies

        from drenet_jax.parallel import AXIS

        if self.platform == "gpu":
            devices = topologies.get_topology_desc(
                platform="cuda",
                topology_name="gpu",
                topology=self.topology,
                target_config=self.description,
            ).devices
        else:
            # On TPU v4 and v5p two cores share a chip's memory and are one device.
            cores = {"chip_config_name": "megacore"} if self.topology[:3] in ("v4:", "v5p") else {}
            devices = topologies.get_topology_desc(
                platform="tpu", topology_name=self.topology, **cores
            ).devices
        return jax.sharding.Mesh(np.array(devices), (AXIS,))


def _cuda_device(
    name: str,
    *,
    capability: int,
    cores: int,
    fpus_per_core: int,
    shared_memory_per_core: int,
    l2_cache: int,
    clock_ghz: float,
    bandwidth: float,
    memory: int,
) -> str:
    """A `stream_executor.GpuTargetConfigProto` as text."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory_per_core}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: {l2_cache}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {shared_memory_per_core - 1024}
  cuda_compute_capability {{ major: {capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


# Peaks and memory are those of the makers' data sheets; what else XLA:GPU needs is as it lists
# these devices (openxla/xla, xla/backends/gpu/target_config/specs).
TARGETS = {
    target.name: target
    for target in (
        Target(
            "h100",
            "NVIDIA H100 SXM 80 GB",
            "gpu",
            8,
            "1x1x8",
            989e12,
            3.35e12,
            80 * GIB,
            _cuda_device(
                "NVIDIA H100 80GB HBM3",
                capability=9,
                cores=132,
                fpus_per_core=128,
                shared_memory_per_core=233472,
                l2_cache=52428800,
                clock_ghz=1.98,
                bandwidth=3352.32e9,
                memory=84942979072,
            ),
        ),
        Target(
            "a100",
            "NVIDIA A100 SXM 80 GB",
            "gpu",
            8,
            "1x1x8",
            312e12,
            2.039e12,
            80 * GIB,
            _cuda_device(
                "NVIDIA A100-SXM4-80GB",
                capability=8,
                cores=108,
                fpus_per_core=64,
                shared_memory_per_core=167936,
                l2_cache=41943040,
                clock_ghz=1.41,
                bandwidth=2039.04e9,
                memory=85100068864,
            ),
        ),
        Target("v4-8", "TPU v4", "tpu", 4, "v4:2x2x1", 275e12, 1.228e12, 32 * GIB),
        Target("v5e-4", "TPU v5e", "tpu", 4, "v5e:2x2", 197e12, 0.819e12, 16 * GIB),
        Target("v5p-8", "TPU v5p", "tpu", 4, "v5p:2x2x1", 459e12, 2.765e12, 95 * GIB),
        Target("v6e-8", "TPU v6e", "tpu", 8, "v6e:2x4", 918e12, 1.64e12, 32 * GIB),
    )
}


def compiler_environment(target: Target) -> dict[str, str]:
    """Environment variables of a process that compiles for `target` and has none."""
    environment = {"JAX_PLATFORMS": "cpu"}
    if target.platform == "gpu":
        # Nothing can be timed without a device: XLA takes its own estimates.
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
        return environment | {"XLA_FLAGS": flags}
    # libtpu would ask the metadata server of a cloud which machine this is.
    return environment | {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
