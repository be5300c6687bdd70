"""For tests only: one machine of a Ray cluster, at an address of the loopback device.

python3 tests/ray_node.py 127.0.0.1 folder=<new folder>          # the head
python3 tests/ray_node.py 127.0.0.2 gcs_address=127.0.0.1:<port>

Prints the head's address when it is ready, and ends when its stdin ends. (`ray start` takes the
machine's own address for 127.0.0.1 as soon as there is a second machine.)
"""

import sys

from ray._private.node import Node
from ray._private.parameter import RayParams

address, role = sys.argv[1], dict([sys.argv[2].split("=")])
if "folder" in role:
    role = {"temp_dir": role["folder"]}
node = Node(
    RayParams(
        node_ip_address=address, num_cpus=1, num_gpus=0, object_store_memory=80 << 20,
        include_dashboard=False, include_log_monitor=False, min_worker_port=0, max_worker_port=0,
        **role,
    ),
    head="temp_dir" in role, shutdown_at_exit=False, spawn_reaper=False,
)  # fmt: skip
print(node.gcs_address, flush=True)
sys.stdin.read()
node.kill_all_processes(check_alive=False, allow_graceful=False)
