"""`mmspec` in a process that takes its processor for a graphics card: accelerate takes no processors for FSDP.

as_gpus.py ARGUMENTS: as behind `mmspec`; run by `test_launched` under `accelerate launch`.
"""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from mmspec import cli

PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
sys.exit(cli.main(sys.argv[1:]))
