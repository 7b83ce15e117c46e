"""An allow-list of the attributes of a DeviceMesh, a DTensorSpec and the placements. Any other attribute is refused.

One attribute can change which rank holds which rows: torch 2.15 added DeviceMesh._preserve_rank_order, and files that set
it differ from others only in that name. A newer torch may add more, so an attribute that is not listed here is an error,
whatever its value is. The lists hold what torch 2.4 to 2.15 pickles (torch/distributed/device_mesh.py, _mesh_layout.py,
tensor/_dtensor_spec.py, tensor/placement_types.py). Most of these attributes never decide where a shard belongs.
"""

from __future__ import annotations

from typing import Any

from ckptconv.errors import CkptconvError, Kind, brief
from ckptconv.formats.inert import Inert

_KNOWN = {
    "DeviceMesh": frozenset(
        {
            # torch 2.4 to 2.9
            *(
                "device_type",
                "mesh",
                "mesh_dim_names",
                "_flatten_mesh_list",
                "_parent_mesh",
                "_dim_group_infos",
            ),
            # torch 2.10 and later
            *("_device_type", "_layout", "_rank_map", "_mesh_dim_names", "_root_mesh", "_flatten_rank_map"),
            *("_flatten_mapping", "_dim_group_names", "_rank", "_preserve_rank_order"),
            # all versions
            *("_coordinate_on_dim", "_thread_id", "_hash"),
        }
    ),
    "_MeshLayout": frozenset({"axes", "shape", "stride"}),
    "_FlatLayout": frozenset({"shape", "stride"}),
    "DTensorSpec": frozenset(
        {"mesh", "placements", "tensor_meta", "shard_order", "use_strided_shard_as_shard_order", "_hash"}
    ),
    "Shard": frozenset({"dim"}),
    "_StridedShard": frozenset({"dim", "split_factor"}),
    "Replicate": frozenset[str](),
}


def require_known(record: Any, *kinds: str) -> Inert:
    """Return the record if it has one of the kinds and only attributes that are listed here.

    Raises:
        CkptconvError: the record has another kind, or unknown attributes, which the error names.
    """
    if not isinstance(record, Inert) or record.kind not in kinds:
        raise CkptconvError(
            f"a DTensor has a {brief(getattr(record, 'kind', type(record).__name__))} where a {kinds[0]} belongs",
            hint="please report it with the torch version",
        )
    known = _KNOWN[record.kind]
    for part in record.state if isinstance(record.state, tuple) else (record.state,):
        if part is None or (isinstance(part, dict) and part.keys() <= known):
            continue
        names = sorted(map(str, part.keys() - known)) if isinstance(part, dict) else [type(part).__name__]
        raise CkptconvError(
            f"a {record.kind} has an attribute that ckptconv does not know: {brief(', '.join(names))}",
            wanted=f"an attribute that torch 2.4 to 2.15 writes: {', '.join(sorted(known)) or 'none'}",
            hint="it may decide which rank holds which rows; update ckptconv, or report it with the torch version",
            kind=Kind.UNSUPPORTED,
        )
    return record
